"""Which MPI library the ranks will use, found out by a process that does not stay."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dask_batch.job import checks
from dask_batch.job.endings import EndedError
from dask_batch.job.exit_codes import NO_MODULE

__all__ = ["Library", "find_library"]

_PATIENCE_S = 120.0
_LEVELS = 3
"""Debian's is in ``/usr/lib/x86_64-linux-gnu`` or below, its programs in ``/usr/bin``."""

_PROBE: Final = """
import json
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
paths = []
try:
    with open("/proc/self/maps") as maps:
        paths = sorted({line.split(None, 5)[5].strip() for line in maps if "libmpi" in line})
except OSError:
    pass
said = {"version": MPI.Get_library_version().strip("\\0"), "paths": paths}
print("\\n" + json.dumps(said))
"""


@dataclass(frozen=True, slots=True)
class Library:
    """An MPI library.

    Attributes
    ----------
    version
        What it calls itself: its name first.
    paths
        Its files, where the kernel tells them.
    """

    version: str
    paths: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is called, in the first words of its own description."""
        return self.version.splitlines()[0].partition(",")[0].strip()[:80]

    @property
    def is_open_mpi(self) -> bool:
        """Whether it is Open MPI, or made of it."""
        return self.version.startswith("Open MPI")

    def folders(self) -> Iterator[Path]:
        """Yield the folders where programs of its own may lie, the nearest first.

        A library is in ``lib`` of where its programs are in ``bin``, or some folders below that.
        """
        for path in self.paths:
            for prefix in list(Path(path).parents)[1 : 1 + _LEVELS]:
                if prefix != prefix.parent:
                    yield prefix / "bin"


def find_library() -> Library:
    """Return the library that this interpreter's mpi4py takes.

    Raises
    ------
    EndedError
        There is no mpi4py here, or it finds no library.
    """
    argv = [sys.executable, "-P", "-c", _PROBE]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_PATIENCE_S, stdin=subprocess.DEVNULL,
            env=dict(os.environ), check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise _missing(f"did not load within {_PATIENCE_S:g} s") from None
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise _missing(f"cannot be used: {words[-1] if words else 'it says nothing'}")
    said = json.loads(done.stdout.splitlines()[-1])  # what modules print when imported is before
    return Library(said["version"], tuple(said["paths"]))


def _missing(why: str) -> EndedError:
    return EndedError(
        "environment",
        f"a task of several MPI ranks needs mpi4py and an MPI library, and mpi4py {why} "
        f"({checks.where()}). `pip install mpi4py` with the site's MPI module loaded; "
        f"{checks.REMEDY}",
        exit_code=NO_MODULE,
    )


def others_may_write(program: Path) -> bool:
    """Whether somebody else than its user and the system may have put a program where it is."""
    for path in (program.resolve(), program.parent, program.parent.parent):
        try:
            status = path.stat()
        except OSError:
            return True
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & stat.S_IWOTH:
            return True
    return False
