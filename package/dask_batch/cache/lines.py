"""Files of JSON lines, each with one writer, that survive what a writer's death leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dask_batch.cache.files import explain, open_owned, publish_bytes, read_owned, write_all

__all__ = ["append_line", "read_lines"]


def append_line(path: Path, record: Mapping[str, Any], *, durable: bool = False) -> None:
    """Append one JSON record as a line. There must be only one writer.

    If an earlier write was torn, the record begins on a line of its own.
    """
    line = json.dumps(record, default=str).encode("ascii") + b"\n"
    fd = _open_for_append(path)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = b"\n" + line
        write_all(fd, line)
        if durable:
            os.fsync(fd)
    except OSError as error:
        explain(error, path)
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

    A line that is not a JSON object was torn, by a writer that died or a disk that was full, and
    is passed over.
    """
    try:
        content = read_owned(path)
    except FileNotFoundError:
        return
    for line in content.split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record
