"""Is this process fit for a task: are interpreter, libraries and files those that were hashed?"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from dask_batch.job import checks
from dask_batch.job.endings import EndedError
from dask_batch.job.exit_codes import BAD_PYTHON, NO_DIRECTORY, NO_MODULE
from dask_batch.job.surroundings import enter, extend_path

__all__ = ["check_files", "check_libraries", "enter_surroundings"]


def check_libraries(
    common: Mapping[str, Any], header: Mapping[str, Any], surroundings: Mapping[str, Any]
) -> dict[str, str | None]:
    """Compare interpreter and libraries with those that were hashed, and return their versions.

    Raises
    ------
    EndedError
        They differ.
    """
    other = checks.interpreter_changes(common)
    if other:
        raise EndedError("environment", other, exit_code=BAD_PYTHON)
    extend_path(surroundings)
    libraries = header["libraries"]
    versions = checks.library_versions(libraries)
    missing = checks.missing_library(libraries, versions, header.get("preload", ()))
    if missing:
        raise EndedError("environment", missing, exit_code=NO_MODULE)
    changed = checks.library_changes(libraries, versions, common["key_versions"])
    if changed:
        raise EndedError("changed", changed)
    return versions


def check_files(header: Mapping[str, Any]) -> None:
    """Compare the input files with those that were hashed.

    Raises
    ------
    EndedError
        One differs.
    """
    changed = checks.file_changes(header["files"])
    if changed:
        raise EndedError("changed", changed)


def enter_surroundings(surroundings: Mapping[str, Any], *, cpus: int) -> None:
    """Take over the client's surroundings.

    Raises
    ------
    EndedError
        The working directory is not to be had here.
    """
    try:
        enter(surroundings, cpus=cpus)
    except OSError as error:
        raise EndedError(
            "environment",
            f"the working directory {surroundings['working_directory']} cannot be entered "
            f"on {socket.gethostname()}: {error.strerror}; resource_dict={{'cwd': ...}} names "
            "another one, on a file system that the nodes share",
            exit_code=NO_DIRECTORY,
        ) from error
