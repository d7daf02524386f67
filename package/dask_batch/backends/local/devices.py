"""The GPUs that running jobs hold: each device is one job's alone.

Which devices there are is not the queue's to say: every client names those that its jobs may have
(:mod:`dask_batch.backends.gpus`), and the queue keeps what runs at the same time apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from dask_batch.backends.gpus import Devices
from dask_batch.backends.local.records import Demand

__all__ = ["Holdings"]

_Naming: TypeAlias = tuple[str, bool]


class Holdings:
    """Which devices are held by running jobs.

    Notes
    -----
    A device has a number and a unique id, and only its driver knows which belong together. So jobs
    whose clients name devices in different ways do not hold any at the same time.
    """

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._namings: Counter[_Naming] = Counter()

    def choose(self, demand: Demand) -> tuple[str, ...] | None:
        """Return devices for a job; None if it has to wait for some."""
        if demand.gpus == 0:
            return ()
        if self._namings.keys() - {_naming(demand.devices)}:
            return None
        free = [name for name in demand.devices.names if name not in self._held]
        return tuple(free[: demand.gpus]) if len(free) >= demand.gpus else None

    def take(self, demand: Demand, names: Sequence[str]) -> None:
        """Note that a job holds devices from now on."""
        self._held.update(names)
        self._namings[_naming(demand.devices)] += len(names)
        self._forget_zeros()

    def give_back(self, demand: Demand, names: Sequence[str]) -> None:
        """Note that a job does not hold its devices any longer."""
        self._held.subtract(names)
        self._namings[_naming(demand.devices)] -= len(names)
        self._forget_zeros()

    def _forget_zeros(self) -> None:
        self._held, self._namings = +self._held, +self._namings


def _naming(devices: Devices) -> _Naming:
    """Return how devices are named: by which library's rules, and whether by numbers."""
    return devices.variable, all(name.isdecimal() for name in devices.names)
