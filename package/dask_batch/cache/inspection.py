"""Reading all of a cache: what is whole, damaged, unsafe, or none of ours.

Every result and every file of definitions is read to its last byte, every record is compared with
its checksum. What vanishes meanwhile was removed or set aside by somebody else, and is passed over.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from dask_batch.cache.entries import listed, verified
from dask_batch.cache.files import PRIVATE_PREFIX
from dask_batch.cache.layout import read_head, verify_body
from dask_batch.cache.lines import altered_lines
from dask_batch.cache.meeting import POOL, Meeting
from dask_batch.cache.opening import open_owned, read_owned
from dask_batch.cache.records import unseal
from dask_batch.cache.sections import MARKER, SECTIONS
from dask_batch.errors import CacheError, DamagedEntryError

__all__ = ["Finding", "Problem", "inspect"]

Problem: TypeAlias = Literal["damaged", "unsafe", "unreadable", "stray"]
"""Altered or truncated; owned or writable by others; not to be read now; no file of a cache."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One file of a cache, and what is wrong with it.

    Attributes
    ----------
    section : str
        The directory in the cache that it is in; empty for the cache directory itself.
    path : Path
        The file.
    size : int
        In bytes.
    problem : {None, "damaged", "unsafe", "unreadable", "stray", "temporary"}
        None if it is whole.
    reason : str
        What is wrong, in words.
    """

    section: str
    path: Path
    size: int
    problem: Problem | Literal["temporary"] | None = None
    reason: str = ""


def inspect(cache: Path) -> Iterator[Finding]:
    """Yield every file of a cache, with what is wrong with it."""
    for name in sorted(listed(cache)):
        path = cache / name
        if name in SECTIONS:
            yield from _unsafe_directory(name, path)
            yield from _section(name, path)
        elif name.startswith(f"{PRIVATE_PREFIX}~"):
            yield from _finding("", path, "temporary")
        elif name not in (MARKER, ".gitignore"):
            yield from _finding("", path, "stray", "a cache has no file or directory of that name")


def _section(section: str, directory: Path) -> Iterator[Finding]:
    """Yield the files of a section, however deep."""
    for name in sorted(listed(directory)):
        path = directory / name
        if name.startswith(f"{PRIVATE_PREFIX}~"):
            yield from _finding(section, path, "temporary")
        elif not path.is_symlink() and path.is_dir():
            if _check_of(section, name) is not None:
                yield Finding(section, path, 0, "stray", "it is a directory: remove it")
            yield from _unsafe_directory(section, path)
            yield from _section(section, path)
        elif not name.startswith(".nfs"):  # what an NFS client keeps of a file that is still open
            yield from _file(section, path)


def _check_of(section: str, name: str) -> Callable[[Path], object] | None:
    """Return what checks a file of that name, if a section has such files."""
    kinds = _KINDS.get(section, ())
    return next((check for pattern, check in kinds if re.fullmatch(pattern, name)), None)


def _file(section: str, path: Path) -> Iterator[Finding]:
    if section in _CONTENT_OF_OTHERS:
        yield from _finding(section, path)
        return
    check = _check_of(section, path.name)
    if check is None:
        yield from _finding(section, path, "stray", f"{section}/ has no file of that name")
        return
    try:
        check(path)
    except FileNotFoundError:
        return
    except DamagedEntryError as error:
        yield from _finding(section, path, "damaged", str(error))
    except CacheError as error:
        problem: Problem = "unsafe" if error.errno in (None, errno.ELOOP) else "unreadable"
        yield from _finding(section, path, problem, str(error))
    except OSError as error:
        yield from _finding(section, path, "unreadable", error.strerror or str(error))
    else:
        yield from _finding(section, path)


def _finding(
    section: str,
    path: Path,
    problem: Problem | Literal["temporary"] | None = None,
    reason: str = "",
) -> Iterator[Finding]:
    try:
        yield Finding(section, path, path.lstat().st_size, problem, reason)
    except FileNotFoundError:
        return


def _unsafe_directory(section: str, path: Path) -> Iterator[Finding]:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        yield Finding(section, path, status.st_size, "stray", "it is no directory")
    elif status.st_uid != os.geteuid():
        yield Finding(section, path, 0, "unsafe", f"it belongs to user {status.st_uid}")
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        yield Finding(section, path, 0, "unsafe", f"others may write it (mode {mode:04o})")


# ---- kinds of files --------------------------------------------------------------------------


def _check_result(path: Path) -> None:
    _in_its_shard(path, path.stem)
    fd = open_owned(path)
    try:
        verified(fd, path.stem)
    finally:
        os.close(fd)


def _check_definitions(path: Path) -> None:
    fd = open_owned(path)
    try:
        head = read_head(fd)
        verify_body(fd, head)
    finally:
        os.close(fd)
    _is_called(head.content.get("run"), path.stem)


def _check_run(path: Path) -> None:
    _is_called(unseal(read_owned(path)).get("id"), path.stem)


def _check_record(path: Path) -> None:
    unseal(read_owned(path))


def _check_of_key(path: Path) -> None:
    _in_its_shard(path, path.name)
    _check_record(path)


def _check_start(path: Path) -> None:
    _in_its_shard(path, path.name)
    data = read_owned(path)
    if data.strip(b"\0"):  # else a crash of the machine has emptied it, and it counts as none
        unseal(data)


def _check_name(path: Path) -> None:
    _in_its_shard(path, path.stem)
    name = str(unseal(read_owned(path)).get("name"))
    _is_called(hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest(), path.stem)


def _check_log(path: Path) -> None:
    altered = altered_lines(path)  # torn ones are what a killed writer leaves
    if altered:
        raise DamagedEntryError(
            f"{altered} line(s) of it do not match their checksums; what they said is found out "
            "again from the batch system"
        )


def _check_mark(path: Path) -> None:
    os.close(open_owned(path))


def _in_its_shard(path: Path, name: str) -> None:
    if path.parent.name != name[:2]:
        raise DamagedEntryError(f"it lies in {path.parent.name}/, where nobody looks for it")


def _is_called(inside: object, outside: str) -> None:
    if inside != outside:
        raise DamagedEntryError(f"it says that it is {inside!r}")


_KEY: Final = r"[0-9a-f]{64}"
_KINDS: Final[Mapping[str, tuple[tuple[str, Callable[[Path], object]], ...]]] = {
    "results": ((rf"{_KEY}\.h5", _check_result),),
    "definitions": ((r"[^.].*\.h5", _check_definitions),),
    "runs": (
        (r"[^.].*\.(wanted|disowned)\.[^.]+", _check_record),
        (r"[^.].*\.heir\.[0-9]+", _check_record),
        (r"[^.].*\.log(\.[0-9]+)?", _check_log),
        (r"[^.].*\.json", _check_run),
        (r"[^.].*\.(settled|log(\.[0-9]+)?\.aborted)", _check_mark),
    ),
    "claims": ((rf"{_KEY}\.[0-9]+", _check_of_key),),
    "attempts": (
        (rf"{_KEY}\.[0-9]+\.start(\.[0-9]+)?", _check_start),
        (rf"{_KEY}\.[0-9]+\.(end|cut)", _check_of_key),
    ),
    "names": ((rf"{_KEY}\.json", _check_name),),
    "workers": (
        (rf"{POOL}\.json", Meeting.read),
        (rf"{POOL}\.h5", _check_definitions),
        (r"order\.json|(begun|failed|done)-.*\.json", _check_record),
    ),
}
_CONTENT_OF_OTHERS: Final = frozenset(SECTIONS) - _KINDS.keys()
"""What jobs print and keep, and what has been moved out of the way: it is counted, not read."""
