"""Reductions of the interpreter's and the standard library's own types that pickle refuses.

Each is decided by the exact type, and most refer to public names alone. What has no content of
its own travels as a fresh one: a lock as an open lock, a thread-local as an empty one.
"""

from __future__ import annotations

import functools
import io
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable, ItemsView, KeysView, Mapping, ValuesView
from typing import Any, TypeAlias

from dask_batch.code import wire
from dask_batch.code.origin import is_user_module, travels_by_value
from dask_batch.code.session import look_up

__all__ = [
    "REDUCERS",
    "RefusalError",
    "reduce_compiled",
    "reduce_sentinel",
    "reduce_stream",
    "refuse_what_is_under_way",
]

Reduction: TypeAlias = tuple[Any, ...]


class RefusalError(TypeError):
    """A thing is refused for itself, whatever its parts are like."""

    def __init__(self, thing: Any, message: str) -> None:
        super().__init__(message)
        self.thing = thing


def _code(code: types.CodeType) -> Reduction:
    return wire.code, (
        wire.PYTHON,
        *(code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_nlocals),
        *(code.co_stacksize, code.co_flags, code.co_code, code.co_consts, code.co_names),
        *(code.co_varnames, code.co_filename, code.co_name, code.co_qualname),
        *(code.co_firstlineno, code.co_linetable, code.co_exceptiontable),
        *(code.co_freevars, code.co_cellvars),
    )


def _method(method: types.MethodType) -> Reduction:
    """By name where that leads back to it, so that it is the method of the loader's own class."""
    owner, name = method.__self__, method.__func__.__name__
    if getattr(owner, name, None) == method:
        return getattr, (owner, name)
    return types.MethodType, (method.__func__, owner)


def _wrapping(method: Any) -> Reduction:
    return type(method), (method.__func__,)


def _property(found: property) -> Reduction:
    return property, (found.fget, found.fset, found.fdel, found.__doc__)


def _mapping_proxy(proxy: types.MappingProxyType[Any, Any]) -> Reduction:
    return types.MappingProxyType, (dict(proxy),)


def _memoryview(view: memoryview) -> Reduction:
    return memoryview, (view.tobytes(),)


def _keys(view: KeysView[Any]) -> Reduction:
    return wire.dict_view, (dict.fromkeys(view), "keys")


def _values(view: ValuesView[Any]) -> Reduction:
    return wire.dict_view, (dict(enumerate(view)), "values")


def _items(view: ItemsView[Any, Any]) -> Reduction:
    return wire.dict_view, (dict(view), "items")


def _fresh(thing: Any) -> Reduction:
    return _NAMED_FRESH[type(thing)], ()


def _weak_set(found: weakref.WeakSet[Any]) -> Reduction:
    return weakref.WeakSet, (list(found),)


def _weak_mapping(found: Mapping[Any, Any]) -> Reduction:
    return type(found), (dict(found),)


def reduce_stream(stream: io.TextIOBase) -> Any:
    """Keep the standard streams, whoever has replaced them; open files cannot travel."""
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        if getattr(sys, name) is stream:
            return getattr, (sys, name)
    if isinstance(stream, io.TextIOWrapper):
        opened: Any = getattr(stream, "name", None)
        raise RefusalError(stream, f"cannot pickle the open file {opened!r}")
    return NotImplemented


def refuse_what_is_under_way(thing: Any) -> None:
    """Refuse what would pickle, now that locks do, and never come to an end elsewhere."""
    futures = sys.modules.get("concurrent.futures._base")
    if isinstance(thing, threading.Thread) or (
        futures is not None and isinstance(thing, futures.Future)
    ):
        raise RefusalError(thing, f"cannot pickle {thing!r}: it belongs to this process")


def reduce_sentinel(thing: Any) -> Any:
    """Keep the sentinels of dataclasses what they are: they are compared by identity."""
    import dataclasses

    for name, value in vars(dataclasses).items():
        if value is thing:
            return getattr, (dataclasses, name)
    return NotImplemented


def reduce_compiled(states: Any) -> Reduction:
    """Let a numba function's parts be pickled here: numba's own pickler would go by file name."""
    return type(states), (states.ctor, states.states)


def _lru_cached(cached: Any) -> Any:
    if not travels_by_value(cached):
        return NotImplemented
    parameters = cached.cache_parameters()
    return wire.lru_cached, (cached.__wrapped__, parameters["maxsize"], parameters["typed"])


def _is_library_name(thing: Any) -> bool:
    module = thing.__module__
    return not is_user_module(module) and look_up(module, thing.__name__) is thing


def _type_variable(variable: Any) -> Any:
    if _is_library_name(variable):
        return NotImplemented
    options: dict[str, Any] = {}
    constraints: tuple[Any, ...] = ()
    kind = type(variable).__name__
    if kind != "TypeVarTuple":
        options = {
            "bound": variable.__bound__,
            "covariant": variable.__covariant__,
            "contravariant": variable.__contravariant__,
        }
    if kind == "TypeVar":
        constraints = variable.__constraints__
    if getattr(variable, "__infer_variance__", False):
        options["infer_variance"] = True
    if sys.version_info >= (3, 13) and variable.has_default():
        options["default"] = variable.__default__
    return wire.type_variable, (
        kind,
        variable.__name__,
        constraints,
        options,
        variable.__module__,
    )


def _new_type(made: Any) -> Any:
    if _is_library_name(made):
        return NotImplemented
    return wire.new_type, (made.__name__, made.__supertype__, made.__module__)


def _type_alias(alias: Any) -> Any:
    if _is_library_name(alias):
        return NotImplemented
    return type(alias), (alias.__name__, alias.__value__)


def _named_fresh() -> dict[type, Callable[[], Any]]:
    import _thread

    return {
        type(threading.Lock()): _thread.allocate_lock,
        type(threading.RLock()): threading.RLock,
        threading.local: threading.local,
    }


_NAMED_FRESH = _named_fresh()

REDUCERS: dict[type, Callable[[Any], Any]] = {
    types.CodeType: _code,
    types.MethodType: _method,
    classmethod: _wrapping,
    staticmethod: _wrapping,
    property: _property,
    types.MappingProxyType: _mapping_proxy,
    memoryview: _memoryview,
    type({}.keys()): _keys,
    type({}.values()): _values,
    type({}.items()): _items,
    weakref.WeakSet: _weak_set,
    weakref.WeakKeyDictionary: _weak_mapping,
    weakref.WeakValueDictionary: _weak_mapping,
    functools._lru_cache_wrapper: _lru_cached,
    typing.TypeVar: _type_variable,
    typing.ParamSpec: _type_variable,
    typing.TypeVarTuple: _type_variable,
    typing.NewType: _new_type,
    **dict.fromkeys(_NAMED_FRESH, _fresh),
}
if sys.version_info >= (3, 12):
    REDUCERS[typing.TypeAliasType] = _type_alias
