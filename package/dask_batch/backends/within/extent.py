"""On how many machines the jobs of a backend may run that live with their client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from dask_batch.backends.within.allocation import environment_allocation
from dask_batch.backends.within.fluxrun import this_instance

__all__ = ["spans_machines"]


def _steps() -> bool:
    allocation = environment_allocation()
    return allocation.nodes > 1 or not allocation.on_node


def _flux() -> bool:
    return this_instance().nodes > 1


_ASK: Final[Mapping[str, Callable[[], bool]]] = {"slurm-step": _steps, "flux-step": _flux}


def spans_machines(backend: str) -> bool:
    """Whether jobs of a backend may run on another machine than this process.

    Raises
    ------
    BackendUnavailableError
        There is no allocation.
    """
    return backend in _ASK and _ASK[backend]()
