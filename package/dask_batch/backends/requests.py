"""What is asked for by many jobs is looked at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

from dask_batch.backends.base import Job

__all__ = ["distinct"]


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
