"""User classes by value: their parts, their identity, and how they are made again.

The parts of a class are those that cloudpickle finds; this module is the only one that touches
what is private there. Two things are added: attributes that the members of an enum were given by
its ``__init__``, and classes whose base insists on keywords in ``__init_subclass__``.
"""

from __future__ import annotations

import enum
import hashlib
import re
import threading
import types
import typing
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FunctionType, MemberDescriptorType
from typing import Any

from cloudpickle import cloudpickle

from dask_batch.code.origin import is_user_module
from dask_batch.code.session import identity_of, know_class

__all__ = ["class_parts", "identity", "make_class", "set_attributes"]

_alive: dict[str, list[weakref.ref[type]]] = {}
"""Classes by their digest, in the order in which they were first pickled."""

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_PASSING = frozenset(
    {"__dict__", "__weakref__", "__doc__", "__firstlineno__", "__static_attributes__", "_abc_impl",
     "__slotnames__"}
)  # fmt: skip
_PLAIN = frozenset({str, bytes, int, float, complex, bool, type(None)})
_ENUM_OWN = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_", "_hashable_values_"})


def class_parts(cls: type) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Take a class apart.

    Returns
    -------
    kind, parts, state
        What :func:`make_class` and :func:`set_attributes` put together again.
    """
    _, made_of, (attributes, _), *_ = cloudpickle._dynamic_class_reduce(cls)
    if not issubclass(cls, enum.Enum):
        metaclass, name, bases, keywords = made_of[:4]
        keywords = {**keywords, "__qualname__": cls.__qualname__}
        if not typing.is_typeddict(cls) and "__orig_bases__" in vars(cls):
            # Those would be resolved again: right for a TypedDict, wrong for a NamedTuple.
            bases, keywords = cls.__bases__, {**keywords, "__orig_bases__": bases}
        if "__slots__" in vars(cls):
            slots = _slots(cls)
            keywords = {**keywords, "__slots__": slots}
            attributes = {k: v for k, v in attributes.items() if k not in slots}
        return "class", (metaclass, name, bases, keywords), {"attributes": attributes}
    return _enum_parts(cls, made_of, attributes)


def _enum_parts(
    cls: type[enum.Enum], made_of: tuple[Any, ...], attributes: dict[str, Any]
) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Take an enum apart: its members by value, aliases and their own attributes included."""
    bases, name, qualname, _, module = made_of[:5]
    values = {alias: member._value_ for alias, member in cls.__members__.items()}
    attributes = {k: v for k, v in attributes.items() if k not in values}
    extra = {
        member._name_: given
        for member in cls
        if (given := {k: v for k, v in vars(member).items() if k not in _ENUM_OWN})
    }
    state = {"attributes": attributes, "members": extra}
    if not isinstance(getattr(cls, "__new_member__", None), FunctionType):
        return "enum", (bases, name, qualname, values, module), state
    # Its own __new__ made the members, of arguments that nobody knows now.
    for hook in ("__new_member__", "_new_member_"):
        if hasattr(cls, hook):
            attributes[hook] = getattr(cls, hook)
    restored = {k: (_data_of(cls, m), m._value_) for k, m in cls.__members__.items()}
    return "restored enum", (bases, name, qualname, restored, module), state


def _data_of(cls: type[enum.Enum], member: enum.Enum) -> tuple[Any, ...]:
    """Return what makes the int, str, ... that a member also is."""
    data_type: Any = getattr(cls, "_member_type_", object)
    arguments = getattr(data_type, "__getnewargs__", None)
    return () if arguments is None else tuple(arguments(member))


def _make_restored_enum(
    bases: tuple[type, ...], name: str, qualname: str, members: Mapping[str, Any], module: str
) -> type:
    """Make an enum whose members are told what they are, instead of computing it."""

    def restore(cls: Any, data: tuple[Any, ...], value: Any) -> Any:
        data_type = cls._member_type_
        made = data_type.__new__(cls, *data)
        made._value_ = value
        return made

    metaclass: Any = type(bases[-1])
    body = metaclass.__prepare__(name, bases)
    body["__new__"] = restore
    body["__module__"], body["__qualname__"] = module, qualname
    for member, parts in members.items():
        body[member] = parts
    return typing.cast(type, metaclass(name, bases, body))


def _slots(cls: type) -> tuple[str, ...]:
    """Return the slots that a class itself adds, by their mangled names."""
    own = vars(cls)
    members = [k for k, v in own.items() if isinstance(v, MemberDescriptorType)]
    return (*members, *(k for k in ("__dict__", "__weakref__") if k in own))


