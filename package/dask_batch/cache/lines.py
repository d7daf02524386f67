"""Files of JSON lines, each with one writer, that survive what a writer's death leaves.

A line is a JSON object, a tab, and the XXH3 (64 bits) of the object's text: a flipped bit in the
id of a job would else be another job.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from dask_batch.cache.files import open_owned, publish_bytes, read_owned, write_all
from dask_batch.cache.refusals import explain
from dask_batch.errors import FullError

__all__ = ["altered_lines", "append_line", "line_of", "read_lines"]

_ABORTED = "aborted"
_SEALED = re.compile(rb"(.*)\t([0-9a-f]{16})")


def append_line(path: Path, record: Mapping[str, Any], *, durable: bool = False) -> None:
    """Append one JSON record as a line. There must be only one writer.

    If an earlier write was torn, the record begins on a line of its own. That something was aborted
    must be said on a full disk, too: if the line does not fit, an empty file says so by its name.

    Raises
    ------
    FullError
        It does not fit.
    CacheError
        It cannot be written.
    """
    try:
        _append(path, line_of(record), durable=durable)
    except FullError:
        if record.get("event") != _ABORTED:
            raise
        publish_bytes(_said_by_name(path), b"", durable=False)


def _said_by_name(path: Path) -> Path:
    return path.with_name(f"{path.name}.{_ABORTED}")


def _append(path: Path, line: bytes, *, durable: bool) -> None:
    fd = _open_for_append(path)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = b"\n" + line
        write_all(fd, line)
        if durable:
            os.fsync(fd)
    except OSError as error:
        explain(error, path, size=len(line))
    finally:
        os.close(fd)


def _open_for_append(path: Path) -> int:
    try:
        return open_owned(path, os.O_RDWR | os.O_APPEND)
    except FileNotFoundError:
        publish_bytes(path, b"", durable=False)
        return open_owned(path, os.O_RDWR | os.O_APPEND)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file of JSON lines; none if there is no file.

    A line that is not a JSON object, or does not match its checksum, was torn, by a writer that
    died or a disk that was full, or damaged, and is passed over. (The first lines of format 1 had
    no checksum.)
    """
    with contextlib.suppress(FileNotFoundError):
        for line in read_owned(path).split(b"\n"):
            record = _record(line)
            if record is not None:
                yield record
    if _said_by_name(path).exists():
        yield {"event": _ABORTED}


def altered_lines(path: Path) -> int:
    """Count the lines of a file that were written whole and do not match their checksum."""
    whole = (_SEALED.fullmatch(line) for line in read_owned(path).split(b"\n"))
    return sum(sealed is not None and _digest(sealed[1]) != sealed[2] for sealed in whole)


def line_of(record: Mapping[str, Any]) -> bytes:
    """Return a record as a line."""
    text = json.dumps(record, default=str).encode("ascii")
    return b"%b\t%b\n" % (text, _digest(text))


def _record(line: bytes) -> dict[str, Any] | None:
    sealed = _SEALED.fullmatch(line)
    if sealed is not None:
        line = sealed[1]
        if _digest(line) != sealed[2]:
            return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _digest(text: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(text).encode("ascii")
