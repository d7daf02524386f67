"""``python -m dask_batch.job.ranks DEFINITION INDEX FOLDER``: one MPI rank of a task."""

from __future__ import annotations

import os
import sys

from dask_batch.errors import BatchError
from dask_batch.job.containment import dump_crashes
from dask_batch.job.exit_codes import NO_CACHE
from dask_batch.job.ranks.rank import main
from dask_batch.job.say import say
from dask_batch.job.tether import tether
from dask_batch.job.threshold import hear_of_children


def _start(definition: str, index: int, folder: str) -> int:
    tether()
    hear_of_children()
    dump_crashes()
    try:
        return main(definition, index, folder)
    except (BatchError, OSError) as error:
        say(f"a rank cannot begin on {os.uname().nodename}: {error}")
        return NO_CACHE


if __name__ == "__main__":
    if len(sys.argv) != 4 or not sys.argv[2].isdecimal():
        sys.exit("usage: python -m dask_batch.job.ranks DEFINITION INDEX FOLDER")
    code = _start(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # full disk; closed or replaced
            continue
    os._exit(code)
