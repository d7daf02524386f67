"""pandas: frames column by column, whatever blocks they lie in."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from dask_batch.graph.shape import Shape

if TYPE_CHECKING:
    from dask_batch.graph.handlers.choice import Handler, Shaper

__all__ = ["choose"]


def choose(cls: type) -> Handler | None:
    """Return the handler of a pandas type."""
    pd = sys.modules["pandas"]
    for base, handler in (
        (pd.DataFrame, _frame),
        (pd.Series, _series),
        (pd.RangeIndex, _range_index),
        (pd.MultiIndex, _multi_index),
        (pd.Index, _index),
        (pd.api.extensions.ExtensionDtype, _dtype),
        (pd.api.extensions.ExtensionArray, _extension_array(cls)),
    ):
        if issubclass(cls, base):
            return handler
    return None


def _values(obj: Any) -> Any:
    """Return what a series or an index holds, without a copy."""
    return obj.array if hasattr(obj.dtype, "construct_array_type") else obj.to_numpy()


def _user_metadata(obj: Any) -> list[Any]:
    """Return the attributes that a derived class has declared as its own."""
    return [
        part
        for name in sorted(set(obj._metadata) - {"_name", "name"})
        for part in (name, getattr(obj, name, None))
    ]


def _labelled(obj: Any) -> tuple[Any, ...]:
    return (
        type(obj),
        obj.index,
        dict(obj.attrs) or None,
        obj.flags.allows_duplicate_labels,
        _user_metadata(obj),
    )


def _frame(obj: Any, _: Shaper) -> Shape:
    fixed = (*_labelled(obj), obj.columns)
    columns = [_values(obj.iloc[:, position]) for position in range(obj.shape[1])]
    names = [repr(name) if isinstance(name, str | int) else "…" for name in obj.columns]

    def label(position: int) -> str:
        if position < len(fixed):
            return ("", ".index", ".attrs", "", "", ".columns")[position]
        return f"[{names[position - len(fixed)]}]"

    return Shape("frame", (repr(obj.shape),), (*fixed, *columns), label)


def _series(obj: Any, _: Shaper) -> Shape:
    labels = ("", ".index", ".attrs", "", "", ".name", "")
    return Shape("series", (), (*_labelled(obj), obj.name, _values(obj)), labels.__getitem__)


def _range_index(obj: Any, _: Shaper) -> Shape:
    return Shape("range index", (), (type(obj), obj.start, obj.stop, obj.step, obj.name))


def _multi_index(obj: Any, _: Shaper) -> Shape:
    parts = (list(obj.names), list(obj.levels), [_contiguous(c) for c in obj.codes])
    return Shape("multi index", (), (type(obj), *parts))


def _contiguous(codes: Any) -> Any:
    import numpy as np

    return np.asarray(codes)


def _index(obj: Any, _: Shaper) -> Shape:
    return Shape("index", (), (type(obj), _values(obj), obj.name, getattr(obj, "freq", None)))


def _dtype(obj: Any, _: Shaper) -> Shape:
    names = tuple(getattr(type(obj), "_metadata", ()))
    return Shape("frame dtype", (obj.name, *names), (type(obj), *(getattr(obj, n) for n in names)))


def _extension_array(cls: type) -> Handler | None:
    """Choose among extension arrays; one that is not known here is taken apart generically."""
    arrays = sys.modules["pandas"].arrays
    names = {name for base in cls.__mro__ for name in (base.__name__,)}
    for name, handler in _ARRAYS.items():
        known = getattr(arrays, name, None)
        if (known is not None and issubclass(cls, known)) or name in names:
            return handler
    return None


def _categorical(obj: Any, _: Shaper) -> Shape:
    return Shape("categorical", (), (type(obj), obj.dtype, obj.codes))


def _moments(obj: Any, _: Shaper) -> Shape:
    """Datetimes, timedeltas and periods."""
    return Shape("moments", (), (type(obj), obj.dtype, obj.asi8, getattr(obj, "freq", None)))


def _intervals(obj: Any, _: Shaper) -> Shape:
    return Shape("intervals", (), (type(obj), obj.left, obj.right, obj.closed))


def _sparse(obj: Any, _: Shaper) -> Shape:
    places = obj.sp_index.to_int_index().indices
    parts = (obj.dtype, len(obj), obj.sp_values, places, obj.fill_value)
    return Shape("sparse column", (), (type(obj), *parts))


def _masked(obj: Any, _: Shaper) -> Shape:
    """Integers, floats and booleans with a mask; what lies under it is an accident."""
    values, mask = obj._data, obj._mask
    if mask.any():
        values = values.copy()
        values[mask] = 0
    return Shape("masked column", (), (type(obj), obj.dtype, values, mask))


def _arrow(obj: Any, _: Shaper) -> Shape:
    return Shape("arrow column", (), (type(obj), obj.dtype, obj.__arrow_array__()))


def _plain(obj: Any, _: Shaper) -> Shape:
    return Shape("plain column", (), (type(obj), obj.dtype, obj.to_numpy()))


_ARRAYS: Final[dict[str, Handler]] = {
    "Categorical": _categorical,
    "DatetimeArray": _moments,
    "TimedeltaArray": _moments,
    "PeriodArray": _moments,
    "IntervalArray": _intervals,
    "SparseArray": _sparse,
    "BaseMaskedArray": _masked,
    "ArrowExtensionArray": _arrow,
    "ArrowStringArray": _arrow,
    "StringArray": _plain,
    "NumpyExtensionArray": _plain,
}
