"""Mending what is damaged: set aside what can be computed again, restore what can be told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from dask_batch.cache.aside import move_aside
from dask_batch.cache.inspection import Finding
from dask_batch.cache.recovery import mend_run
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError

__all__ = ["mend"]

logger = logging.getLogger(__name__)


def mend(cache: Cache, damaged: Sequence[Finding]) -> tuple[Path, ...]:
    """Mend what was found to be damaged; return what was.

    Results and names are set aside. A damaged record of a run, with the claims that are the same
    file, is replaced by what definitions and log tell of it. Of a start or an end that is damaged,
    all that matters is left: that there was one. A damaged definition is told by the job that needs
    it, and one that nobody needs does no harm.
    """
    mended = []
    for finding in damaged:
        try:
            if _mended(cache, finding):
                mended.append(finding.path)
        except CacheError as error:
            logger.warning("%s cannot be mended: %s", finding.path, error)
    # The claims are mended by what mended their run.
    return tuple(mended)


def _mended(cache: Cache, finding: Finding) -> bool:
    path = finding.path
    if finding.section in ("results", "names"):
        return move_aside(cache.path, path, "damaged") is not None
    if finding.section == "runs" and path.suffix == ".json":
        mend_run(cache, path.stem)
        return True
    return False
