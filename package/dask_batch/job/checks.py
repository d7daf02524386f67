"""Is what is here what was hashed? Each check returns what differs, in words."""

from __future__ import annotations

import os
import platform
import socket
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
    "REMEDY",
    "FailedInput",
    "failed_input",
    "file_changes",
    "interpreter_changes",
    "library_changes",
    "library_versions",
    "missing_library",
    "missing_module",
    "starter_is_dead",
    "where",
]

REMEDY = (
    "resource_dict={'python': ...} names another interpreter, 'job_script_prologue' prepares an "
    "environment"
)


def where() -> str:
    """Return which interpreter this is, and on which machine, in words."""
    version = platform.python_version()
    return f"{sys.executable} (Python {version}) on {socket.gethostname()}"


def interpreter_changes(common: Mapping[str, Any]) -> str:
    """Compare the interpreter's minor version: bytecode and keys depend on it."""
    wanted = tuple(common["python"])
    if sys.version_info[:2] == wanted:
        return ""
    return (
        f"the task was hashed under Python {wanted[0]}.{wanted[1]}, and this job was started with "
        f"{where()}; {REMEDY}"
    )


def library_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Return the versions of libraries as they are here; None for one that is not."""
    return {name: _version(name) for name in names}


def missing_library(
    libraries: Mapping[str, str], here: Mapping[str, str | None], modules: Iterable[str] = ()
) -> str:
    """Name a library that the task's key contains and that is not here.

    Libraries go by the names of their distributions; of ``modules``, which the task will import,
    those that are not here are named as well.
    """
    for name, hashed in libraries.items():
        if here[name] is None:
            absent = [module for module in modules if _is_absent(module)]
            lacks = f" (it lacks {', '.join(absent)})" if absent else ""
            said = f"{name} {hashed} is not installed for {where()}{lacks}; {REMEDY}"
            return _why_missing(name) or said
    return ""


def _is_absent(module: str) -> bool:
    from importlib.util import find_spec

    top = module.partition(".")[0]
    return top not in sys.modules and find_spec(top) is None


def _why_missing(name: str) -> str:
    """Say why a library without a distribution cannot be imported; empty if it is not there."""
    from importlib import import_module

    module = name.replace("-", "_")
    try:
        import_module(module)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == module
        return "" if absent else missing_module(error)
    return ""


def library_changes(
    libraries: Mapping[str, str], here: Mapping[str, str | None], key_versions: Granularity
) -> str:
    """Compare the versions of the libraries that the task's key contains."""
    for name, hashed in libraries.items():
        found = here[name] or ""
        if cut_version(found, key_versions) != cut_version(hashed, key_versions):
            return f"the task was hashed with {name} {hashed}, and this job has {name} {found}"
    return ""


def missing_module(error: ImportError) -> str:
    """Say what could not be imported for a task, and where."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the task needs the module {error.name}, which {where()} does not have; {REMEDY}"
    return f"the task needs a module that {where()} cannot import: {error}; {REMEDY}"


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
        file = InputFile(**record)
        if file.check():
            _ask_anew(file.path)
            changed = file.check()
            if changed:
                return changed
    return ""


def _ask_anew(path: str) -> None:
    """Open a file and its directory: an NFS client then asks its server for what it remembered.

    This node may have looked at the file before it was written for the last time.
    """
    for flags, name in ((os.O_DIRECTORY, os.path.dirname(path)), (0, path)):
        with suppress(OSError):  # that it is absent is for the check to say
            os.close(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags))


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
