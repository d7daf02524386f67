"""One future becomes several: the items of what a call will have returned."""

from __future__ import annotations

import concurrent.futures
import operator
from typing import Any

from dask_batch.items import ItemFuture

__all__ = ["get_item_from_future", "split_future"]


def split_future(future: concurrent.futures.Future[Any], n: int) -> list[ItemFuture]:
    """Split the future of a tuple or a list.

    Parameters
    ----------
    future
        The future of a call that returns a tuple or a list.
    n
        How many items it has.

    Returns
    -------
    list of ItemFuture
        The futures of its first ``n`` items. Each may stand anywhere in the arguments of another
        call, which then waits for the same job.

    Raises
    ------
    TypeError, ValueError
        ``future`` is none, or ``n`` is no number of items.

    Examples
    --------
    >>> low, high = split_future(exe.submit(bounds, data), n=2)  # doctest: +SKIP
    >>> exe.submit(scale, data, low, high)  # doctest: +SKIP
    """
    _check(future)
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(f"n must be the number of items, not {n!r}") from None
    if count < 0:
        raise ValueError(f"n must not be negative, not {n!r}")
    return [ItemFuture(future, index) for index in range(count)]


def get_item_from_future(future: concurrent.futures.Future[Any], key: Any) -> ItemFuture:
    """Return the future of one item of a dictionary.

    Parameters
    ----------
    future
        The future of a call that returns a dictionary.
    key
        Which item.

    Raises
    ------
    TypeError
        ``future`` is none.
    """
    _check(future)
    return ItemFuture(future, key)


def _check(future: object) -> None:
    if not isinstance(future, concurrent.futures.Future):
        raise TypeError(f"must be a future, not {future!r}")
