"""A process that must not outlive the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

__all__ = ["tether", "tethered"]

_PR_SET_PDEATHSIG = 1


def tethered(number: int = signal.SIGKILL) -> Callable[[], None] | None:
    """Return what a child does before it becomes another program, so as to end with its parent.

    For ``preexec_fn`` of :class:`subprocess.Popen`; None where the kernel has no such thing. What
    it calls is looked up here, since the child of a process with threads may do very little.
    """
    prctl = _prctl()
    if prctl is None:
        return None
    parent = os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # it ended before this
            os._exit(128 + number)

    return tie


def tether(number: int = signal.SIGKILL) -> None:
    """Let this process end with its parent, from now on, where the kernel can do that."""
    prctl = _prctl()
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def _prctl() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    function: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
    return function
