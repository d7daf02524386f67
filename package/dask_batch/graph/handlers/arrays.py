"""NumPy: arrays by dtype, shape and values in C order, however they lie in memory."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Any

from dask_batch.graph.handlers.builtin import position_label
from dask_batch.graph.handlers.names import is_offered
from dask_batch.graph.shape import Shape, attribute_labels, unstable

if TYPE_CHECKING:
    from dask_batch.graph.handlers.choice import Handler, Shaper

__all__ = ["choose"]

_EXTENDED_BYTES = 10  # of an 80-bit float; what follows up to 12 or 16 is whatever was there


def choose(cls: type) -> Handler | None:
    """Return the handler of a NumPy type."""
    import numpy as np

    if issubclass(cls, np.ma.MaskedArray):
        return _masked
    if issubclass(cls, np.ndarray):
        return _array
    if issubclass(cls, np.generic):
        return _scalar
    if issubclass(cls, np.dtype):
        return _dtype
    if cls is np.ufunc:
        return _ufunc
    if cls is np.vectorize:
        return _vectorize
    if cls is np.random.RandomState:
        return _random_state
    return None


def _array(obj: Any, _: Shaper) -> Shape:
    import numpy as np

    cls = np.ndarray if type(obj) is np.memmap else type(obj)
    plain = np.asarray(obj)
    attributes = None if cls is np.ndarray else getattr(obj, "__dict__", None)
    fixed = (cls, plain.dtype, attributes or None)
    shape = repr(plain.shape)
    dtype = plain.dtype
    if dtype.names is not None:
        # Field by field: what lies between the fields is whatever was there.
        fields = [plain[name] for name in dtype.names]
        return Shape("structured array", (shape,), (*fixed, *fields))
    if dtype.hasobject:
        members = plain.ravel().tolist()
        return Shape("object array", (shape,), (*fixed, *members), _member_label)
    return Shape("array", (shape, _bytes_of(plain)), fixed)


def _member_label(position: int) -> str:
    return position_label(position - 3)


def _bytes_of(plain: Any) -> memoryview | bytes:
    """Return the values of an array in C order; the memory itself where they lie so."""
    import numpy as np

    if plain.size == 0 or plain.dtype.itemsize == 0:
        return b""
    flat = np.ascontiguousarray(plain).reshape(-1).view(np.uint8)
    if plain.dtype.kind in "fc" and _is_padded(plain.dtype):
        half = plain.dtype.itemsize // (2 if plain.dtype.kind == "c" else 1)
        flat = np.ascontiguousarray(flat.reshape(-1, half)[:, :_EXTENDED_BYTES]).reshape(-1)
    return flat.data


def _is_padded(dtype: Any) -> bool:
    """Whether a dtype is x86's 80-bit float, stored in more bytes than it has."""
    import numpy as np

    extended = dtype.char in "gG" and np.finfo(np.longdouble).nmant == 63
    return bool(extended and dtype.isnative)


def _masked(obj: Any, _: Shaper) -> Shape:
    import numpy as np

    names = ("data", "mask", "fill_value", "hardmask")
    children = (type(obj), np.asarray(obj.data), obj.mask, obj.fill_value, obj.hardmask)
    return Shape("masked array", (), children, attribute_labels(("", *names)))


def _scalar(obj: Any, _: Shaper) -> Shape:
    import numpy as np

    return Shape("scalar", (), (type(obj), np.asarray(obj)))


def _dtype(obj: Any, _: Shaper) -> Shape:
    data = (obj.str, repr(obj.itemsize), repr(obj.isalignedstruct))
    metadata = dict(obj.metadata) if obj.metadata else None
    fixed = (type(obj), obj.type, metadata)
    if obj.names is not None:
        fields = [(name, *obj.fields[name]) for name in obj.names]
        return Shape("structured dtype", data, (*fixed, *fields))
    if obj.subdtype is not None:
        return Shape("subarray dtype", data, (*fixed, *obj.subdtype))
    if obj.char == "T":  # strings of any length: what stands for a missing one
        more = (getattr(obj, "na_object", None), getattr(obj, "coerce", None))
        return Shape("string dtype", data, (*fixed, *more))
    return Shape("dtype", data, fixed)


def _ufunc(obj: Any, shaper: Shaper) -> Shape:
    for module in ("numpy", "scipy.special", getattr(obj, "__module__", None) or "numpy"):
        if is_offered(obj, module, obj.__name__):
            return shaper.reference(module, obj.__name__)
    # Made by frompyfunc: nothing but the garbage collector knows the function.
    functions = [found for found in gc.get_referents(obj) if callable(found)]
    if len(functions) != 1:
        return unstable("ufunc", f"the function inside the ufunc {obj.__name__!r} is not known")
    data = (repr((obj.nin, obj.nout)), repr(obj.identity))
    return Shape("ufunc", data, functions)


def _vectorize(obj: Any, _: Shaper) -> Shape:
    """Leave out the ufuncs that it has made so far."""
    names = ("pyfunc", "otypes", "signature", "excluded", "cache")
    children = (type(obj), *(getattr(obj, name, None) for name in names))
    return Shape("vectorize", (), children, attribute_labels(("", *names)))


def _random_state(obj: Any, shaper: Shaper) -> Shape:
    """Take the hidden one behind ``np.random.normal`` by name: it differs in every process."""
    from dask_batch.graph.handlers.generic import reduced

    hidden = getattr(sys.modules.get("numpy.random.mtrand"), "_rand", None)
    if obj is hidden:
        return shaper.reference("numpy.random.mtrand", "_rand")
    return reduced(obj, shaper)
