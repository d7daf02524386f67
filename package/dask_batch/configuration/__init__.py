"""What may be asked for: keywords, resources, Dask's configuration, the queues of a site."""
