"""NumPy types as JSON, and as what HDF5 can hold.

HDF5 has no dates and no UTF-32 text. Such a field is laid out as integers of the same size, and
the type proper is described beside it, so that every byte of an array is stored as it lies in
memory and comes back under exactly the type it had.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from h5py import h5t

__all__ = ["describe", "restore", "storage"]

_PLAIN = frozenset("biufcSUMmV")
_LONGEST = 4_000  # characters, some 250 fields: HDF5 takes 64 KiB for a type, in its own encoding


def describe(dtype: np.dtype[Any]) -> Any:
    """Return a type as JSON, or None if it cannot be stored as a typed dataset.

    None is the answer for objects, variable-length strings, types of other packages, field titles,
    metadata and hundreds of fields: arrays of these are pickled.
    """
    described = _describe(dtype)
    if described is None or dtype.itemsize == 0 or len(json.dumps(described)) > _LONGEST:
        return None
    if restore(described) != dtype:
        return None
    try:
        held = h5t.py_create(storage(dtype).base, logical=True)
    except (TypeError, ValueError, UnicodeError):
        return None  # a field's name that HDF5 does not take, for one
    return described if held.get_size() == storage(dtype).base.itemsize else None


def _describe(dtype: np.dtype[Any]) -> Any:
    if dtype.hasobject or dtype.metadata:
        return None
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        inner = _describe(base)
        return None if inner is None else {"base": inner, "shape": list(shape)}
    if dtype.names is None:
        plain = dtype.kind in _PLAIN and np.dtype(dtype.str) == dtype
        return dtype.str if plain else None
    fields = [dtype.fields[name] for name in dtype.names] if dtype.fields else []
    formats = [_describe(field[0]) for field in fields]
    if not fields or None in formats or any(len(field) > 2 for field in fields):
        return None
    return {
        "names": list(dtype.names),
        "formats": formats,
        "offsets": [field[1] for field in fields],
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
    }


def restore(described: Any) -> np.dtype[Any]:
    """Return the type that :func:`describe` described."""
    if isinstance(described, str):
        return np.dtype(described)
    if "base" in described:
        return np.dtype((restore(described["base"]), tuple(described["shape"])))
    return np.dtype(
        {
            "names": described["names"],
            "formats": [restore(field) for field in described["formats"]],
            "offsets": described["offsets"],
            "itemsize": described["itemsize"],
        },
        align=described["aligned"],
    )


def storage(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a type of the same size and layout that HDF5 has.

    Text becomes a sub-array of code points: as the type of a whole array it adds an axis.
    """
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return np.dtype((storage(base), shape))
    if dtype.names is not None and dtype.fields is not None:
        fields = [dtype.fields[name] for name in dtype.names]
        return np.dtype(
            {
                "names": list(dtype.names),
                "formats": [storage(field[0]) for field in fields],
                "offsets": [field[1] for field in fields],
                "itemsize": dtype.itemsize,
            }
        )
    if dtype.kind in "Mm":
        return np.dtype("i8").newbyteorder(dtype.byteorder)
    if dtype.kind == "U":
        points = np.dtype("u4").newbyteorder(dtype.byteorder)
        return np.dtype((points, (dtype.itemsize // 4,)))
    return dtype
