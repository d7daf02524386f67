"""Renaming without replacing, for file systems that have no hard links.

``rename`` replaces what has the new name; to look first whether there is something is no help, and
to reserve the name with an empty file would let readers find that. Linux has ``renameat2``, which
fails if the name is taken, in one step. Python does not offer it, glibc does since 2.28.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["rename_no_replace"]

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def rename_no_replace(source: Path, target: Path) -> None:
    """Rename a file in one step, unless the new name is taken.

    Raises
    ------
    FileExistsError
        It is.
    OSError
        The file system or the system cannot do it (``EINVAL``, ``ENOSYS``), or anything else.
    """
    renameat2 = _renameat2()
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), os.fspath(source))
    names = os.fsencode(source), os.fsencode(target)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(source), None, os.fspath(target))


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return None
    function.argtypes = [
        ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint,
    ]  # fmt: skip
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]
