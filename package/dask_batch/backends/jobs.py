"""What several backends do with jobs that are to be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

from dask_batch.backends.base import Job
from dask_batch.errors import ResourceError

__all__ = ["distinct", "noted", "refuse_beyond"]


def distinct(jobs: Sequence[Job], by: Callable[[Job], object] = lambda job: None) -> Iterator[Job]:
    """Yield one job for each distinct request.

    Parameters
    ----------
    jobs
        The jobs.
    by
        What else than its resources tells a job from others.
    """
    seen: set[tuple[str, object]] = set()
    for job in jobs:
        asked = {name: value for name, value in job.resources.items() if value is not None}
        mark = (json.dumps(asked, sort_keys=True, default=str), by(job))
        if mark not in seen:
            seen.add(mark)
            yield job


def refuse_beyond(job: Job, max_cores: int | None) -> None:
    """Refuse a job that takes more CPUs than all jobs of a client together may.

    Raises
    ------
    ResourceError
        It names the job and the remedy.
    """
    asked = job.resources
    cpus = int(asked.get("cores") or 1) * int(asked.get("threads_per_core") or 1)
    if max_cores is not None and cpus > max_cores:
        raise ResourceError(
            f"job {job.name}: it asks for {cpus} CPUs, and max_cores={max_cores} is all that this "
            "executor may use at a time; ask for less, or raise max_cores"
        )


def noted(script: str, *notes: str) -> str:
    """Put notes for people to read below the first line of a script.

    >>> noted("#!/bin/sh\\ntrue\\n", "by hand")
    '#!/bin/sh\\n# by hand\\ntrue\\n'
    """
    first, _, rest = script.partition("\n")
    return "\n".join([first, *(f"# {note}" for note in notes), rest])
