"""Containers, and the small types that every program has."""

from __future__ import annotations

import array
import enum
import functools
import pickle
import re
import struct
import types
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from dask_batch.graph.handlers.readers import without_sample
from dask_batch.graph.shape import Shape, attribute_labels, unstable

if TYPE_CHECKING:
    from dask_batch.graph.handlers.choice import Handler, Shaper

__all__ = ["choose", "item_labels"]


def choose(cls: type) -> Handler | None:
    """Return the handler of a builtin type; what is derived from one has state of its own."""
    return _HANDLERS.get(cls)


def position_label(position: int) -> str:
    return f"[{position}]"


def item_labels(keys: list[Any]) -> Callable[[int], str]:
    """Name the children ``key, value, key, value, …`` of a mapping."""

    def label(position: int) -> str:
        key = keys[position // 2]
        # The repr of anything else might be long, or raise.
        shown = repr(key) if type(key) in (str, int, bytes, float, bool) else type(key).__name__
        return f"[{shown}]"

    return label


def _list(obj: list[Any], _: Shaper) -> Shape:
    return Shape("list", children=obj, labels=position_label)


def _tuple(obj: tuple[Any, ...], _: Shaper) -> Shape:
    return Shape("tuple", children=obj, labels=position_label)


def _set(obj: set[Any], _: Shaper) -> Shape:
    return Shape("set", children=list(obj), unordered=True)


def _frozenset(obj: frozenset[Any], _: Shaper) -> Shape:
    return Shape("frozenset", children=list(obj), unordered=True)


def _dict(obj: dict[Any, Any], _: Shaper) -> Shape:
    keys = list(obj)
    children = [part for item in obj.items() for part in item]
    return Shape("dict", children=children, labels=item_labels(keys))


def _mappingproxy(obj: Any, _: Shaper) -> Shape:
    return Shape("mappingproxy", children=(dict(obj),))


def _keys(obj: Any, _: Shaper) -> Shape:
    return Shape("dict keys", children=list(obj), labels=position_label)


def _values(obj: Any, _: Shaper) -> Shape:
    return Shape("dict values", children=list(obj), labels=position_label)


def _items(obj: Any, _: Shaper) -> Shape:
    return Shape("dict items", children=list(obj), labels=position_label)


def _bytearray(obj: bytearray, _: Shaper) -> Shape:
    return Shape("bytearray", (memoryview(obj),))


def _memoryview(obj: memoryview, _: Shaper) -> Shape:
    layout = (obj.format, repr(obj.shape), repr(obj.readonly))
    return Shape("memoryview", (*layout, obj.tobytes()))


def _array(obj: array.array[Any], _: Shaper) -> Shape:
    return Shape("array.array", (obj.typecode, str(obj.itemsize), obj.tobytes()))


def _buffer(obj: pickle.PickleBuffer, _: Shaper) -> Shape:
    return Shape("buffer", (obj.raw(),))


def _slice(obj: slice, _: Shaper) -> Shape:
    children = (obj.start, obj.stop, obj.step)
    return Shape("slice", children=children, labels=attribute_labels(("start", "stop", "step")))


def _range(obj: range, _: Shaper) -> Shape:
    return Shape("range", children=(obj.start, obj.stop, obj.step))


def _pattern(obj: re.Pattern[Any], _: Shaper) -> Shape:
    return Shape("pattern", children=(obj.pattern, obj.flags))


def _struct(obj: struct.Struct, _: Shaper) -> Shape:
    return Shape("struct", (obj.format,))


def _namespace(obj: types.SimpleNamespace, _: Shaper) -> Shape:
    return Shape("namespace", children=(vars(obj),))


def _cell(obj: types.CellType, _: Shaper) -> Shape:
    try:
        return Shape("cell", children=(obj.cell_contents,))
    except ValueError:
        return Shape("empty cell")


def _partial(obj: functools.partial[Any], _: Shaper) -> Shape:
    keywords = without_sample(obj.func, obj.keywords)
    children = (obj.func, obj.args, keywords, vars(obj))
    return Shape(
        "partial", children=children, labels=attribute_labels(("func", "args", "keywords", ""))
    )


def _weak_reference(obj: weakref.ref[Any], _: Shaper) -> Shape:
    return Shape("weak reference", children=(obj(),), labels=attribute_labels(("referent",)))


def _object(_: object, __: Shaper) -> Shape:
    return unstable("object", "object() is nothing but its identity, which ends with the process")


def _enum_auto(obj: enum.auto, _: Shaper) -> Shape:
    return Shape("enum.auto", children=(obj.value,))


_HANDLERS: Final[dict[type, Handler]] = {
    list: _list,
    tuple: _tuple,
    set: _set,
    frozenset: _frozenset,
    dict: _dict,
    types.MappingProxyType: _mappingproxy,
    type({}.keys()): _keys,
    type({}.values()): _values,
    type({}.items()): _items,
    bytearray: _bytearray,
    memoryview: _memoryview,
    array.array: _array,
    pickle.PickleBuffer: _buffer,
    slice: _slice,
    range: _range,
    re.Pattern: _pattern,
    struct.Struct: _struct,
    types.SimpleNamespace: _namespace,
    types.CellType: _cell,
    functools.partial: _partial,
    weakref.ref: _weak_reference,
    object: _object,
    enum.auto: _enum_auto,
}
