"""How a file of the cache is laid out: a head for us, behind it plain HDF5 for everyone.

HDF5 lets a file begin with a block that it leaves alone. There we keep the *head*: what the file
is, where its datasets lie, and the checksum of every byte behind it. We read by the head alone:
the bytes are verified before anything is made of them, a dataset is a stretch of the file that
can be mapped into memory, and libhdf5, which may crash on a damaged file, is not involved.

We write by letting HDF5 make the structure in memory, with the datasets' places reserved but
empty, and putting our bytes into these places as the file goes to the disk, in one pass. So HDF5
never opens a file of the cache, no lock is ever taken, and a full disk is an ordinary
:class:`OSError`. ``docs/cache-format.md`` is the specification.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from dask_batch.cache.files import write_all
from dask_batch.cache.hdf5 import Part, Structure, attribute_parts, build
from dask_batch.errors import CacheError, DamagedEntryError

__all__ = [
    "Head",
    "Part",
    "read_head",
    "read_into",
    "read_verified",
    "verify_body",
    "write_container",
]

VERSION = 1
SIGNATURE = b"\x89HDF\r\n\x1a\n"

_FIRST_LINE = re.compile(rb"dask-batch (([0-9]{4}) ([0-9]{12})) ([0-9a-f]{16})\n")
_FIRST_LINE_SIZE = 4 + 12 + 16 + len("dask-batch   \n")
_SPARE = 160  # for the numbers that are not known before the structure is made
_SPARE_PER_PART = 48  # the same, for each dataset
_SMALLEST_HEAD = 512  # what HDF5 allows: this, or more by powers of two
_FIRST_READ = 4096
_CHUNK = 1 << 20
_LARGEST_READ = 1 << 30  # Linux reads at most 2 GiB less a page at once


@dataclass(frozen=True, slots=True)
class Head:
    """What the head of a file says."""

    content: Mapping[str, Any]
    parts: tuple[tuple[str, int, int], ...]
    """Of each dataset its name, its offset in the file and its size, in bytes."""
    userblock: int
    """Where HDF5 begins."""
    size: int
    """Of the whole file, in bytes."""
    digest: str
    """XXH3 (128 bits) of all bytes behind the head."""


# ---- writing ---------------------------------------------------------------------------------


def write_container(
    path: Path,
    content: Mapping[str, Any],
    parts: Sequence[Part],
    attributes: Mapping[str, Any],
) -> None:
    """Write a file of the cache into an existing, empty, private file.

    Parameters
    ----------
    path
        The private file.
    content
        What the head is to say beside the layout: JSON.
    parts
        The datasets.
    attributes
        For those who read the file with HDF5: attributes of its root.
    """
    parts = (*parts, *attribute_parts(attributes))
    userblock = _head_size(content, parts)
    structure = Structure()
    offsets, size = build(structure, userblock, parts, attributes)
    chunks = list(_body(structure, userblock, parts, offsets, size))
    digest = xxhash.xxh3_128()
    for chunk in chunks:
        digest.update(chunk)
    layout = {
        "userblock": userblock,
        "size": size,
        "xxh3_128": digest.hexdigest(),
        "parts": [
            [p.name, offset, p.data.nbytes] for p, offset in zip(parts, offsets, strict=True)
        ],
    }
    head = _head_bytes({**content, **layout}, userblock)
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for joined in _joined([memoryview(head), *chunks]):
            write_all(fd, joined)
    finally:
        os.close(fd)


def _head_size(content: Mapping[str, Any], parts: Sequence[Part]) -> int:
    text = len(json.dumps(content)) + sum(len(json.dumps(part.name)) for part in parts)
    needed = _FIRST_LINE_SIZE + text + _SPARE + _SPARE_PER_PART * len(parts)
    return max(_SMALLEST_HEAD, 1 << (needed - 1).bit_length())


def _head_bytes(content: Mapping[str, Any], size: int) -> bytes:
    text = json.dumps(content).encode("ascii")
    frame = b"%04d %012d" % (VERSION, len(text))
    head = b"dask-batch %b %b\n%b" % (frame, _head_digest(frame, text), text)
    head = head.ljust(size, b"\0")
    assert len(head) == size, "the head's size was reckoned too small"
    return head


def _head_digest(frame: bytes, text: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(frame + text).encode("ascii")


def _body(
    structure: Structure, start: int, parts: Sequence[Part], offsets: Sequence[int], size: int
) -> Iterator[memoryview]:
    """Yield all that is behind the head, in order: HDF5's bytes, and ours in their places."""
    position = start
    for offset, part in sorted(zip(offsets, parts, strict=True), key=lambda pair: pair[0]):
        if not part.data.nbytes:
            continue
        yield memoryview(structure.peek(position, offset - position))
        yield part.data
        position = offset + part.data.nbytes
    yield memoryview(structure.peek(position, size - position))


