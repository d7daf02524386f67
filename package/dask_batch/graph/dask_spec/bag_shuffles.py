"""``Bag.groupby`` through a local disk becomes one that passes results between jobs.

Dask makes a file on a disk (``partd``), lets every partition append to it, waits at a barrier, and
lets every output read its share. Here what a partition would append is its result, the barrier is
the list of these, and an output is collected from that list. Dask's own functions do the work:
they are given another object to append to and to read from. Either end of the shuffle may have
been fused with what comes before it or after it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeAlias

from dask_batch.job.shares import Shares
from dask_batch.spec import Build, Call, Expression, Let, Ref

__all__ = ["mend_bags"]

_Rule: TypeAlias = Callable[[Call], Expression]


def mend_bags(bodies: Mapping[Hashable, Expression]) -> dict[Hashable, Expression]:
    """Exchange every shuffle of a bag through a disk for one through results."""
    files: set[Hashable] = set()

    def note(call: Call) -> Call:
        if _is(call, "dask.bag.core", "partition"):
            files.add(call.args[3].name)
        return call

    for body in bodies.values():
        _rewritten(body, note)
    if not files:
        return dict(bodies)
    barriers = {
        name: Build(list, body.args)
        for name, body in bodies.items()
        if isinstance(body, Call) and _is(body, "dask.bag.chunk", "barrier")
    }

    def exchange(call: Call) -> Expression:
        if _is(call, "dask.bag.core", "partition"):
            grouper, sequence, count, _, size = call.args
            return Call(call.function, (grouper, sequence, count, Call(Shares), size))
        if _is(call, "dask.bag.chunk", "barrier"):
            return Build(list, call.args)
        if _is(call, "dask.bag.core", "collect"):
            grouper, group, _, barrier = call.args
            shares = barriers.get(barrier.name, barrier) if isinstance(barrier, Ref) else barrier
            return Call(call.function, (grouper, group, Call(Shares, (shares,)), None))
        return call

    return {
        name: _rewritten(body, exchange)
        for name, body in bodies.items()
        if name not in files and name not in barriers
    }


def _is(call: Call, module: str, name: str) -> bool:
    return (
        getattr(call.function, "__name__", None) == name
        and getattr(call.function, "__module__", None) == module
    )


def _rewritten(body: Expression, rule: _Rule) -> Expression:
    """Apply a rule to the call that a task is, or to those that were fused into it."""
    if isinstance(body, Call):
        return rule(body)
    if isinstance(body, Let):
        bindings = tuple((name, _rewritten(bound, rule)) for name, bound in body.bindings)
        return Let(bindings, body.result, body.origins)
    return body
