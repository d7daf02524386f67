"""Keeping ranks of several nodes apart in memory, where these nodes are one machine.

Open MPI 4 names the memory that ranks of a node share by the machine's name and their number on
that node. Several brokers of Flux, or several slurmd, on one machine are nodes of the same name:
their ranks would take each other's memory for their own, and crash. So each such node gets a folder
for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

__all__ = ["keep_apart", "tidy"]

_VARIABLE: Final = "OMPI_MCA_btl_vader_backing_directory"
_MEMORY: Final = Path("/dev/shm")


def keep_apart(task: Path) -> None:
    """Have this rank share memory with those of its node alone; before MPI is initialised.

    Parameters
    ----------
    task
        The directory through which its leader talks to it.
    """
    folder = os.environ.get("FLUX_JOB_TMPDIR") or _folder(task, os.environ)
    if folder:
        os.environ.setdefault(_VARIABLE, folder)


def _folder(task: Path, environ: Mapping[str, str]) -> str | None:
    node = environ.get("SLURMD_NODENAME", "")
    if not node or _first(node) == _first(os.uname().nodename):
        return None  # a machine of its own, as nodes are
    folder = _MEMORY / f"{_name(task)}-{node}"
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        return str(folder) if folder.lstat().st_uid == os.geteuid() else None
    except OSError:  # there is no such memory here
        return None


def tidy(task: Path) -> None:
    """Remove what ranks of a task have shared on this machine; they have ended."""
    for folder in _MEMORY.glob(f"{_name(task)}-*"):
        if not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def _name(task: Path) -> str:
    return f"dask-batch-{os.geteuid()}-{hashlib.sha256(os.fsencode(task)).hexdigest()[:16]}"


def _first(name: str) -> str:
    return name.partition(".")[0]
