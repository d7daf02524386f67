"""DataFrame shuffles that need a local disk or live workers become shuffles made of tasks.

Which kind of shuffle an expression gets is decided when it is lowered, and that happens before a
scheduler sees it: ``disk`` by default (a temporary directory of one node), ``p2p`` when a
``distributed`` client is around (data pass between live workers). Jobs of a batch system share
neither. The nodes take the same operands, so they can still be exchanged.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final, TypeAlias

from dask_batch.errors import GraphError
from dask_batch.graph.dask_spec.bags import group_by_results
from dask_batch.spec import Build, Call, Expression, Ref

__all__ = ["mend_expression", "mend_tasks"]

_EXPRESSIONS: Final = "dask.dataframe.dask_expr._shuffle"

Rule: TypeAlias = Callable[[Any], Any]


def mend_expression(expression: Any) -> Any:
    """Exchange every disk or p2p shuffle in a lowered expression for one made of tasks.

    The names of the output keys change; their order does not.
    """
    if not type(expression).__module__.startswith("dask.dataframe."):
        return expression  # and Dask's dataframes need not be installed
    mended = _exchange(expression, _rules(), {})
    return expression if mended is expression else mended.lower_completely()


def _exchange(node: Any, rules: Mapping[type, Rule], done: dict[str, Any]) -> Any:
    """Rebuild an expression from its leaves up; what holds no shuffle stays the same object."""
    from dask._expr import Expr

    if not isinstance(node, Expr):
        return node
    if type(node).__name__ == "Fused":
        # Optimised before it was handed over; what was fused is fused again, later.
        top = node.exprs[0]
        rebuilt = _exchange(top, rules, done)
        return node if rebuilt is top else rebuilt
    if node._name not in done:
        operands = [_exchange(operand, rules, done) for operand in node.operands]
        changed = any(new is not old for new, old in zip(operands, node.operands, strict=True))
        rebuilt = type(node)(*operands) if changed else node
        rule = rules.get(type(node))
        done[node._name] = rebuilt if rule is None else rule(rebuilt)
    return done[node._name]


def _rules() -> Mapping[type, Rule]:
    from dask.dataframe.dask_expr import _merge, _shuffle
    from dask.dataframe.dask_expr._expr import Partitions
    from dask.dataframe.dask_expr._repartition import Repartition

    def by_tasks(node: Any, frame: Any) -> Any:
        # A shuffle of tasks would heed ``ignore_index``; the others keep the index all the same.
        names = type(node)._parameters
        given = dict(zip(names, node.operands, strict=True))
        return _shuffle.TaskShuffle(**{**given, "frame": frame, "ignore_index": False})

    def from_disk(node: Any) -> Any:
        return by_tasks(node, node.frame)

    def from_workers(node: Any) -> Any:
        # Only a p2p shuffle may have more partitions going in than coming out.
        frame = node.frame
        if node.npartitions_out < frame.npartitions:
            frame = Repartition(frame, new_partitions=node.npartitions_out)
        # It also drops the column that it shuffles by.
        return by_tasks(node, frame)[list(node.columns)]

    def from_join(node: Any) -> Any:
        names = [n for n in _merge.Merge._parameters if n in type(node)._parameters]
        given = {name: node.operand(name) for name in names}
        join = _merge.Merge(**given, shuffle_method="tasks")
        chosen = node.operand("_partitions")
        return join if chosen is None else Partitions(join, list(chosen))

    return {
        _shuffle.DiskShuffle: from_disk,
        _shuffle.P2PShuffle: from_workers,
        _merge.HashJoinP2P: from_join,
    }


def mend_tasks(bodies: Mapping[Hashable, Expression]) -> dict[Hashable, Expression]:
    """Exchange disk shuffles that have already become tasks.

    Those of bags always have; those of DataFrames have when they are computed together with arrays
    or bags. Each partition of these is split into a dictionary, and an output takes its share of
    every dictionary.

    Raises
    ------
    GraphError
        A shuffle is left that jobs cannot do.
    """
    splits: dict[Hashable, list[Hashable]] = {}
    for name, body in bodies.items():
        if _is(body, _EXPRESSIONS, "DiskShuffle._shuffle_group"):
            splits.setdefault(body.args[3].name, []).append(name)
    mended = group_by_results(bodies)
    for name, body in bodies.items() if splits else ():
        if _is(body, _EXPRESSIONS, "DiskShuffle._shuffle_group"):
            mended[name] = _split(name, body)
        elif _is(body, "dask.dataframe.shuffle", "collect") and body.args[0].name in splits:
            mended[name] = _gather(splits[body.args[0].name], body.args[1])
        elif _is(body, "dask.dataframe.shuffle", "barrier") or name in splits:
            del mended[name]
    for name, body in mended.items():
        _check(name, body)
    return mended


def _is(body: Expression, module: str, name: str) -> bool:
    function = body.function if isinstance(body, Call) else None
    return (
        getattr(function, "__qualname__", None) == name
        and getattr(function, "__module__", None) == module
    )


def _split(name: Hashable, body: Call) -> Call:
    from dask.dataframe.dask_expr._shuffle import SimpleShuffle

    frame, column, partitions, _ = body.args
    count = len(partitions)
    if list(partitions) != list(range(count)):
        raise GraphError(
            f"the task {name!r} shuffles through a disk for a few partitions only, and its "
            f"DataFrame is computed together with other collections. Compute it by itself, or set "
            f"dask.config.set({{'dataframe.shuffle.method': 'tasks'}}) before"
        )
    return Call(SimpleShuffle._shuffle_group, (frame, None, column, 0, count, count, False, count))


def _gather(splits: list[Hashable], partition: int) -> Call:
    from dask.dataframe.core import _concat

    shares = tuple(Call(operator.getitem, (Ref(split), partition)) for split in splits)
    return Call(_concat, (Build(list, shares), False))


def _check(name: Hashable, body: Expression) -> None:
    """Refuse what passes data by other ways than results."""
    function = body.function if isinstance(body, Call) else None
    while isinstance(function, functools.partial):
        function = function.func
    module = getattr(function, "__module__", None) or type(function).__module__
    if module.partition(".")[0] == "partd":
        raise GraphError(
            f"the task {name!r} shuffles through a directory on one machine's disk, which jobs do "
            f"not share. Ask for tasks instead: bag.groupby(..., shuffle='tasks')"
        )
    if module.startswith("distributed.shuffle"):
        raise GraphError(
            f"the task {name!r} passes data between live workers of dask.distributed, which jobs "
            f"are not. Set dask.config.set({{'dataframe.shuffle.method': 'tasks', "
            f"'array.rechunk.method': 'tasks'}}) before the computation is built"
        )
