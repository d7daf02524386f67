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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
from h5py import h5d, h5p, h5s, h5t

from dask_batch.cache.files import write_all
from dask_batch.errors import CacheError, DamagedEntryError

__all__ = ["Head", "Part", "read_head", "read_into", "verify_body", "write_container"]

VERSION = 1
SIGNATURE = b"\x89HDF\r\n\x1a\n"
ALIGNMENT = 64  # bytes: a cache line, and enough for every NumPy type and SIMD load

_FIRST_LINE = re.compile(rb"dask-batch (([0-9]{4}) ([0-9]{12})) ([0-9a-f]{16})\n")
_FIRST_LINE_SIZE = 4 + 12 + 16 + len("dask-batch   \n")
_SPARE = 160  # for the numbers that are not known before the structure is made
_SPARE_PER_PART = 48  # the same, for each dataset
_SMALLEST_HEAD = 512  # what HDF5 allows: this, or more by powers of two
_FIRST_READ = 4096
_CHUNK = 1 << 20
_LARGEST_READ = 1 << 30  # Linux reads at most 2 GiB less a page at once
_LONGEST_ATTRIBUTE = 32_000  # an HDF5 attribute has at most 64 KiB


@dataclass(frozen=True, slots=True)
class Part:
    """One dataset, contiguous."""

    name: str
    data: memoryview
    """Its bytes, as they lie in memory and in the file."""
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype("u1"))
    shape: tuple[int, ...] | None = None
    """None: one axis, as long as the data."""
    attributes: Mapping[str, Any] = field(default_factory=dict)


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
    parts = (*parts, *_attribute_parts(attributes))
    userblock = _head_size(content, parts)
    structure = _Structure()
    offsets, size = _build(structure, userblock, parts, attributes)
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
    structure: _Structure, start: int, parts: Sequence[Part], offsets: Sequence[int], size: int
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


def _build(
    structure: _Structure, userblock: int, parts: Sequence[Part], attributes: Mapping[str, Any]
) -> tuple[list[int], int]:
    """Let HDF5 make the structure; return where the datasets lie, and the size of the file."""
    contiguous = h5p.create(h5p.DATASET_CREATE)
    contiguous.set_layout(h5d.CONTIGUOUS)
    # The place is reserved at once, and HDF5 does not fill it.
    contiguous.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    contiguous.set_fill_time(h5d.FILL_TIME_NEVER)
    linked = h5p.create(h5p.LINK_CREATE)
    linked.set_create_intermediate_group(True)
    offsets = []
    with h5py.File(
        structure,
        "w",
        userblock_size=userblock,
        alignment_threshold=ALIGNMENT,
        alignment_interval=ALIGNMENT,
        libver="earliest",  # the form that every HDF5 library reads
    ) as file:
        for part in parts:
            dataset = _dataset(file, part, contiguous, linked)
            # Of an empty dataset HDF5 says an address that means nothing.
            offsets.append(dataset.id.get_offset() if part.data.nbytes else 0)
            _set_attributes(dataset, part.attributes)
        _set_attributes(file, {k: v for k, v in attributes.items() if not _is_long(v)})
    return offsets, structure.size


def _dataset(file: Any, part: Part, contiguous: Any, linked: Any) -> Any:
    shape = (part.data.nbytes,) if part.shape is None else part.shape
    dtype = part.dtype
    if dtype.subdtype is not None:
        dtype, inner = dtype.subdtype
        shape = (*shape, *inner)
    space = h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR)
    kind = h5t.py_create(dtype, logical=True)
    name = part.name.encode("ascii")
    return h5py.Dataset(h5d.create(file.id, name, kind, space, contiguous, lcpl=linked))


class _Structure:
    """A file in memory for HDF5 to write into, sparse: what is never written takes no room."""

    _PAGE = 4096

    def __init__(self) -> None:
        self.size = 0
        self._position = 0
        self._pages: dict[int, bytearray] = {}

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._position += view.nbytes
        self.size = max(self.size, self._position)
        position = self._position - view.nbytes
        while view:
            page, start = divmod(position, self._PAGE)
            piece = view[: self._PAGE - start]
            held = self._pages.setdefault(page, bytearray(self._PAGE))
            held[start : start + len(piece)] = piece
            position += len(piece)
            view = view[len(piece) :]
        return memoryview(data).nbytes

    def peek(self, offset: int, size: int) -> bytearray:
        """Return what was written at a place, zeros where nothing was."""
        data = bytearray(size)
        done = 0
        while done < size:
            page, start = divmod(offset + done, self._PAGE)
            length = min(self._PAGE - start, size - done)
            if page in self._pages:
                data[done : done + length] = self._pages[page][start : start + length]
            done += length
        return data

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view[:] = self.peek(self._position, len(view))
        self._position += len(view)
        return len(view)

    def read(self, size: int) -> bytes:
        data = self.peek(self._position, size)
        self._position += size
        return bytes(data)

    def truncate(self, size: int) -> int:
        self.size = size
        return size

    def flush(self) -> None:
        """Nothing is buffered."""


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
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(_CHUNK, head.size - head.userblock)))
    position = head.userblock
    while position < head.size:
        count = os.preadv(fd, [buffer[: head.size - position]], position)
        if not count:
            break
        digest.update(buffer[:count])
        position += count
    if digest.hexdigest() != head.digest:
        raise DamagedEntryError("its content does not match its checksum")


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


# ---- attributes ------------------------------------------------------------------------------


def _set_attributes(target: Any, attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        shown, name = _shown(name, value)
        target.attrs[name] = shown


def _shown(name: str, value: Any) -> tuple[Any, str]:
    """Return a value as HDF5 can show it, and the attribute's name: else as JSON, and so named."""
    if isinstance(value, str) and "\0" not in value and value.isprintable():
        return value, name
    if type(value) is float or (type(value) is int and -(2**63) <= value < 2**63):
        return value, name
    return json.dumps(value), f"{name}_json"


def _is_long(value: Any) -> bool:
    return isinstance(value, (str, list, tuple, dict)) and len(json.dumps(value)) > (
        _LONGEST_ATTRIBUTE
    )


def _attribute_parts(attributes: Mapping[str, Any]) -> Iterator[Part]:
    """Yield datasets for the values that are too long for attributes."""
    for name, value in attributes.items():
        if _is_long(value):
            yield Part(f"attributes/{name}_json", memoryview(json.dumps(value).encode("ascii")))
