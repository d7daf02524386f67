"""DataFrame shuffles that need a local disk or live workers become shuffles made of tasks.

Which kind of shuffle an expression gets is decided when it is lowered, and that happens before a
scheduler sees it: ``disk`` by default (a temporary directory of one node), ``p2p`` when a
``distributed`` client is around (data pass between live workers). Jobs of a batch system share
neither. The nodes take the same operands, so they can still be exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

__all__ = ["mend_expression"]

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

    def from_disk(node: Any) -> Any:
        return _shuffle.TaskShuffle(*node.operands)

    def from_workers(node: Any) -> Any:
        # Only a p2p shuffle may have more partitions going in than coming out.
        frame, *others = node.operands
        if node.npartitions_out < frame.npartitions:
            frame = Repartition(frame, new_partitions=node.npartitions_out)
        return _shuffle.TaskShuffle(frame, *others)

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
