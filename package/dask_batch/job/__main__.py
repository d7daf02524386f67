"""``python -m dask_batch.job DEFINITION INDEX``: run one task of a task-definition file."""

from __future__ import annotations

import sys

from dask_batch.job import threshold

if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[2].isdecimal():
        sys.exit("usage: python -m dask_batch.job DEFINITION INDEX")
    threshold.leave(threshold.run("dask_batch.job.run", sys.argv[1], int(sys.argv[2])))
