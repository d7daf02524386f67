"""What is not handed over, since what it needs has failed, or vanished, before it was its turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dask_batch.verdicts.failures import Fallen, dependency_failure

if TYPE_CHECKING:
    from dask_batch.engine.request import Request

__all__ = ["without_fallen"]


def without_fallen(requests: Sequence[Request], inputs: Mapping[str, Fallen]) -> list[Request]:
    """Fail what depends on some inputs; return the requests without it.

    Parameters
    ----------
    requests
        Which have not been handed over.
    inputs
        Why each will not come, by key.
    """
    fallen = _closed(requests, inputs)
    functions = {job.key: job.function for request in requests for job in request.jobs}
    kept = []
    for request in requests:
        for future in request.futures:
            if future.key in fallen:
                why = fallen[future.key]
                future._fail(_told(why, future.key, functions.get(future.key, "")))
        rest = replace(request.part(request.keys - fallen.keys()), told=request.told)
        if rest.jobs or rest.futures:
            kept.append(rest)
    return kept


def _closed(requests: Sequence[Request], inputs: Mapping[str, Fallen]) -> dict[str, Fallen]:
    """Return what falls, with what is above it."""
    fallen = dict(inputs)
    open_jobs = [job for request in requests for job in request.jobs]
    found = True
    while found:
        # Of two requests the first may need what only the second has.
        falling = {
            job.key: fallen[min(job.inputs & fallen.keys())]
            for job in open_jobs
            if job.key not in fallen and job.inputs & fallen.keys()
        }
        fallen.update(falling)
        found = bool(falling)
    return fallen


def _told(why: Fallen, key: str, function: str) -> BaseException:
    if not why.root:
        return why.error
    return dependency_failure(
        why.error, key=key, function=function, root=why.root, root_function=why.function
    )
