"""When a job's time is over, as far as the job can know."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dask_batch.cache import attempts
from dask_batch.cache.owner import Owner
from dask_batch.cache.store import Cache
from dask_batch.job.surroundings import RUN_TIME_VARIABLE

__all__ = ["TimeLimit", "limit_of"]

_END_VARIABLE = "SLURM_JOB_END_TIME"  # from Slurm 23.02 on


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """The end of an attempt's time and when to warn of it, in seconds since the epoch."""

    ends_at: float
    warn_at: float

    @classmethod
    def of(cls, *, began_at: float, ends_at: float) -> TimeLimit:
        """Warn a minute before the end, or a tenth of the time, if that is less."""
        return cls(ends_at, ends_at - min(60.0, 0.1 * max(ends_at - began_at, 0.0)))


def limit_of(
    cache: Cache, definition: tuple[Mapping[str, Any], Mapping[str, Any]], generation: int
) -> TimeLimit | None:
    """Return the time limit of an attempt; None if it has none that is known here.

    Parameters
    ----------
    cache
        Where earlier attempts have recorded how they ended: after a time-out there is more time.
    definition
        The ``common`` and the ``header`` of the task's definition.
    generation
        The attempt.
    """
    began_at = _process_began()
    exactly_s = os.environ.get(RUN_TIME_VARIABLE)
    if exactly_s:
        return TimeLimit.of(began_at=began_at, ends_at=began_at + float(exactly_s))
    told = os.environ.get(_END_VARIABLE, "")
    if told.isdecimal():
        return TimeLimit.of(began_at=began_at, ends_at=float(told))
    common, header = definition
    asked_s = _asked_s(common, header)
    if not asked_s:
        return None
    factor = float((header.get("retry") or {}).get("time_factor") or 1.0)
    earlier = (
        attempts.read_end(cache, header["key"], n) for n in range(header["generation"], generation)
    )
    timeouts = sum(end is not None and end.get("outcome") == "timeout" for end in earlier)
    given_s = asked_s * factor**timeouts
    if "SLURM_JOB_ID" in os.environ:
        given_s = math.ceil(given_s / 60) * 60  # it counts in minutes
    return TimeLimit.of(began_at=began_at, ends_at=began_at + given_s)


def _asked_s(common: Mapping[str, Any], header: Mapping[str, Any]) -> float:
    resources = header["attributes"].get("resources") or {}
    if "run_time_max" not in resources and "resources" in header:
        resources = common["resources"][header["resources"]]
    return float(resources.get("run_time_max") or 0.0)


def _process_began() -> float:
    """Return when this process began: the nearest to the job's own beginning that it can see."""
    now = time.time()
    try:
        ticks = float(Owner.current().started)
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (ValueError, OSError, AttributeError):  # not Linux
        return now
    return now - max(age_s, 0.0)
