"""What a function finds around it in a job: what it would have found in the client, just then."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask_batch.errors import ConfigurationError, ResourceError
from dask_batch.job.devices import unrestricted
from dask_batch.job.surroundings import OF_A_JOB

__all__ = ["Surroundings", "make_below_here"]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The client's surroundings at one moment."""

    working_directory: Path
    umask: int
    module_path: tuple[str, ...]
    """The folders of ``sys.path``, absolute."""
    environment: Mapping[str, str]

    @classmethod
    def current(cls, environment: Mapping[str, str]) -> Surroundings:
        """Take the surroundings of this moment, with an environment made fit for jobs.

        Strings hash alike in all jobs, as they do in all tasks of one process: functions may rely
        on it, to sort values into groups for example. The seed is the same for every client, since
        results of one may meet those of another, whatever their own seeds are.

        A job that hands over others does not pass on what makes it a job: theirs is their own.
        """
        kept = {name: value for name, value in environment.items() if name not in OF_A_JOB}
        environment = {**unrestricted(kept), "PYTHONHASHSEED": "0"}
        if "PYTHONPATH" in environment:
            environment["PYTHONPATH"] = _without_here(environment["PYTHONPATH"])
        return cls(
            _here(),
            _umask(),
            tuple(os.path.abspath(entry) for entry in sys.path if _is_folder(entry)),
            environment,
        )

    def record(self) -> dict[str, Any]:
        """Return what a job takes over by itself, as JSON data; not the environment."""
        return {
            "working_directory": str(self.working_directory),
            "umask": self.umask,
            "module_path": list(self.module_path),
        }


def _here() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise ConfigurationError(
            "the working directory of this process, in which its jobs are to run, is not there any "
            "more: change to another one (os.chdir)"
        ) from error


def make_below_here(directory: str | None) -> None:
    """Make the directory that a function is to run in, if it is one below the working directory.

    A folder of its own for each calculation is what ``cwd`` is for. What is elsewhere must be
    there: it may be a slip of the pen, or on a file system that only the nodes have.

    Raises
    ------
    ResourceError
        It cannot be made.
    """
    if directory is None or os.path.isdir(directory):
        return
    here = os.path.realpath(os.curdir)
    if here == os.path.sep or not os.path.realpath(directory).startswith(here + os.path.sep):
        return
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"resource 'cwd' = {directory!r}: there is no such directory, and it cannot be made: "
            f"{error.strerror}; name one that is there"
        ) from error


def _without_here(path: str) -> str:
    """Return PYTHONPATH without what means the working directory, wherever that is.

    It would stand before the libraries; as a part of the module path it stands behind them.
    """
    entries = (entry for entry in path.split(os.pathsep) if entry not in ("", os.curdir))
    return os.pathsep.join(os.path.abspath(entry) for entry in entries)


def _is_folder(entry: Any) -> bool:
    return isinstance(entry, str) and os.path.isdir(entry or ".")


def _umask() -> int:
    """Return the umask. Without Linux's /proc it can only be read by setting it for a moment."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            line = next(line for line in status if line.startswith("Umask:"))
        return int(line.split()[1], 8)
    except (OSError, StopIteration):
        mask = os.umask(0o077)
        os.umask(mask)
        return mask
