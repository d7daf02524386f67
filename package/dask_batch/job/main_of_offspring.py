"""``__main__`` of a process that a task has started by *spawn* or *forkserver*."""

from dask_batch.job.offspring import travelled_main

globals().update(travelled_main())
