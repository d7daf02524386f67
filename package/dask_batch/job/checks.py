"""Is what is here what was hashed? Each check returns what differs, in words."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims
from dask_batch.cache.store import Cache
from dask_batch.code.origin import Granularity, cut_version, distribution
from dask_batch.inputs import InputFile

__all__ = [
    "FailedInput",
    "failed_input",
    "file_changes",
    "interpreter_changes",
    "library_changes",
    "starter_is_dead",
]


def interpreter_changes(common: Mapping[str, Any]) -> str:
    """Compare the interpreter's minor version: bytecode and keys depend on it."""
    wanted = tuple(common["python"])
    if sys.version_info[:2] == wanted:
        return ""
    return (
        f"the task was hashed under Python {wanted[0]}.{wanted[1]}, and this job runs "
        f"Python {platform.python_version()} ({sys.executable})"
    )


def library_changes(libraries: Mapping[str, str], key_versions: Granularity) -> str:
    """Compare the versions of the libraries that the task's key contains."""
    for name, hashed in libraries.items():
        here = _version(name)
        if here is None:
            return f"{name} {hashed} is not installed for {sys.executable}"
        if cut_version(here, key_versions) != cut_version(hashed, key_versions):
            return f"the task was hashed with {name} {hashed}, and this job has {name} {here}"
    return ""


def _version(name: str) -> str | None:
    """Return the version of a distribution, or of a package that was installed without one."""
    from importlib import import_module, metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
    for module in dict.fromkeys((name, name.replace("-", "_"))):  # the name was normalised
        with suppress(ImportError):
            import_module(module)  # which may have its version as an attribute only
            found = distribution(module)
            if found is not None:
                return found[1]
    return None


def file_changes(files: Iterable[Mapping[str, Any]]) -> str:
    """Look at the input files once more."""
    for record in files:
        changed = InputFile(**record).check()
        if changed:
            return changed
    return ""


@dataclass(frozen=True, slots=True)
class FailedInput:
    """An input that will not come: the key of the task that failed first, and what it said."""

    key: str
    message: str


def failed_input(cache: Cache, key: str, generation: int | None) -> FailedInput | None:
    """Return why an input will never come, if that is on record.

    An attempt that failed may have been repeated: what counts is the latest.
    """
    if generation is None:
        return None
    while Claims(cache).superseded(key, generation):
        generation += 1
    end = attempts.read_end(cache, key, generation)
    if end is None:
        return None
    root = end.get("root") or key
    return FailedInput(
        root,
        f"it depends on {end.get('function', '')} {root[:12]}, which failed: "
        f"{end.get('message', '')}",
    )


def starter_is_dead(start: Mapping[str, Any]) -> bool:
    """Whether the process that recorded a start is known to have gone.

    Only the host it ran on can tell; elsewhere it counts as alive.
    """
    return attempts.starter_alive(start) is False
