"""Code: the user's by what it does and reaches, a library's by name and version."""

from __future__ import annotations

import dis
import enum
import functools
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from dask_batch.code.origin import is_user_module, travels_by_value
from dask_batch.code.reach import LibraryReference, Missing, reached
from dask_batch.graph.handlers.names import library_part
from dask_batch.graph.shape import Shape, attribute_labels

if TYPE_CHECKING:
    from dask_batch.graph.handlers.choice import Handler, Shaper

__all__ = ["PYTHON", "choose"]

_SCHEME: Final = "1"
PYTHON: Final = f"python {sys.version_info[0]}.{sys.version_info[1]} scheme {_SCHEME}"
"""Salt of everything that depends on bytecode or on the standard library."""

_EXTENDED_ARG: Final = dis.opmap["EXTENDED_ARG"]
_LOAD_CONST: Final = dis.opmap["LOAD_CONST"]
_STORE_NAME: Final = dis.opmap["STORE_NAME"]
_HAS_CONST: Final = frozenset(dis.hasconst)

_NOT_CODE: Final = frozenset(
    {"__doc__", "__firstlineno__", "__qualname__", "__static_attributes__"}
)
"""Names to which the body of a class assigns constants that say where and how it was written."""

_NOT_OF_CLASS: Final = _NOT_CODE | {
    "__annotations_cache__",
    "__dict__",
    "__module__",
    "__slotnames__",  # remembered by copyreg once an instance has been pickled
    "__weakref__",
    "_abc_impl",
}
_DERIVED: Final = "__pydantic_"
_DERIVED_BUT: Final = frozenset({"__pydantic_fields__", "__pydantic_decorators__"})


def choose(cls: type) -> Handler | None:
    """Return the handler of a type that is code, or made of code."""
    if issubclass(cls, type):
        return _class
    if issubclass(cls, enum.Enum):
        return _member
    if issubclass(cls, types.ModuleType):
        return _module
    return _HANDLERS.get(cls)


def _name_of(thing: Any) -> str:
    """Return what a function or class is called in a path."""
    module = thing.__module__
    return thing.__qualname__ if module in (None, "__main__") else f"{module}.{thing.__qualname__}"


def _function(obj: types.FunctionType, shaper: Shaper) -> Shape:
    if not travels_by_value(obj):
        return shaper.reference(obj.__module__, obj.__qualname__)
    if obj.__globals__ is vars(functools) and hasattr(obj, "registry"):
        return _singledispatch(obj)
    name = _name_of(obj)
    children: list[Any] = [obj.__code__, obj.__defaults__, obj.__kwdefaults__]
    labels = ["", f"defaults of {name}", f"keyword defaults of {name}"]
    for variable, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=True):
        children.append(cell)
        labels.append(f"closure {variable!r} of {name}")
    for attribute, value in vars(obj).items():
        if attribute != "__wrapped__":  # it is in the closure, if it is called
            children += (attribute, value)
            labels += ("", f"attribute {attribute!r} of {name}")
    for label, value in reached(obj):
        children += (label, _by_name(label, value, obj.__globals__))
        labels += ("", f"{label if label.startswith('import ') else f'global {label!r}'} of {name}")
    return Shape("function", (PYTHON,), children, labels.__getitem__)


def _by_name(label: str, value: Any, namespace: dict[str, Any]) -> Any:
    """Replace what a chain of attributes leads to inside a library by its name there.

    What a library has under a name is the library's business (``os.environ``, ``sys.stdout``),
    unless the user has put code of his own there.
    """
    if isinstance(value, types.FunctionType | type) and travels_by_value(value):
        return value
    part = library_part(label, namespace)
    return value if part is None else LibraryReference(*part)


def _library_reference(obj: LibraryReference, shaper: Shaper) -> Shape:
    return shaper.reference(obj.module, ".".join(obj.chain))


def _missing(obj: Missing, _: Shaper) -> Shape:
    return Shape("missing", (obj.name,))


def _singledispatch(obj: Any) -> Shape:
    """Take the table; what has been looked up in it so far does not count."""
    return Shape("singledispatch", children=list(obj.registry.items()), unordered=True)


def _code(obj: types.CodeType, _: Shaper) -> Shape:
    instructions, order, consts = _canonical(obj)
    counts = (obj.co_argcount, obj.co_posonlyargcount, obj.co_kwonlyargcount, obj.co_flags)
    data = (
        PYTHON,
        instructions,
        repr(order),
        repr(counts),
        obj.co_exceptiontable,
        repr((obj.co_names, obj.co_varnames, obj.co_freevars, obj.co_cellvars)),
    )
    return Shape("code", data, consts)


def _canonical(code: types.CodeType) -> tuple[bytes, list[int], list[Any]]:
    """Return instructions without constants, and the constants in the order of first use.

    A constant that nothing loads is a docstring: where it stands in ``co_consts``, and whether
    it is there, must not tell. Line numbers and positions are not in ``co_code``, nor is
    anything that the interpreter has specialised.
    """
    raw = bytearray(code.co_code)
    numbers: dict[int, int] = {}
    order: list[int] = []
    extended = 0
    for at in range(0, len(raw), 2):
        operation, argument = raw[at], raw[at + 1] | extended
        if operation == _EXTENDED_ARG:
            extended = argument << 8
            continue
        extended = 0
        if operation not in _HAS_CONST:
            continue
        for part in range(at, -1, -2):
            raw[part + 1] = 0
            if part < 2 or raw[part - 2] != _EXTENDED_ARG:
                break
        if operation == _LOAD_CONST and _stored_name(code, raw, at + 2) in _NOT_CODE:
            order.append(-1)
        else:
            order.append(numbers.setdefault(argument, len(numbers)))
    return bytes(raw), order, [code.co_consts[index] for index in numbers]


