"""What a task is, as plain data: calls, containers and references to other tasks.

A graph of any kind (Dask's expressions, legacy tuples, one call of ``submit``) is translated
once, at the door, into these few shapes. Keys are computed from them, chains are fused from
them, and they are what a job unpickles and evaluates: a job therefore needs nothing of Dask
that the user's own functions do not need.

An *expression* is a :class:`Ref`, a :class:`Call`, a :class:`Build`, a :class:`Let`, or anything
else, which is a literal and stands for itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = [
    "Build",
    "Call",
    "Expression",
    "Let",
    "Ref",
    "Step",
    "Task",
    "evaluate",
    "item",
    "references",
]

Expression: TypeAlias = Any

# Each record says itself how it is pickled: a graph has many of them, and what dataclasses do for
# frozen ones with slots is slow.


@dataclass(frozen=True, slots=True)
class Ref:
    """The result of another task, by its name (in Dask's words: its key)."""

    name: Hashable

    def __reduce__(self) -> tuple[Any, ...]:
        return Ref, (self.name,)


@dataclass(frozen=True, slots=True)
class Call:
    """A function applied to expressions."""

    function: Any
    args: tuple[Expression, ...] = ()
    kwargs: Mapping[str, Expression] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        return Call, (self.function, self.args, self.kwargs)


@dataclass(frozen=True, slots=True)
class Build:
    """A container of expressions; a dict's items are key, value, key, value, ..."""

    kind: type
    items: tuple[Expression, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return Build, (self.kind, self.items)


@dataclass(frozen=True, slots=True)
class Origin:
    """The task that a binding would be, had it not been fused: its name, and what was said of it.

    Keys are computed as if it still were that task, so they do not depend on fusion.
    """

    name: Hashable
    annotations: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Let:
    """Named expressions, each of which may refer to those before it, and the one that counts.

    Tasks that Dask has fused arrive in this shape. The names are local, each bound once: a
    :class:`Ref` inside to a name that is not bound here, or not yet, means the graph outside.
    ``origins`` gives, for each binding, the task that it was (None: a mere part of a task); they
    matter to keys alone, and do not travel to jobs.
    """

    bindings: tuple[tuple[Hashable, Expression], ...]
    result: Expression
    origins: tuple[Origin | None, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return Let, (self.bindings, self.result)


@dataclass(slots=True)
class Task:
    """One node of a graph.

    Attributes
    ----------
    name
        Its name in the graph (Dask's key): any hashable.
    expression
        What it computes.
    annotations
        What the user said about this task (``resources``, ``retries``, ``cache``, ...).
    fusable
        Whether ``fuse="auto"`` may put it into a chain (False for delayed calls).
    writes
        Whether it writes into the world outside (``to_parquet``, ``store``, ...), so that it
        must run on every compute.
    """

    name: Hashable
    expression: Expression
    annotations: Mapping[str, Any] = field(default_factory=dict)
    fusable: bool = True
    writes: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One task as a job gets it: a chain is several of them, each fed by the one before.

    Attributes
    ----------
    name
        The task's name in the graph.
    expression
        What it computes.
    inputs
        For each other name that it refers to, the key of the result in the cache.
    """

    name: Hashable
    expression: Expression
    inputs: Mapping[Hashable, str]

    def __reduce__(self) -> tuple[Any, ...]:
        return Step, (self.name, self.expression, self.inputs)


def references(expression: Expression) -> Iterator[Hashable]:
    """Yield the names that an expression refers to outside itself, left to right.

    A name that is referred to twice comes twice. Keyword arguments come in the order of their
    names, so that the order does not depend on how a call was written.
    """
    if isinstance(expression, Ref):
        yield expression.name
    elif isinstance(expression, Call):
        yield from references(expression.function)
        for argument in expression.args:
            yield from references(argument)
        for _, argument in sorted(expression.kwargs.items()):
            yield from references(argument)
    elif isinstance(expression, Build):
        for item in expression.items:
            yield from references(item)
    elif isinstance(expression, Let):
        bound: set[Hashable] = set()
        for name, bound_expression in expression.bindings:
            yield from (n for n in references(bound_expression) if n not in bound)
            bound.add(name)
        yield from (n for n in references(expression.result) if n not in bound)


def evaluate(expression: Expression, values: Mapping[Hashable, Any]) -> Any:
    """Compute an expression.

    Parameters
    ----------
    expression
        What to compute.
    values
        The results of the tasks that it refers to, by name.

    Raises
    ------
    KeyError
        A reference is missing from ``values``.
    """
    if isinstance(expression, Call):
        function = evaluate(expression.function, values)
        args = [evaluate(argument, values) for argument in expression.args]
        kwargs = {name: evaluate(value, values) for name, value in expression.kwargs.items()}
        return function(*args, **kwargs)
    if isinstance(expression, Ref):
        return values[expression.name]
    if isinstance(expression, Build):
        items = [evaluate(item, values) for item in expression.items]
        if expression.kind is dict:
            return dict(zip(items[::2], items[1::2], strict=True))
        return expression.kind(items)
    if isinstance(expression, Let):
        scope = dict(values)
        for name, bound in expression.bindings:
            scope[name] = evaluate(bound, scope)
        return evaluate(expression.result, scope)
    return expression


def _too_short(value: Any, selector: Any, error: IndexError) -> IndexError:
    """Return what tells how many items there are; what was raised, where that cannot be said."""
    try:
        count = len(value)
    except Exception:  # of a class of the user's
        return error
    kind = type(value).__qualname__
    return IndexError(
        f"item {selector!r} is asked for, but the result is a {kind} of {count} item(s): "
        f"split_future(future, n={count}) takes all of them"
    )


def item(value: Any, way: Iterable[Any]) -> Any:
    """Take an item of a result, an item of that, and so on; None has nothing but None in it.

    Parameters
    ----------
    value
        A tuple, a list, a dictionary: whatever can be asked for an item.
    way
        Indices and keys, the outermost first.
    """
    for selector in way:
        if value is None:
            return None
        try:
            value = value[selector]
        except IndexError as error:
            raise _too_short(value, selector, error) from error
        except (LookupError, TypeError) as error:
            error.add_note(f"asked for item {selector!r} of a {type(value).__qualname__}")
            raise
    return value
