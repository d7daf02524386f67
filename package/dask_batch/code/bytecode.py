"""What a code object refers to: global names with attribute chains, and imports in its body.

The reading is of bytecode, so that it holds for every function there is, typed into a notebook
or made by ``exec``. Code nested inside (lambdas, comprehensions, inner functions, the bodies of
classes) counts as part of the code around it. Nothing that is found depends on line numbers,
file names, or on how far the interpreter has specialised the code.

Notes
-----
What is only known when the code runs is not seen: ``getattr(module, name)`` makes the module
count as used whole, but ``importlib.import_module(name)``, ``globals()[name]`` and ``eval`` show
nothing of what they will reach.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import NamedTuple, TypeAlias

__all__ = ["Chain", "CodeUse", "GlobalUse", "RawImport", "read"]

Chain: TypeAlias = tuple[str, ...]
"""Attribute names, outermost first: ``("sub", "g")`` in ``helper.sub.g``."""


@dataclass(frozen=True, slots=True, order=True)
class GlobalUse:
    """A global name that code loads.

    Attributes
    ----------
    name
        The name.
    chains
        The attribute chains used directly on it, sorted; none of them is empty.
    whole
        Whether the object itself is used as well: called, passed on, stored.
    """

    name: str
    chains: tuple[Chain, ...]
    whole: bool


@dataclass(frozen=True, slots=True, order=True)
class RawImport:
    """An import statement in a body, as it is written.

    ``chains`` and ``whole`` speak of what the statement binds, seen from ``root`` (see
    :class:`dask_batch.code.reach.ImportUse`, which has the names made absolute).
    """

    level: int
    module: str
    from_top: bool
    names: tuple[str, ...]
    chains: tuple[Chain, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class CodeUse:
    """All that a code object refers to, each part in the order of its names."""

    globals: tuple[GlobalUse, ...]
    imports: tuple[RawImport, ...]


class _Instruction(NamedTuple):
    name: str
    value: object


@dataclass(slots=True)
class _Binding:
    """A local name that an import binds, and the way to it from the import's root."""

    path: Chain
    name: str | None


@dataclass(slots=True)
class _Import:
    level: int
    module: str
    names: tuple[str, ...]
    from_top: bool
    bindings: list[_Binding]


@dataclass(slots=True)
class _Scope:
    """What one code object loads and imports, and the code objects inside it."""

    code: CodeType
    globals: list[tuple[str, Chain]]
    locals: list[tuple[str, Chain]]
    imports: list[_Import]
    inner: list[_Scope]


