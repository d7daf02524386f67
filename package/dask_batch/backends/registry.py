"""The backends by name, and the one that is taken when none is named."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from dask_batch.backends.base import Backend
from dask_batch.backends.gpus import Declared
from dask_batch.errors import BackendUnavailableError, ConfigurationError

__all__ = ["NOTHING_SAID", "Setup", "choose_backend", "open_backend"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Setup:
    """What an executor says of its backend as a whole, rather than of single jobs.

    Attributes
    ----------
    max_workers, max_cores
        How many of the jobs handed to it may run at a time, and on how many CPUs together.
    local_gpus
        What is declared of this machine's GPUs, for backends that run jobs on it.
    """

    max_workers: int | None = None
    max_cores: int | None = None
    local_gpus: Declared | None = None

    def refuse(self, remedy: str, *names: str) -> None:
        """Refuse options that a backend cannot meet.

        Raises
        ------
        ConfigurationError
            One of them asks for something.
        """
        for name in names:
            if getattr(self, name) is not None:
                raise ConfigurationError(f"{name}={getattr(self, name)!r}: {remedy}")


_CLUSTER: Final = (
    "on a cluster the batch system decides how many jobs run at a time; this is an option of the "
    "local queue, of the executors inside an allocation, and of block_allocation"
)


def _local(setup: Setup) -> Backend:
    from dask_batch.backends.local.backend import LocalBackend

    setup.refuse("the local queue counts jobs: use max_workers", "max_cores")
    return LocalBackend(max_workers=setup.max_workers, gpus=setup.local_gpus)


def _slurm(setup: Setup) -> Backend:
    from dask_batch.backends.slurm.backend import SlurmBackend

    setup.refuse(_CLUSTER, "max_workers", "max_cores")
    return SlurmBackend()


def _slurm_step(setup: Setup) -> Backend:
    from dask_batch.backends.within.backend import WithinBackend
    from dask_batch.backends.within.steps import NAME, StepLauncher

    return WithinBackend(
        StepLauncher.here(), name=NAME, max_workers=setup.max_workers, max_cores=setup.max_cores
    )


def _flux_step(setup: Setup) -> Backend:
    from dask_batch.backends.within.backend import WithinBackend
    from dask_batch.backends.within.fluxrun import NAME, FluxRunLauncher

    return WithinBackend(
        FluxRunLauncher.here(), name=NAME, max_workers=setup.max_workers, max_cores=setup.max_cores
    )


_BACKENDS: Final[Mapping[str, Callable[[Setup], Backend]]] = {
    "local": _local,
    "slurm": _slurm,
    "slurm-step": _slurm_step,
    "flux-step": _flux_step,
}
_LATER: Final = ("flux",)
_said: set[str] = set()
NOTHING_SAID: Final = Setup()


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


def open_backend(name: str, setup: Setup = NOTHING_SAID) -> Backend:
    """Return the backend of that name, ready for use.

    Parameters
    ----------
    name
        As in ``backend=``.
    setup
        What is said of it as a whole.

    Raises
    ------
    ConfigurationError, BackendUnavailableError
        As :func:`choose_backend`; or its batch system is not on this machine.
    """
    return _BACKENDS[choose_backend(name)](setup)
