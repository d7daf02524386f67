"""Which part of an object cannot be pickled, and the way to it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

from dask_batch.code.builtin_types import RefusalError

__all__ = ["find"]

Part: TypeAlias = tuple[str, Any]

_DEPTH = 40


def find(
    obj: Any, refusal: Exception, attempt: Callable[[Any], object], where: str
) -> tuple[str, Exception]:
    """Follow a failure from an object into its parts, as deep as it goes.

    Parameters
    ----------
    obj
        What could not be pickled.
    refusal
        What that raised.
    attempt
        Pickles a part, or raises.
    where
        What the object is called.

    Returns
    -------
    path, refusal
        The way to the innermost part that fails by itself, and what it raises.
    """
    if isinstance(refusal, RecursionError):
        return where, refusal  # no part of it is to blame
    path = where
    seen = {id(obj)}
    for _ in range(_DEPTH):
        if isinstance(refusal, RefusalError) and refusal.thing is obj:
            break
        for step, part in parts(obj):
            if id(part) in seen:
                continue
            seen.add(id(part))
            try:
                attempt(part)
            except Exception as inner:
                obj, refusal, path = part, inner, path + step
                break
        else:
            break
    return path, refusal


def parts(obj: Any) -> Iterator[Part]:
    """Yield what an object consists of, as far as it can be seen, with the way to each part."""
    if isinstance(obj, dict):
        yield from ((f"[{_shown(key)}]", value) for key, value in obj.items())
        yield from ((f" (the key {_shown(key)})", key) for key in obj)
    elif isinstance(obj, list | tuple):
        yield from ((f"[{index}]", value) for index, value in enumerate(obj))
    elif isinstance(obj, set | frozenset):
        yield from ((f" (the member {_shown(value)})", value) for value in obj)
    elif isinstance(obj, FunctionType):
        yield from _of_function(obj)
    elif isinstance(obj, functools.partial):
        yield from ((".func", obj.func), (".args", obj.args), (".keywords", obj.keywords))
    elif isinstance(obj, MethodType):
        yield from ((".__self__", obj.__self__), (".__func__", obj.__func__))
    elif isinstance(obj, CellType):
        yield from _of_cell("", obj)
    elif isinstance(obj, type):
        yield from ((f".{name}", value) for name, value in vars(obj).items() if _is_part(value))
        yield from ((f" (its base {base.__name__})", base) for base in obj.__bases__)
    if not isinstance(obj, type | FunctionType):
        yield from _of_instance(obj)


def _of_instance(obj: Any) -> Iterator[Part]:
    attributes = getattr(obj, "__dict__", None)
    if isinstance(attributes, dict):
        hidden = isinstance(obj, ModuleType)  # a module's own machinery does not travel
        for name, value in attributes.items():
            if not (hidden and name.startswith("__")):
                yield f".{name}", value
    for ancestor in type(obj).__mro__:
        slots = vars(ancestor).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            try:
                yield f".{name}", getattr(obj, name)
            except AttributeError:
                continue  # a slot that is empty
    if not isinstance(obj, ModuleType):
        yield f" (its class {type(obj).__qualname__})", type(obj)


def _of_function(function: FunctionType) -> Iterator[Part]:
    from dask_batch.code.reach import resolve

    yield from ((f" (the default {_shown(value)})", value) for value in function.__defaults__ or ())
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f" (the default of {name!r})", value
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        yield from _of_cell(f" (its variable {name!r})", cell)
    for label, value in resolve(function).values:
        yield f" (its global {label!r})", value
    yield from ((f".{name}", value) for name, value in vars(function).items())


def _of_cell(step: str, cell: CellType) -> Iterator[Part]:
    try:
        yield step, cell.cell_contents
    except ValueError:
        return


def _is_part(value: Any) -> bool:
    """Whether an attribute of a class is more than a descriptor that the class itself makes."""
    return not type(value).__name__.endswith("_descriptor")


def _shown(value: Any) -> str:
    """Return an object's repr, cut short; its type's name where the repr itself fails."""
    try:
        return f"{value!r:.80}"
    except Exception:  # a user's __repr__ may raise anything, and must not hide the culprit
        return f"a {type(value).__qualname__}"
