"""Processes whose parent has ended: a keeper inherits them, and ends them with its workbench.

A program that detaches itself (a session of its own, two forks) is in nobody's process group. On
Linux the keeper is told by the kernel to be the parent of what becomes an orphan below it; so
whatever a task has started is found among its children. Elsewhere what detaches itself goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Final

__all__ = ["adopt_orphans", "end_children", "ended_child"]

_PR_SET_CHILD_SUBREAPER: Final = 36
_PATIENCE_S: Final = 5.0
"""How long a process may take to end that was killed: it may hang in the kernel."""


def adopt_orphans() -> None:
    """Be the parent of whatever below this process becomes an orphan, where the kernel can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def ended_child(awaited: int) -> os.waitid_result | None:
    """Return how a child has ended, which stays to be reaped; None while it runs.

    Other children that have ended, which were inherited, are reaped.
    """
    with contextlib.suppress(ChildProcessError):
        while how := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if how.si_pid == awaited:
                return how
            os.waitpid(how.si_pid, 0)
    return None


def end_children() -> None:
    """Kill all children, and those that are inherited as they end."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        ended_child(0)
        children = list(_children())
        if not children:
            return
        for pid in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _children() -> Iterator[int]:
    """Yield the children of this process, where the kernel tells."""
    own = str(os.getpid()).encode("ascii")
    names = os.listdir("/proc") if sys.platform == "linux" else []
    for name in filter(str.isdecimal, names):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            # The command's name, in parentheses, may itself hold spaces and parentheses.
            if file.read().rpartition(b")")[2].split()[1] == own:
                yield int(name)
