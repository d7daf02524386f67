"""``python -m dask_batch.steward DEFINITION NUMBER``: look after a run once."""

from __future__ import annotations

import logging
import sys

from dask_batch.steward.steward import main

if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[2].isdecimal():
        sys.exit("usage: python -m dask_batch.steward DEFINITION NUMBER")
    logging.basicConfig(
        level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(name)s: %(message)s"
    )
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
