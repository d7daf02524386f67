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
from dask_batch.errors import ConfigurationError

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
    flux_uri
        Which Flux instance it is, as ``FLUX_URI`` has it; None: the enclosing one.
    """

    max_workers: int | None = None
    max_cores: int | None = None
    local_gpus: Declared | None = None
    flux_uri: str | None = None

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

    setup.refuse(_NO_FLUX, "flux_uri")
    return LocalBackend(
        max_workers=setup.max_workers, max_cores=setup.max_cores, gpus=setup.local_gpus
    )


def _slurm(setup: Setup) -> Backend:
    from dask_batch.backends.slurm.backend import SlurmBackend

    setup.refuse(_CLUSTER, "max_workers", "max_cores")
    setup.refuse(_NO_FLUX, "flux_uri")
    return SlurmBackend()


def _slurm_step(setup: Setup) -> Backend:
    from dask_batch.backends.within.backend import WithinBackend
    from dask_batch.backends.within.steps import NAME, StepLauncher

    setup.refuse(_NO_FLUX, "flux_uri")
    return WithinBackend(
        StepLauncher.here(), name=NAME, max_workers=setup.max_workers, max_cores=setup.max_cores
    )


def _flux_step(setup: Setup) -> Backend:
    from dask_batch.backends.within.backend import WithinBackend
    from dask_batch.backends.within.fluxrun import NAME, FluxRunLauncher

    setup.refuse("jobs go to the instance that this process is in: set FLUX_URI", "flux_uri")
    return WithinBackend(
        FluxRunLauncher.here(), name=NAME, max_workers=setup.max_workers, max_cores=setup.max_cores
    )


def _flux(setup: Setup, name: str = "flux") -> Backend:
    from dask_batch.backends.flux.backend import open_flux

    setup.refuse(_CLUSTER, "max_workers", "max_cores")
    return open_flux(name, setup.flux_uri)


_NO_FLUX: Final = "it names a Flux instance: use FluxClusterExecutor, or backend='flux'"


def _by_commands(name: str) -> Callable[[Setup], Backend]:
    def make(setup: Setup) -> Backend:
        from dask_batch.backends.commands.backend import CommandsBackend
        from dask_batch.backends.commands.systems import SYSTEMS

        setup.refuse(_CLUSTER, "max_workers", "max_cores")
        setup.refuse(_NO_FLUX, "flux_uri")
        return CommandsBackend(SYSTEMS[name])

    return make


_BACKENDS: Final[Mapping[str, Callable[[Setup], Backend]]] = {
    "local": _local,
    "slurm": _slurm,
    "flux": _flux,
    "slurm-step": _slurm_step,
    "flux-step": _flux_step,
    **{name: _by_commands(name) for name in ("pbs", "sge", "lsf", "torque", "moab")},
}
_ONE_FLUX: Final = "flux@"
"""Begins the names of backends that say which instance they are: see :mod:`.flux.places`."""
_said: set[str] = set()
NOTHING_SAID: Final = Setup()


def choose_backend(name: str | None = None) -> str:
    """Return the name of the backend to use.

    Parameters
    ----------
    name
        What was asked for; None: Flux where ``FLUX_URI`` is set, Slurm where ``sbatch`` is on the
        path, else the local queue.

    Raises
    ------
    ConfigurationError
        There is no backend of that name.
    """
    if name is None:
        return _choice()
    if name not in _BACKENDS and not str(name).startswith(_ONE_FLUX):
        nearest = get_close_matches(str(name), _BACKENDS, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigurationError(
            f"unknown backend {name!r}.{hint} There are: {', '.join(_BACKENDS)}."
        )
    return name


def _choice() -> str:
    if os.environ.get("FLUX_URI"):
        name, reason = "flux", "FLUX_URI is set"
    elif shutil.which("sbatch"):
        name, reason = "slurm", "sbatch is on the path"
    else:
        name, reason = "local", "no batch system was found"
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
    if name.startswith(_ONE_FLUX):
        return _flux(setup, name)
    return _BACKENDS[choose_backend(name)](setup)
