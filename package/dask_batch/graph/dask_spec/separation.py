"""Writers that Dask has fused with what they write, taken apart again.

A writer runs on every compute, and what is upstream of it need not: so each part of a fused writer
that was a task becomes one again.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping

from dask_batch.graph.writers import writes
from dask_batch.spec import Build, Call, Expression, Let, Origin, Ref, Task, references

__all__ = ["separate_writers"]


def separate_writers(tasks: Iterable[Task]) -> dict[Hashable, Task]:
    """Return tasks by name, each after those it refers to, writers apart from what they write."""
    found: dict[Hashable, Task] = {}
    for task in tasks:
        if task.writes:
            task.expression = _Separation(found).of(task.expression, {})
        found[task.name] = task
    return found


class _Separation:
    """Rewrites the expression of a writer, and adds what need not be in it to other tasks."""

    def __init__(self, found: dict[Hashable, Task]) -> None:
        self._found = found

    def of(self, expression: Expression, scope: Mapping[Hashable, Expression]) -> Expression:
        """Rewrite an expression; the scope has what stands for names that are no longer bound."""
        if isinstance(expression, Ref):
            return scope.get(expression.name, expression)
        if isinstance(expression, Call):
            args = tuple(self.of(argument, scope) for argument in expression.args)
            kwargs = {name: self.of(value, scope) for name, value in expression.kwargs.items()}
            return Call(expression.function, args, kwargs)
        if isinstance(expression, Build):
            return Build(expression.kind, tuple(self.of(i, scope) for i in expression.items))
        if isinstance(expression, Let):
            return self._let(expression, scope)
        return expression

    def _let(self, let: Let, outer: Mapping[Hashable, Expression]) -> Expression:
        scope = dict(outer)
        kept: list[tuple[tuple[Hashable, Expression], Origin | None]] = []
        names: set[Hashable] = set()
        for (name, bound), origin in zip(
            let.bindings, let.origins or itertools.repeat(None), strict=False
        ):
            body = self.of(bound, scope)
            if origin is None or writes(body) or not names.isdisjoint(references(body)):
                kept.append(((name, body), origin))
                names.add(name)
                scope.pop(name, None)
            else:
                self._add(origin, body)
                scope[name] = Ref(origin.name)
        result = self.of(let.result, scope)
        if not kept:
            return result
        return Let(tuple(item[0] for item in kept), result, tuple(item[1] for item in kept))

    def _add(self, origin: Origin, body: Expression) -> None:
        # Two writers may hold the same part: it is one task.
        self._found.setdefault(origin.name, Task(origin.name, body, origin.annotations))
