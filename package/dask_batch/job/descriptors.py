"""Descriptors of a job's own, out of the way of what its function opens and closes."""

from __future__ import annotations

import contextlib
import fcntl
import os

__all__ = ["kept", "spare"]

_FROM = (500, 64, 3)
"""A number that a function closes in a sweep is given out again at once, to whoever opens a file
next: ours are far above those, where the limit on open files allows it."""


def spare(descriptor: int) -> int | None:
    """Return a copy of a descriptor; None if it is closed, or there is no number left for it."""
    for lowest in _FROM:
        with contextlib.suppress(OSError, ValueError):
            return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)
    return None


def kept(descriptor: int) -> int:
    """Return a descriptor of the same file, with a high number in place of this one."""
    copy = spare(descriptor)
    if copy is None:
        return descriptor
    os.close(descriptor)
    return copy
