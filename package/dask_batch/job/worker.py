"""``python -m dask_batch.job.worker MEETING NUMBER``: work for a client, task after task."""

from __future__ import annotations

import sys

from dask_batch.job import threshold

if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[2].isdecimal():
        sys.exit("usage: python -m dask_batch.job.worker MEETING NUMBER")
    threshold.leave(threshold.run("dask_batch.job.keeper", sys.argv[1], int(sys.argv[2])))
