"""The batch systems that are known by their commands, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from dask_batch.backends.commands.gridengine import GRID_ENGINE
from dask_batch.backends.commands.lsf import LSF
from dask_batch.backends.commands.moab import MOAB
from dask_batch.backends.commands.pbs import PBS
from dask_batch.backends.commands.system import System
from dask_batch.backends.commands.torque import TORQUE

__all__ = ["SYSTEMS"]

SYSTEMS: Final[Mapping[str, System]] = MappingProxyType(
    {system.name: system for system in (PBS, GRID_ENGINE, LSF, TORQUE, MOAB)}
)
