"""The batch systems by the names that users choose jobs by, which are those of ``backend=``."""

from __future__ import annotations

from dask_batch.backends import choose_backend
from dask_batch.backends.reach import WORKERS

__all__ = ["asked_family", "belongs"]


def asked_family(name: str) -> str:
    """Return the name by which jobs are chosen, in small letters: pysqa writes large ones.

    Parameters
    ----------
    name
        As in ``backend=``; or ``"workers"``, for tasks on long-lived workers.

    Raises
    ------
    ConfigurationError
        There is no batch system of that name.
    """
    if isinstance(name, str):
        family, *instance = name.split("@", 1)
        name = "@".join([family.lower(), *instance])
    return name if name == WORKERS else choose_backend(name)


def belongs(backend: str, family: str) -> bool:
    """Whether the backend of a run is meant by the name that was chosen.

    ``"flux"`` means every Flux instance, of which a backend's name may tell (``flux@host/path``).
    What runs inside an allocation (``"slurm-step"``) or on workers (``"workers"``) was never handed
    to its batch system as a job, and goes by its own name.
    """
    return family in (backend, backend.partition("@")[0])
