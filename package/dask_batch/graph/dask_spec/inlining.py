"""Which tasks are no jobs of their own, but run where their results are read."""

from __future__ import annotations

import inspect
import operator

from dask_batch.spec import Call, Expression, Ref

__all__ = ["runs_where_read", "takes_a_share"]


def runs_where_read(body: Expression) -> bool:
    """Whether a task makes a generator: it is no result, it works as it is read."""
    return isinstance(body, Call) and inspect.isgeneratorfunction(body.function)


def takes_a_share(body: Expression) -> bool:
    """Whether a task only picks one of the things that another one returned.

    A shuffle of n partitions takes n shares of each of its n parts. A job that does so reads the
    whole part; so does a job that is given the part, and there is one of those, not n.
    """
    if not isinstance(body, Call) or body.kwargs or len(body.args) < 2:
        return False
    if body.function is not operator.getitem and body.function is not dict.get:
        return False
    whole, which, *_ = body.args
    return isinstance(whole, Ref) and _is_number(which)


def _is_number(which: Expression) -> bool:
    if type(which) is tuple:
        return bool(which) and all(type(part) is int for part in which)
    return type(which) is int