def make_class(kind: str, parts: tuple[Any, ...]) -> type:
    """Make a class that has no attributes yet, so that they may refer to it."""
    if kind == "enum":
        return cloudpickle._make_skeleton_enum(*parts, None, None)  # type: ignore[no-any-return]
    if kind == "restored enum":
        return _make_restored_enum(*parts)
    metaclass, name, bases, keywords = parts
    with _unheard(bases):
        return cloudpickle._make_skeleton_class(  # type: ignore[no-any-return]
            metaclass, name, bases, keywords, None, None
        )


_silence = threading.Lock()


@contextmanager
def _unheard(bases: tuple[Any, ...]) -> Iterator[None]:
    """Keep the ``__init_subclass__`` of a user's class from running again.

    It ran when the class was defined, what it did is among the attributes, and the keywords that
    it was given then are known to nobody now.
    """
    listener = _listener(bases)
    if listener is None:
        yield
        return
    with _silence:
        hook = vars(listener)["__init_subclass__"]
        type.__setattr__(listener, "__init_subclass__", classmethod(_ignore))
        try:
            yield
        finally:
            type.__setattr__(listener, "__init_subclass__", hook)


def _ignore(cls: type, /, **keywords: Any) -> None:
    pass


def _listener(bases: tuple[Any, ...]) -> type | None:
    """Find the user's class whose ``__init_subclass__`` a new class would run into."""
    for base in types.resolve_bases(bases):
        for ancestor in base.__mro__:
            if "__init_subclass__" in vars(ancestor):
                if ancestor is not object and is_user_module(ancestor.__module__):
                    return typing.cast(type, ancestor)
                break
    return None


def set_attributes(cls: type, state: Mapping[str, Any]) -> None:
    """Give a class its attributes."""
    cloudpickle._class_setstate(cls, (dict(state["attributes"]), {}))
    for name, given in state.get("members", {}).items():
        vars(cls.__members__[name]).update(given)  # type: ignore[attr-defined]


def identity(cls: type) -> str:
    """Return what a class is known by in every process: a digest, and a number among equals.

    Notes
    -----
    The digest covers what the class itself defines. It leaves out the globals that its methods
    reach: those are bound in the namespace that the methods share.
    """
    known = identity_of(cls)
    if known is not None:
        return known
    digest = hashlib.sha256("\n".join(_describe_class(cls)).encode()).hexdigest()[:32]
    equals = _alive.setdefault(digest, [])
    number = next((n for n, other in enumerate(equals) if other() is cls), None)
    if number is None:
        number = len(equals)
        equals.append(weakref.ref(cls))
    found = digest if number == 0 else f"{digest}#{number}"
    know_class(cls, found)
    return found


def _describe_class(cls: type) -> Iterator[str]:
    yield f"{cls.__module__}:{cls.__qualname__}:{_name(type(cls))}"
    yield ",".join(_name(base) for base in cls.__bases__)
    for name, value in sorted(vars(cls).items()):
        if name not in _PASSING:
            yield f"{name}={_describe(value, 0)}"


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _describe(value: Any, depth: int) -> str:
    """Describe an attribute in words that are the same in every process."""
    if depth > 6:
        return "..."
    if isinstance(value, type):
        return _name(value)
    if isinstance(value, FunctionType):
        parts = (value.__defaults__, value.__kwdefaults__, _contents(value))
        return f"{_describe_code(value.__code__)} {_describe(parts, depth + 1)}"
    if isinstance(value, staticmethod | classmethod):
        return f"{_name(type(value))} {_describe(value.__func__, depth + 1)}"
    if isinstance(value, property):
        return "property " + _describe((value.fget, value.fset, value.fdel), depth + 1)
    if isinstance(value, tuple | list):
        return f"[{', '.join(_describe(v, depth + 1) for v in value)}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(_describe(v, depth + 1) for v in value))}}}"
    if isinstance(value, dict):
        items = (f"{_describe(k, depth + 1)}: {_describe(v, depth + 1)}" for k, v in value.items())
        return f"{{{', '.join(items)}}}"
    if type(value) in _PLAIN:
        return f"{_name(type(value))} {value!r}"
    return _name(type(value))


def _contents(function: FunctionType) -> list[Any]:
    """Return what is in the closure; empty cells have nothing to say."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            continue
    return found


def _describe_code(code: CodeType) -> str:
    constants = [_describe_code(c) if isinstance(c, CodeType) else c for c in code.co_consts]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    return f"{code.co_code.hex()} {_describe([names, shape], 0)} {_describe(constants, 0)}"