def _joined(chunks: Sequence[memoryview]) -> Iterator[memoryview]:
    """Yield the chunks, small neighbours put together: a write costs more than a copy."""
    small: list[memoryview] = []
    for chunk in chunks:
        if chunk.nbytes >= _CHUNK:
            yield memoryview(b"".join(small))
            small = []
            yield chunk
        else:
            small.append(chunk)
    yield memoryview(b"".join(small))


# ---- reading ---------------------------------------------------------------------------------


def read_head(fd: int) -> Head:
    """Read and verify the head of a file of the cache, and the file's size.

    Raises
    ------
    DamagedEntryError
        The head is not what was written, or the file is truncated.
    """
    data = os.pread(fd, _FIRST_READ, 0)
    first = _FIRST_LINE.match(data)
    if first is None:
        raise DamagedEntryError("it does not begin as a file of the cache does")
    version, length = int(first[2]), int(first[3])
    if first.end() + length > len(data):
        if first.end() + length > os.fstat(fd).st_size:
            raise DamagedEntryError("it ends within its head")
        data += _pread(fd, first.end() + length - len(data), len(data))
    text = data[first.end() : first.end() + length]
    if _head_digest(first[1], text) != first[4]:
        raise DamagedEntryError("the text of its head does not match its checksum")
    if version != VERSION:
        raise CacheError(f"format {version} is not known: this version reads format {VERSION}")
    content = json.loads(text)
    head = Head(
        content,
        tuple((name, offset, size) for name, offset, size in content["parts"]),
        content["userblock"],
        content["size"],
        content["xxh3_128"],
    )
    _check_frame(fd, head, first.end() + length)
    return head


def _check_frame(fd: int, head: Head, end_of_text: int) -> None:
    actual = os.fstat(fd).st_size
    if actual != head.size:
        raise DamagedEntryError(f"it has {actual} bytes where {head.size} were written")
    rest = _pread(fd, head.userblock - end_of_text + len(SIGNATURE), end_of_text)
    if rest.lstrip(b"\0") != SIGNATURE:
        raise DamagedEntryError("no HDF5 file follows its head")


def verify_body(fd: int, head: Head) -> None:
    """Compare all bytes behind the head with their checksum.

    Raises
    ------
    DamagedEntryError
        They are not what was written.
    """
    read_verified(fd, head, ())


def read_verified(fd: int, head: Head, places: Sequence[tuple[int, int]]) -> list[memoryview]:
    """Read stretches of a file into memory, and verify all that is behind its head meanwhile.

    What is returned are the very bytes that were verified: a disk that gives other ones when it is
    asked a second time makes no difference.

    Parameters
    ----------
    places
        Offset and size of each stretch, in bytes; they do not overlap.

    Raises
    ------
    DamagedEntryError
        The bytes are not what was written.
    """
    digest = xxhash.xxh3_128()
    buffers = [np.empty(size, np.uint8).data for _, size in places]  # aligned, and not filled first
    position = head.userblock
    for (offset, size), buffer in sorted(
        zip(places, buffers, strict=True), key=lambda pair: pair[0]
    ):
        if size:
            _digest_gap(fd, digest, position, offset)
            _digest_into(fd, digest, buffer, offset)
            position = offset + size
    _digest_gap(fd, digest, position, head.size)
    if digest.hexdigest() != head.digest:
        raise DamagedEntryError("its content does not match its checksum")
    return buffers


def _digest_gap(fd: int, digest: xxhash.xxh3_128, start: int, end: int) -> None:
    """Digest a stretch that nobody wants to keep."""
    buffer = memoryview(bytearray(min(_CHUNK, end - start)))
    for offset in range(start, end, _CHUNK):
        _digest_into(fd, digest, buffer[: end - offset], offset)


def _digest_into(fd: int, digest: xxhash.xxh3_128, buffer: memoryview, offset: int) -> None:
    """Fill a buffer, and digest it piece by piece while it is in the processor's cache."""
    for start in range(0, buffer.nbytes, _CHUNK):
        piece = buffer[start : start + _CHUNK]
        if read_into(fd, piece, offset + start) != piece.nbytes:
            raise DamagedEntryError("it became shorter while it was read")
        digest.update(piece)


def _pread(fd: int, size: int, offset: int) -> bytes:
    """Read exactly so many bytes, if there are as many."""
    buffer = bytearray(size)
    return bytes(buffer[: read_into(fd, memoryview(buffer), offset)])


def read_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill a buffer from a place in a file; return how many bytes there were."""
    done = 0
    while done < buffer.nbytes:
        count = os.preadv(fd, [buffer[done : done + _LARGEST_READ]], offset + done)
        if not count:
            break
        done += count
    return done