def _stored_name(code: types.CodeType, raw: bytearray, at: int) -> str:
    """Return the name that an instruction stores to in the body of a class."""
    if at < len(raw) and raw[at] == _STORE_NAME:
        return code.co_names[raw[at + 1]]
    return ""


def _class(obj: type, shaper: Shaper) -> Shape:
    if not travels_by_value(obj):
        return shaper.reference(obj.__module__, obj.__qualname__)
    if issubclass(obj, enum.Enum) and obj.__members__:
        return _enumeration(obj)
    # Whoever asks a class without annotations for them leaves an empty dictionary behind.
    names = sorted(
        name
        for name, value in vars(obj).items()
        if _counts(name) and not (name == "__annotations__" and not value)
    )
    return _class_of(obj, names, [])


def _counts(name: str) -> bool:
    """Whether an attribute of a class is part of what the class is."""
    if name.startswith(_DERIVED):  # a compiled form of its fields
        return name in _DERIVED_BUT
    return name not in _NOT_OF_CLASS


def _class_of(obj: type, names: list[str], more: list[Any]) -> Shape:
    name = _name_of(obj)
    meta = () if type(obj) is type else (type(obj),)
    children: list[Any] = [*meta, *obj.__bases__, *more]
    labels = [""] * len(children)
    children += [vars(obj)[attribute] for attribute in names]
    labels += [f"attribute {attribute!r} of {name}" for attribute in names]
    data = (PYTHON, obj.__name__, repr(len(obj.__bases__)), *names)
    return Shape("class", data, children, labels.__getitem__)


def _enumeration(obj: type[enum.Enum]) -> Shape:
    """Take the members in order, and what the user has defined beside them."""
    members = [part for name, m in obj.__members__.items() for part in (name, m._value_)]
    own = [
        name
        for name in sorted(vars(obj))
        if name not in obj.__members__
        and _counts(name)
        and not (name.startswith("_") and name.endswith("_") and _is_machinery(obj, name))
    ]
    return _class_of(obj, own, members)


def _is_machinery(obj: type[enum.Enum], name: str) -> bool:
    """Whether :mod:`enum` has put an attribute there: all but functions of the user's."""
    value = getattr(vars(obj)[name], "__func__", vars(obj)[name])
    return not (isinstance(value, types.FunctionType) and value.__globals__ is not vars(enum))


def _member(obj: enum.Enum, _: Shaper) -> Shape:
    return Shape("enum member", (str(obj._name_),), (type(obj), obj._value_))


def _module(obj: types.ModuleType, shaper: Shaper) -> Shape:
    if not is_user_module(obj.__name__):
        return shaper.reference(obj.__name__, "")
    names = sorted(
        name for name in vars(obj) if not (name.startswith("__") and name.endswith("__"))
    )
    labels = [f"global {name!r} of {obj.__name__}" for name in names]
    children = [vars(obj)[name] for name in names]
    return Shape("module", tuple(names), children, labels.__getitem__)


def _method(obj: types.MethodType, _: Shaper) -> Shape:
    labels = attribute_labels(("__func__", "__self__"))
    return Shape("method", children=(obj.__func__, obj.__self__), labels=labels)


def _builtin_function(obj: types.BuiltinFunctionType, shaper: Shaper) -> Shape:
    owner = obj.__self__
    if owner is None or isinstance(owner, types.ModuleType):
        return shaper.reference(obj.__module__ or "builtins", obj.__qualname__)
    labels = attribute_labels(("__self__",))
    return Shape("method of builtin", (PYTHON, obj.__name__), (owner,), labels)


def _descriptor(obj: Any, _: Shaper) -> Shape:
    return Shape("descriptor", (type(obj).__name__, obj.__name__), (obj.__objclass__,))


def _wrapping(*names: str) -> Callable[[Any, Shaper], Shape]:
    """Return a handler that takes some attributes for all there is to know."""

    def handler(obj: Any, _: Shaper) -> Shape:
        children = [getattr(obj, name) for name in names]
        return Shape(type(obj).__name__, (), children, attribute_labels(names))

    return handler


def _lru_cache(obj: Any, shaper: Shaper) -> Shape:
    offered = shaper.offered(obj, obj.__module__, obj.__qualname__)
    return offered or Shape("lru_cache", children=(obj.__wrapped__,))


_HANDLERS: Final[dict[type, Handler]] = {
    types.FunctionType: _function,
    types.CodeType: _code,
    types.MethodType: _method,
    types.BuiltinFunctionType: _builtin_function,
    types.MethodWrapperType: _wrapping("__self__", "__name__"),
    types.WrapperDescriptorType: _descriptor,
    types.MethodDescriptorType: _descriptor,
    types.ClassMethodDescriptorType: _descriptor,
    types.MemberDescriptorType: _descriptor,
    types.GetSetDescriptorType: _descriptor,
    LibraryReference: _library_reference,
    Missing: _missing,
    property: _wrapping("fget", "fset", "fdel"),
    staticmethod: _wrapping("__func__"),
    classmethod: _wrapping("__func__"),
    functools.cached_property: _wrapping("func", "attrname"),
    functools._lru_cache_wrapper: _lru_cache,
}
