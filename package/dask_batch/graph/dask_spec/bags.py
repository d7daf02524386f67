"""Bags that are grouped through a directory of one machine are grouped by results instead.

``bag.groupby(f)`` arrives, unless told otherwise, as tasks that append to a store of ``partd`` on a
disk, a barrier, and tasks that read from it. Jobs share no such disk, and no job may write what is
not its result. The functions are kept as they are: each one that appends is given a store of its
own, which is its result, and each one that reads is given all of these.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence

from dask_batch.graph.dask_spec.nodes import substitute
from dask_batch.job.shares import Shares, SharesOfAll
from dask_batch.spec import Build, Call, Expression, Ref, references

__all__ = ["group_by_results"]

_BARRIER = ("dask.bag.chunk", "barrier")


def group_by_results(bodies: Mapping[Hashable, Expression]) -> dict[Hashable, Expression]:
    """Take the disks out of a graph's bodies, and the barriers that belong to them."""
    mended = dict(bodies)
    for name, body in bodies.items():
        writers = tuple(dict.fromkeys(references(body))) if _is_barrier(body) else ()
        stores = {n for w in writers for n in references(bodies[w]) if _is_store(bodies[n])}
        if stores:
            _exchange(mended, name, writers, stores)
    return mended


def _is_barrier(body: Expression) -> bool:
    function = body.function if isinstance(body, Call) else None
    named = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    return named == _BARRIER


def _exchange(
    bodies: dict[Hashable, Expression],
    barrier: Hashable,
    writers: Sequence[Hashable],
    stores: Collection[Hashable],
) -> None:
    """Give those before a barrier a store each, and those behind it all of them."""
    for name in writers:
        bodies[name] = substitute(bodies[name], dict.fromkeys(stores, Call(Shares)))
    written = Build(list, tuple(map(Ref, writers)))
    instead = {**dict.fromkeys(stores, Call(SharesOfAll, (written,))), barrier: None}
    for name, body in bodies.items():
        if not instead.keys().isdisjoint(references(body)):
            bodies[name] = substitute(body, instead)
    for name in (*stores, barrier):
        del bodies[name]


def _is_store(body: Expression) -> bool:
    """Whether a task makes a store of partd, perhaps by a partial of one of its classes."""
    function = body.function if isinstance(body, Call) else None
    function = getattr(function, "func", function)
    return str(getattr(function, "__module__", "")).partition(".")[0] == "partd"
