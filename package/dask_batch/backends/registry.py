"""The backends by name, and the one that is taken when none is named."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Final

from dask_batch.backends.base import Backend
from dask_batch.errors import BackendUnavailableError, ConfigurationError

__all__ = ["choose_backend", "open_backend"]

logger = logging.getLogger(__name__)


def _local(max_workers: int | None) -> Backend:
    from dask_batch.backends.local.backend import LocalBackend

    return LocalBackend(max_workers=max_workers)


def _slurm(max_workers: int | None) -> Backend:
    from dask_batch.backends.slurm.backend import SlurmBackend

    if max_workers is not None:
        raise ConfigurationError(
            "max_workers is an option of the local queue; on a cluster the scheduler decides how "
            "many jobs run at a time"
        )
    return SlurmBackend()


_BACKENDS: Final[Mapping[str, Callable[[int | None], Backend]]] = {"local": _local, "slurm": _slurm}
_LATER: Final = ("flux", "flux-step", "slurm-step")
_said: set[str] = set()


def choose_backend(name: str | None = None) -> str:
    """Return the name of the backend to use.

    Parameters
    ----------
    name
        What was asked for; None: Slurm where ``sbatch`` is on the path, else the local queue.

    Raises
    ------
    ConfigurationError
        There is no backend of that name.
    BackendUnavailableError
        There will be one, but not in this version.
    """
    if name is None:
        return _choice()
    if name in _LATER:
        raise BackendUnavailableError(
            f"the backend {name!r} is not in this version of dask-batch; use "
            f"{' or '.join(map(repr, _BACKENDS))}"
        )
    if name not in _BACKENDS:
        nearest = get_close_matches(str(name), _BACKENDS, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigurationError(
            f"unknown backend {name!r}.{hint} There are: {', '.join(_BACKENDS)}."
        )
    return name


def _choice() -> str:
    if os.environ.get("FLUX_URI"):
        _say("FLUX_URI is set, but the Flux backend is not in this version: looking further")
    name = "slurm" if shutil.which("sbatch") else "local"
    reason = "sbatch is on the path" if name == "slurm" else "no batch system was found"
    _say(f"backend {name!r}, since {reason} (to choose another: backend=, or batch.backend)")
    return name


def _say(message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.info(message)


def open_backend(name: str, *, max_workers: int | None = None) -> Backend:
    """Return the backend of that name, ready for use.

    Parameters
    ----------
    name
        As in ``backend=``.
    max_workers
        How many of the jobs handed to it may run at a time.

    Raises
    ------
    ConfigurationError, BackendUnavailableError
        As :func:`choose_backend`; or its batch system is not on this machine.
    """
    return _BACKENDS[choose_backend(name)](max_workers)
