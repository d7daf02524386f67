"""Is a folder on this machine alone? What the kernel calls its file system tells it.

A cache must lie where the jobs see it. That a file system is shared cannot be seen from here; that
it is *not* often can: it lives in memory, or in a container, or it is where every machine has its
own temporary files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Mount", "mount_of", "mounts", "why_not_shared"]

_IN_MEMORY: Final = frozenset({"ramfs", "tmpfs", "devtmpfs", "hugetlbfs"})
_IN_A_CONTAINER: Final = frozenset({"aufs", "fuse-overlayfs", "fuse.fuse-overlayfs", "overlay"})
_ON_A_DISK: Final = frozenset(
    {
        "apfs", "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfs", "jfs", "msdos",
        "ntfs", "ntfs3", "reiserfs", "squashfs", "vfat", "xfs", "zfs",
    }
)  # fmt: skip
"""File systems of disks. They may be what a server exports, seen on the server itself."""
_TEMPORARY: Final = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/local/scratch")
"""Where machines keep files of their own, whatever the file system."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system, where it is mounted."""

    point: str
    kind: str


def mounts(text: str) -> list[Mount]:
    """Read ``/proc/self/mountinfo``; lines of another shape are left out."""
    found = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(" "), after.partition(" ")[0]
        if separator and len(fields) >= 5 and kind:
            found.append(Mount(_unescaped(fields[4]), kind))
    return found


def _unescaped(text: str) -> str:
    """Undo the kernel's octal escapes of blanks and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mount_of(path: str, there: Iterable[Mount]) -> Mount | None:
    """Return the mount that a path is on: the longest, and of several in one place the last."""
    best: Mount | None = None
    for mount in there:
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def why_not_shared(path: Path, *, mountinfo: str | None = None) -> str:
    """Say why other machines cannot see what is in a folder; empty if nothing speaks for that.

    Parameters
    ----------
    path
        The folder; it need not be there.
    mountinfo
        The text of ``/proc/self/mountinfo``; by default what it says now.

    Returns
    -------
    str
        A half sentence: ``"it is in memory (tmpfs on /dev/shm)"``.

    Notes
    -----
    Disks count as shared unless the folder is a temporary one: on many clusters the login node
    itself is the server. Where there is no ``/proc`` only the place of the folder tells.
    """
    real = os.path.realpath(path)
    mount = mount_of(real, mounts(_mountinfo() if mountinfo is None else mountinfo))
    if mount is not None:
        where = f"({mount.kind} on {mount.point})"
        if mount.kind in _IN_MEMORY:
            return f"it is in memory {where}"
        if mount.kind in _IN_A_CONTAINER and mount.point == "/" and _temporary(real) is None:
            return f"it is inside a container {where}"
    folder = _temporary(real)
    # A site may have mounted something shared there.
    if folder is not None and (mount is None or mount.kind in _ON_A_DISK | _IN_A_CONTAINER):
        return f"each machine has a {folder} of its own"
    return ""


def _temporary(path: str) -> str | None:
    return next((t for t in _TEMPORARY if path == t or path.startswith(t + "/")), None)


def _mountinfo() -> str:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
