"""The HDF5 structure of a file, made in memory, with room for the datasets' bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5p, h5s, h5t

__all__ = ["Part", "Structure", "attribute_parts", "build"]

ALIGNMENT = 64  # bytes: a cache line, and enough for every NumPy type and SIMD load
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


def build(
    structure: Structure, userblock: int, parts: Sequence[Part], attributes: Mapping[str, Any]
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


class Structure:
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


# ---- attributes ------------------------------------------------------------------------------


def _set_attributes(target: Any, attributes: Mapping[str, Any]) -> None:
    """Set attributes, by h5py's low-level interface: the other takes three times as long."""
    scalar = h5s.create(h5s.SCALAR)
    for name, value in attributes.items():
        shown, name = _shown(name, value)
        dtype = h5py.string_dtype() if isinstance(shown, str) else None
        data = np.array(shown, dtype)
        kind = h5t.py_create(data.dtype, logical=True)
        h5a.create(target.id, name.encode("ascii"), kind, scalar).write(data)


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


def attribute_parts(attributes: Mapping[str, Any]) -> Iterator[Part]:
    """Yield datasets for the values that are too long for attributes."""
    for name, value in attributes.items():
        if _is_long(value):
            yield Part(f"attributes/{name}_json", memoryview(json.dumps(value).encode("ascii")))
