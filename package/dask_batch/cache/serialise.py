"""Values as datasets: arrays typed, everything else pickled with its buffers out of band."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_batch.cache import dtypes
from dask_batch.cache.hdf5 import Part
from dask_batch.code import pickling
from dask_batch.errors import SerializationError
from dask_batch.inputs import InputFile, files_pickled

__all__ = ["Serialised", "deserialise", "flat", "serialise", "try_out"]

_TRIED_BYTES = 16 << 20
_MOST_AXES = 32  # of HDF5, and text takes one more; NumPy has 64


@dataclass(frozen=True, slots=True)
class Serialised:
    """A value taken apart."""

    form: Mapping[str, Any]
    """How to put it together again: JSON, kept in the head."""
    parts: tuple[Part, ...]
    files: frozenset[InputFile] = frozenset()
    """What each :class:`~dask_batch.File` in it is now."""
    own: bool = False
    """Whether putting it together again calls code of the user's."""


def serialise(value: Any) -> Serialised:
    """Take a value apart without copying its arrays.

    Raises
    ------
    SerializationError
        It cannot be pickled; the exception that says why is its ``__cause__``.

    Notes
    -----
    Of an array's memory layout it is kept whether it is C or Fortran contiguous; one that is
    neither is copied and comes back C contiguous. A ``numpy.memmap`` is stored as the array that
    it shows, and comes back as an array.
    """
    if type(value) in (np.ndarray, np.memmap):
        described = dtypes.describe(value.dtype) if value.ndim < _MOST_AXES else None
        if described is not None:
            return _array(value, described, "array")
    elif isinstance(value, np.generic) and type(value) is value.dtype.type:
        described = dtypes.describe(value.dtype)
        # Of a text scalar NumPy would drop trailing zeros; pickled as its bare type it keeps them.
        if described is not None and not isinstance(value, np.character):
            return _array(np.asarray(value), described, "scalar")
    return _pickled(value)


def _array(array: np.ndarray[Any, Any], described: Any, form: str) -> Serialised:
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    shown = np.ascontiguousarray(array.T if fortran else array).view(np.ndarray)
    order = "F" if fortran else "C"
    part = Part(
        "value",
        shown.reshape(-1).view(np.uint8).data,
        dtypes.storage(array.dtype),
        # ascontiguousarray makes one axis of none.
        shown.shape if array.ndim else (),
        {"dtype": described, "order": order},
    )
    return Serialised(
        {"form": form, "dtype": described, "shape": list(array.shape), "order": order}, (part,)
    )


def _pickled(value: Any) -> Serialised:
    try:
        with files_pickled() as files:
            pickled = pickling.dumps(value)
    except SerializationError:
        raise
    except Exception as cause:
        raise SerializationError(
            f"a value of type {type(value).__module__}.{type(value).__qualname__} cannot be "
            f"pickled: {cause}"
        ) from cause
    parts = [Part("pickle", memoryview(pickled.data), attributes={"protocol": 5})]
    parts += [Part(f"buffers/{i}", flat(b)) for i, b in enumerate(pickled.buffers)]
    recorded = frozenset(file.record() for file in files)
    return Serialised({"form": "pickle"}, tuple(parts), recorded, pickled.own)


def try_out(serialised: Serialised) -> None:
    """See that what the user's classes do to come back works, before others depend on it.

    Raises
    ------
    SerializationError
        It does not; what was raised is its ``__cause__``.

    Notes
    -----
    What is larger than 16 MiB, and what only libraries' classes make, is not tried. Buffers are
    copies: a ``__setstate__`` may work on what it is given.
    """
    sizes = (part.data.nbytes for part in serialised.parts)
    if not serialised.own or sum(sizes) > _TRIED_BYTES:
        return
    try:
        deserialise(
            serialised.form, [memoryview(bytearray(part.data)) for part in serialised.parts]
        )
    except MemoryError:
        return  # where it is asked for there may be more
    except BaseException as refusal:  # of the class's own making
        raise SerializationError(
            f"it cannot be unpickled: {type(refusal).__name__}: {refusal}"
        ) from refusal


def flat(buffer: Any) -> memoryview:
    """Return a contiguous buffer as bytes, without a copy."""
    if isinstance(buffer, pickle.PickleBuffer):
        return buffer.raw()
    view = memoryview(buffer)
    return view.cast("B") if view.nbytes else memoryview(b"")


def deserialise(form: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """Put a value together again; its arrays share memory with the buffers.

    Parameters
    ----------
    form
        What :func:`serialise` returned as such.
    buffers
        The content of the parts, in order.
    """
    if form["form"] == "pickle":
        return pickling.loads(bytes(buffers[0]), tuple(buffers[1:]))
    dtype = dtypes.restore(form["dtype"])
    shape = tuple(form["shape"])
    if not buffers[0].nbytes:
        return np.empty(shape, dtype, order=form["order"])
    array = np.frombuffer(buffers[0], dtype=dtype).reshape(shape, order=form["order"])
    return array[()] if form["form"] == "scalar" else array
