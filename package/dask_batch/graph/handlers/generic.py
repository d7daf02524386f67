"""Everything else: by ``__dask_tokenize__``, by name, or by what it would be pickled from."""

from __future__ import annotations

import copyreg
import functools
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dask_batch.code.origin import is_user_module
from dask_batch.graph.handlers.names import name_of
from dask_batch.graph.shape import ReductionError, Shape, unstable

if TYPE_CHECKING:
    from dask_batch.graph.handlers.choice import Handler, Shaper

__all__ = ["choose", "reduced"]

_PICKLING = ("__reduce_ex__", "__reduce__", "__getstate__", "__getnewargs_ex__", "__getnewargs__")


def choose(cls: type) -> Handler:
    """Return a handler for objects of any type."""
    tokenize = getattr(cls, "__dask_tokenize__", None)
    if callable(tokenize) and cls.__module__.partition(".")[0] != "dask":
        return _tokenized
    if cls is random.Random:
        return _generator
    return _remembering(_cached_properties(cls))


def _tokenized(obj: Any, _: Shaper) -> Shape:
    """Take the object's own word for what it is. (Dask's own objects say too little.)"""
    try:
        token = type(obj).__dask_tokenize__(obj)
    except Exception as error:
        raise _failure(obj, "__dask_tokenize__", error) from error
    return Shape("tokenized", children=(type(obj), token))


def _remembering(names: frozenset[str]) -> Handler:
    """Return a handler for objects that keep what they have computed under some names."""

    def handler(obj: Any, shaper: Shaper) -> Shape:
        # What a library offers under a name is that name, whatever it is made of.
        offered = shaper.offered(obj, *name_of(obj)) if callable(obj) else None
        return offered or reduced(obj, shaper, names)

    return handler


def _generator(obj: Any, shaper: Shaper) -> Shape:
    """Take the hidden generator behind ``random.random`` by name: it is seeded by the clock."""
    if obj is getattr(random, "_inst", None):
        return shaper.reference("random", "_inst")
    return reduced(obj, shaper)


def reduced(obj: Any, _: Shaper, remembered: frozenset[str] = frozenset()) -> Shape:
    """Take an object apart as a pickler would: class, arguments, state, members.

    Attributes that an object has only ``remembered`` are left out of its state.
    """
    cls = type(obj)
    reducer = copyreg.dispatch_table.get(cls)
    try:
        reduction = obj.__reduce_ex__(5) if reducer is None else reducer(obj)
    except Exception as error:
        if _is_users(cls, reducer):
            raise _failure(obj, "__reduce__", error) from error
        name = f"{cls.__module__}.{cls.__qualname__}"
        return unstable(name, f"a {name} has no content that outlives this process: {error}")
    if isinstance(reduction, str):
        return Shape("named", (reduction,), (cls,))
    function, arguments, state, items, pairs, setter = (*reduction, *[None] * 6)[:6]
    parts = _Parts(cls, function, arguments, setter)
    parts.add_state(_lasting(state, remembered))
    parts.add_items(items)
    parts.add_pairs(pairs)
    return Shape("reduced", (parts.layout,), parts.values, parts.labels.__getitem__)


class _Parts:
    """What an object is made of, with a label for each part and a word about the layout."""

    def __init__(self, *values: Any) -> None:
        self.values: list[Any] = list(values)
        self.labels: list[str] = [""] * len(values)
        self.layout = ""

    def add_state(self, state: Any) -> None:
        """Add the state; the usual ones, dicts of attributes, attribute by attribute."""
        if type(state) is dict:
            self._add_mapping(state, "state", ".{}".format)
        elif type(state) is tuple and len(state) == 2 and type(state[1]) is dict:
            self._add_mapping(state[0] or {}, "state", ".{}".format)
            self._add_mapping(state[1], "slots", ".{}".format)
        else:
            self._add("other state", state, "")

    def add_items(self, items: Any) -> None:
        """Add the members of something like a list."""
        listed = [] if items is None else list(items)
        self.layout += f" items {len(listed)}"
        self.values += listed
        self.labels += [f"[{position}]" for position in range(len(listed))]

    def add_pairs(self, pairs: Any) -> None:
        """Add the items of something like a dict."""
        self._add_mapping({} if pairs is None else _Pairs(pairs), "pairs", "[{!r}]".format)

    def _add_mapping(
        self, mapping: Mapping[Any, Any] | _Pairs, kind: str, label: Callable[[Any], str]
    ) -> None:
        before = len(self.values)
        for key, value in mapping.items():
            shown = label(key) if isinstance(key, str | int) else f"[{type(key).__name__}]"
            self.values += (key, value)
            self.labels += (shown, shown)
        self.layout += f" {kind} {len(self.values) - before}"

    def _add(self, kind: str, value: Any, label: str) -> None:
        self.layout += f" {kind}"
        self.values.append(value)
        self.labels.append(label)


class _Pairs:
    """The items of a reduction, which may be used once."""

    def __init__(self, pairs: Any) -> None:
        self._pairs = pairs

    def items(self) -> Any:
        return self._pairs


def _lasting(state: Any, remembered: frozenset[str]) -> Any:
    """Leave out of an object's state what it only remembers having computed."""
    if not remembered or type(state) is not dict:
        return state
    # An object without attributes has no state at all.
    return {name: value for name, value in state.items() if name not in remembered} or None


def _cached_properties(cls: type) -> frozenset[str]:
    """Return the names of a class's cached properties, unless it says itself what is pickled."""
    if any(name in vars(base) for base in cls.__mro__[:-1] for name in _PICKLING[:3]):
        return frozenset()
    return frozenset(
        name
        for base in cls.__mro__
        for name, value in vars(base).items()
        if isinstance(value, functools.cached_property)
    )


def _is_users(cls: type, reducer: Any) -> bool:
    """Whether what raised when an object was to be pickled is the user's own code."""
    if reducer is not None:
        return is_user_module(getattr(reducer, "__module__", None))
    for name in _PICKLING:
        for base in cls.__mro__:
            if name in vars(base):
                if is_user_module(base.__module__):
                    return True
                break
    return False


def _failure(obj: Any, method: str, error: Exception) -> ReductionError:
    cls = type(obj)
    name = f"{cls.__module__}.{cls.__qualname__}"
    return ReductionError(f"{method} of a {name} raised {type(error).__name__}: {error}")
