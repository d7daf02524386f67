"""The engine run once by a job, for clients that have gone: ``python -m dask_batch.steward``."""
