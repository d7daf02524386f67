"""``python -m dask_batch.job DEFINITION INDEX``: run one task of a task-definition file."""

from __future__ import annotations

import os
import sys

from dask_batch.job.run import main

if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[2].isdecimal():
        sys.exit("usage: python -m dask_batch.job DEFINITION INDEX")
    code = main(sys.argv[1], int(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    # The result is published: threads and exit handlers that the function left behind must not
    # be able to hang or fail a job that has succeeded.
    os._exit(code)