_IGNORED = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "PRECALL", "PUSH_NULL", "NOT_TAKEN"})
_ATTRIBUTE = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_CHANGED_ATTRIBUTE = frozenset({"STORE_ATTR", "DELETE_ATTR"})
_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"})
_DEREF = frozenset({"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})


@functools.lru_cache(maxsize=4096)
def read(code: CodeType) -> CodeUse:
    """Find what a code object refers to, code inside it included."""
    scope = _scan(code)
    loads: dict[str, set[Chain]] = {}
    imports: set[RawImport] = set()
    for each in _all_scopes(scope):
        for name, chain in each.globals:
            loads.setdefault(name, set()).add(chain)
        imports.update(_raw_import(found, each) for found in each.imports)
    uses = (
        GlobalUse(name, tuple(sorted(chains - {()})), () in chains)
        for name, chains in loads.items()
    )
    return CodeUse(tuple(sorted(uses)), tuple(sorted(imports)))


def _all_scopes(scope: _Scope) -> Iterator[_Scope]:
    yield scope
    for inner in scope.inner:
        yield from _all_scopes(inner)


def _scan(code: CodeType) -> _Scope:
    """Read one code object and those among its constants."""
    scope = _Scope(code, [], [], [], [])
    scope.inner = [_scan(const) for const in code.co_consts if isinstance(const, CodeType)]
    instructions = [
        _Instruction(i.opname, i.argval)
        for i in dis.get_instructions(code)
        if i.opname not in _IGNORED
    ]
    stored: set[str] = set()
    for index, instruction in enumerate(instructions):
        if instruction.name == "IMPORT_NAME":
            scope.imports.append(_read_import(instructions, index))
        elif instruction.name == "STORE_NAME":
            stored.add(str(instruction.value))
        else:
            _read_load(scope, instructions, index, stored)
    return scope


def _read_load(
    scope: _Scope, instructions: list[_Instruction], index: int, stored: set[str]
) -> None:
    """Record what an instruction loads, if it loads a name."""
    name, value = instructions[index]
    if name in _GLOBAL:
        scope.globals.append((str(value), _chain(instructions, index)))
    elif name == "LOAD_NAME":
        following = instructions[index + 1]
        if value == "__name__" and following == ("STORE_NAME", "__module__"):
            return  # the prologue of a class body
        # A class body: its own names first, then globals.
        kind = scope.locals if value in stored else scope.globals
        kind.append((str(value), _chain(instructions, index)))
    elif name in _DEREF:
        scope.locals.append((str(value), _chain(instructions, index)))
    elif name.startswith(("LOAD_FAST", "STORE_FAST_LOAD_FAST")):
        _read_fast(scope, name, value, _chain(instructions, index))


def _read_fast(scope: _Scope, name: str, value: object, chain: Chain) -> None:
    """Record loads of local variables; since 3.13 one instruction may load two."""
    values = value if isinstance(value, tuple) else (value,)
    if name.startswith("STORE_FAST"):
        values = values[1:]
    cells = {*scope.code.co_cellvars, *scope.code.co_freevars}
    for position, variable in enumerate(values, start=1):
        if variable not in cells:  # else it is the cell, on its way into a closure
            last = position == len(values)
            scope.locals.append((str(variable), chain if last else ()))


def _chain(instructions: list[_Instruction], index: int) -> Chain:
    """Read the attributes taken of what an instruction has loaded; empty if it is used whole."""
    chain: list[str] = []
    for position in range(index + 1, len(instructions)):
        name, value = instructions[position]
        if name in _ATTRIBUTE:
            chain.append(str(value))
        elif name in _CHANGED_ATTRIBUTE:
            chain.append(str(value))
            break
        elif name == "COPY" and value == 1 and instructions[position + 1].name in _ATTRIBUTE:
            continue  # module.counter += 1
        else:
            break
    return tuple(chain)


def _read_import(instructions: list[_Instruction], index: int) -> _Import:
    """Read an import statement: what it names, and which local names it binds to what."""
    level = instructions[index - 2].value
    names = instructions[index - 1].value
    fromlist = tuple(str(n) for n in names) if isinstance(names, tuple) else ()
    module = str(instructions[index].value or "")
    found = _Import(level if isinstance(level, int) else 0, module, fromlist, False, [])
    following = instructions[index + 1 :]
    if fromlist:
        found.bindings = _from_bindings(following)
    elif following[0].name == "IMPORT_FROM":
        # import a.b.c as d: the leaf is bound
        store = next(i for i in following if i.name not in ("IMPORT_FROM", "SWAP", "POP_TOP"))
        found.bindings = [_Binding((), _local(store))]
    else:
        found.from_top = True
        found.bindings = [_Binding((), _local(following[0]))]
    return found


def _from_bindings(following: list[_Instruction]) -> list[_Binding]:
    bindings = []
    for position in range(0, len(following) - 1, 2):
        if following[position].name != "IMPORT_FROM":
            break
        attribute = str(following[position].value)
        bindings.append(_Binding((attribute,), _local(following[position + 1])))
    return bindings


def _local(store: _Instruction) -> str | None:
    """Return the local name that is bound; None for a global or an attribute of a class.

    What those are used for need not be in sight.
    """
    if store.name.startswith("STORE_FAST"):
        return str(store.value[0] if isinstance(store.value, tuple) else store.value)
    return str(store.value) if store.name == "STORE_DEREF" else None


def _raw_import(found: _Import, scope: _Scope) -> RawImport:
    """Join an import with what the code makes of the names that it binds."""
    chains: set[Chain] = set()
    for binding in found.bindings:
        # A name of a function further out (nonlocal) may be used there.
        unseen = binding.name is None or binding.name in scope.code.co_freevars
        uses = {()} if unseen else set(_uses(binding.name or "", scope))
        chains |= {binding.path + chain for chain in uses} or {binding.path} - {()}
    return RawImport(
        found.level,
        found.module,
        found.from_top,
        found.names,
        tuple(sorted(chains - {()})),
        () in chains,
    )


def _uses(name: str, scope: _Scope) -> Iterator[Chain]:
    """Yield the chains used on a local name, here and in the closures that see it."""
    yield from (chain for variable, chain in scope.locals if variable == name)
    for inner in scope.inner:
        if name in inner.code.co_freevars:
            yield from _uses(name, inner)
