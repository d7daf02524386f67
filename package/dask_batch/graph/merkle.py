"""The walk over a graph that gives every task its key.

What gets a key is a *unit*: a task, or a part of a fused task that was one. Units are settled depth
first, with a stack and not by recursion, so a graph may be as deep as it likes.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dask_batch.graph.literals import Hole, Literals, Notes
from dask_batch.graph.ordinals import Ordinals, block_index
from dask_batch.graph.shape import NOTHING, Facts, mix
from dask_batch.spec import Build, Call, Expression, Let, Origin, Ref, Task

__all__ = ["Unit", "Walk"]

_SCHEME: Final = f"dask-batch 1, Python {sys.version_info[0]}.{sys.version_info[1]}"
_POSITIONS: Final = tuple(f"argument {i}" for i in range(16))


@dataclass(slots=True, eq=False)
class Unit:
    """Something that has a key: a task, or a part of a fused task that was one."""

    name: Hashable
    expression: Expression
    scope: Scope | None = None
    """Where the names in the expression are looked up first."""
    annotations: Mapping[str, Any] = field(default_factory=dict)
    writes: bool = False
    digest: bytes | None = None
    """The key, once it is settled."""
    ephemeral: bool = False
    facts: Facts = NOTHING
    """Of a part: with those of the parts that it needs, since they run in the same job."""
    parts: Mapping[str, str] = field(default_factory=dict)


class Scope:
    """The bindings of a :class:`~dask_batch.spec.Let`, up to one of them."""

    __slots__ = ("let", "limit", "outer", "positions", "units")

    def __init__(self, let: Let, outer: Scope | None) -> None:
        self.let, self.outer = let, outer
        self.limit = len(let.bindings)
        self.positions = {name: i for i, (name, _) in enumerate(let.bindings)}
        self.units: dict[int, Unit] = {}

    def before(self, position: int) -> Scope:
        """Return what a binding sees: those before it."""
        scope = Scope.__new__(Scope)
        scope.let, scope.outer, scope.limit = self.let, self.outer, position
        scope.positions, scope.units = self.positions, self.units
        return scope

    def origin(self, position: int) -> Origin | None:
        """Return the task that a binding was."""
        return self.let.origins[position] if self.let.origins else None

    def unit(self, position: int, origin: Origin) -> Unit:
        """Return the unit of a binding that was a task."""
        unit = self.units.get(position)
        if unit is None:
            body = self.let.bindings[position][1]
            scope = self.before(position)
            unit = Unit(origin.name, body, scope, origin.annotations)
            self.units[position] = unit
        return unit


class Walk:
    """Settles the units of one graph.

    Parameters
    ----------
    tasks
        The graph.
    literals
        Digests what is not a task.
    nonce
        What makes ephemeral keys those of one run.
    ordinals
        Tells equal tasks apart; None takes them for the same.
    """

    def __init__(
        self,
        tasks: Mapping[Hashable, Task],
        literals: Literals,
        nonce: str,
        ordinals: Ordinals | None,
    ) -> None:
        self._tasks = tasks
        self._literals = literals
        self._nonce = nonce
        self._ordinals = ordinals
        self._units: dict[Hashable, Unit] = {}
        self._scopes: dict[tuple[int, int], Scope] = {}
        self._by_content: Walk | None = None

    def task(self, name: Hashable) -> Unit:
        """Return the unit of a task."""
        unit = self._units.get(name)
        if unit is None:
            task = self._tasks[name]
            unit = Unit(name, task.expression, None, task.annotations, task.writes)
            self._units[name] = unit
        return unit

    def settle(self, root: Unit) -> None:
        """Give a unit its key, and all that it needs theirs before it."""
        if root.digest is not None:
            return
        stack = [(root, iter(self._needs(root.expression, root.scope)))]
        while stack:
            unit, todo = stack[-1]
            for need in todo:
                if need.digest is None:
                    stack.append((need, iter(self._needs(need.expression, need.scope))))
                    break
            else:
                stack.pop()
                if unit.digest is None:
                    self._finish(unit)

    # ---- what a unit needs, in the order of the walk -----------------------------------------

    def _needs(self, expression: Expression, scope: Scope | None) -> list[Unit]:
        found: list[Unit] = []
        self._collect(expression, scope, found)
        return found

    def _collect(self, expression: Expression, scope: Scope | None, found: list[Unit]) -> None:
        if isinstance(expression, Ref):
            target = self._resolve(expression.name, scope)
            if isinstance(target, Unit):
                found.append(target)
            else:
                self._collect(*target, found)
        elif isinstance(expression, Call):
            self._collect(expression.function, scope, found)
            for argument in expression.args:
                self._collect(argument, scope, found)
            for _, argument in sorted(expression.kwargs.items()):
                self._collect(argument, scope, found)
        elif isinstance(expression, Build):
            for item in self._ordered(expression, scope):
                self._collect(item, scope, found)
        elif isinstance(expression, Let):
            self._collect(expression.result, self._inside(expression, scope), found)

    def _ordered(self, build: Build, scope: Scope | None) -> tuple[Expression, ...]:
        """Order the members of a set by content: their order in the graph is an accident."""
        if build.kind not in (set, frozenset) or len(build.items) < 2 or self._ordinals is None:
            return build.items
        if self._by_content is None:
            self._by_content = Walk(self._tasks, self._literals, self._nonce, None)
        walk = self._by_content
        outside = walk._mirror(scope)
        for item in build.items:
            for need in walk._needs(item, outside):
                walk.settle(need)
        return tuple(sorted(build.items, key=lambda item: walk._digest(item, outside, "", Notes())))

    def _mirror(self, scope: Scope | None) -> Scope | None:
        """Give the scope of another walk over the same graph its counterpart in this one."""
        if scope is None:
            return None
        return self._inside(scope.let, self._mirror(scope.outer)).before(scope.limit)

    def _inside(self, let: Let, outer: Scope | None) -> Scope:
        identity = id(let), id(outer.units) if outer is not None else 0
        scope = self._scopes.get(identity)
        if scope is None:
            scope = self._scopes[identity] = Scope(let, outer)
        return scope

    def _resolve(
        self, name: Hashable, scope: Scope | None
    ) -> Unit | tuple[Expression, Scope | None]:
        """Find what a name means: a unit, or a mere expression and where to read it."""
        while scope is not None:
            position = scope.positions.get(name)
            if position is not None and position < scope.limit:
                origin = scope.origin(position)
                if origin is not None:
                    return scope.unit(position, origin)
                return scope.let.bindings[position][1], scope.before(position)
            scope = scope.outer
        return self.task(name)

    # ---- its key -----------------------------------------------------------------------------

    def _finish(self, unit: Unit) -> None:
        last = self._last_part(unit)
        if last is None:
            self._key(unit)
        else:
            unit.digest, unit.parts = last.digest, last.parts
            unit.ephemeral, unit.facts = last.ephemeral, last.facts
            if not unit.ephemeral and _is_ephemeral(unit):
                unit.ephemeral = True
                unit.digest = mix("ephemeral", self._nonce, unit.digest or b"")

    def _last_part(self, unit: Unit) -> Unit | None:
        """Return the part of a fused task that has its result."""
        let = unit.expression
        if isinstance(let, Let) and isinstance(let.result, Ref):
            target = self._resolve(let.result.name, self._inside(let, unit.scope))
            if isinstance(target, Unit) and target.scope is not None:
                return target
        return None

    def _key(self, unit: Unit) -> None:
        notes = Notes(ephemeral=_is_ephemeral(unit))
        for need in self._needs(unit.expression, unit.scope):
            notes.ephemeral |= need.ephemeral
            if need.scope is not None:
                notes.facts = notes.facts.joined(need.facts)
        parts = dict(self._labelled(unit, notes))
        index = block_index(unit.name)
        content = mix("task", _SCHEME, repr(index), *_flat(parts))
        ordinal = 0 if self._ordinals is None else self._ordinals.of(content, unit.name)
        unit.digest = mix("key", content, repr(ordinal)) if ordinal else mix("key", content)
        unit.ephemeral = notes.ephemeral or bool(notes.facts.problems)
        if unit.ephemeral:
            unit.digest = mix("ephemeral", self._nonce, unit.digest)
        unit.facts = notes.facts
        unit.parts = {label: digest.hex() for label, digest in parts.items()}
        if index:
            unit.parts["block index"] = repr(index)
        if ordinal:
            unit.parts["repetition"] = repr(ordinal)

    def _labelled(self, unit: Unit, notes: Notes) -> Iterator[tuple[str, bytes]]:
        """Yield the parts of a unit's content by label."""
        version = _said(unit.annotations, "version")
        if version is not None:
            yield "version", self._literals.digest(version, "annotation version", notes)
        ranks = _said(unit.annotations, "ranks")
        if ranks is not None and ranks != 1:
            # What a function computes may depend on how many run it; no other resource matters.
            yield "ranks", self._literals.digest(int(ranks), "annotation ranks", notes)
        initial = unit.annotations.get("init_function")
        if initial:
            # The key of what its worker begins with: that may give it arguments.
            yield "init_function", self._literals.digest(initial, "init_function", notes)
        if isinstance(unit.expression, Call):
            yield from self._call(unit.expression, unit.scope, "", notes)
        else:
            yield "value", self._digest(unit.expression, unit.scope, "value", notes)

    def _call(
        self, call: Call, scope: Scope | None, where: str, notes: Notes
    ) -> Iterator[tuple[str, bytes]]:
        prefix = f"{where}." if where else ""
        yield "function", self._digest(call.function, scope, f"{prefix}function", notes)
        for i, argument in enumerate(call.args):
            label = _POSITIONS[i] if i < len(_POSITIONS) else f"argument {i}"
            yield label, self._digest(argument, scope, prefix + label, notes)
        for name, argument in sorted(call.kwargs.items()):
            label = f"argument {name!r}"
            yield label, self._digest(argument, scope, prefix + label, notes)
        literal = [a for a in (*call.args, *call.kwargs.values()) if not _is_expression(a)]
        files = self._literals.reads(call.function, literal, notes) if literal else None
        if files is not None:
            yield "files", files

    def _digest(
        self, expression: Expression, scope: Scope | None, where: str, notes: Notes
    ) -> bytes:
        if isinstance(expression, Ref):
            target = self._resolve(expression.name, scope)
            if isinstance(target, Unit):
                assert target.digest is not None  # the walk comes here last
                return target.digest
            return self._digest(*target, where, notes)
        if isinstance(expression, Call):
            return mix("call", *_flat(dict(self._call(expression, scope, where, notes))))
        if isinstance(expression, Build):
            return self._literals.digest(
                self._filled(expression, scope, where, notes), where, notes
            )
        if isinstance(expression, Let):
            return self._digest(expression.result, self._inside(expression, scope), where, notes)
        return self._literals.digest(expression, where, notes)

    def _filled(self, build: Build, scope: Scope | None, where: str, notes: Notes) -> Any:
        """Make the container that an expression builds, with holes in the place of results.

        Where all is literal it is the very container, and so has its digest.
        """
        items = []
        for item in build.items:
            if isinstance(item, Build):
                items.append(self._filled(item, scope, where, notes))
            elif _is_expression(item):
                items.append(Hole(self._digest(item, scope, where, notes)))
            else:
                items.append(item)
        try:
            if build.kind is dict:
                return dict(zip(items[::2], items[1::2], strict=True))
            if build.kind in (list, tuple, set, frozenset):
                return build.kind(items)
        except TypeError:  # an unhashable key or member: the job will say so
            pass
        kind = self._literals.digest(build.kind, where, notes)
        return Hole(mix("build", kind, self._literals.digest(items, where, notes)))


def _is_expression(value: Any) -> bool:
    return isinstance(value, (Ref, Call, Build, Let))


def _said(annotations: Mapping[str, Any], name: str) -> Any:
    """Return an option of a task: an annotation of its own, or one among the resources."""
    said = annotations.get(name)
    return (annotations.get("resources") or {}).get(name) if said is None else said


def _is_ephemeral(unit: Unit) -> bool:
    return unit.writes or _said(unit.annotations, "cache") is False


def _flat(parts: Mapping[str, bytes]) -> Iterator[str | bytes]:
    for label, digest in parts.items():
        yield label
        yield digest
