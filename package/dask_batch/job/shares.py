"""What Dask takes for a store on disk when a bag is grouped: the parts of results.

The task that sorts one partition of the bag into the groups' partitions fills :class:`Shares`, and
that is its result. The task that collects a partition reads it from :class:`SharesOfAll`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

__all__ = ["Shares", "SharesOfAll"]


class Shares(dict[Hashable, list[Any]]):
    """What goes to which partition, with the ``append`` that a store has."""

    def append(self, data: Mapping[Hashable, Iterable[Any]], **_: Any) -> None:
        """Add items to partitions; there is nothing to flush."""
        for partition, items in data.items():
            self.setdefault(partition, []).extend(items)


class SharesOfAll:
    """All shares of a bag, with the ``get`` that a store has.

    Parameters
    ----------
    parts
        What was made of each partition of the bag, in their order.
    """

    def __init__(self, parts: Iterable[Mapping[Hashable, list[Any]]]) -> None:
        self._parts = tuple(parts)

    def get(self, partition: Hashable, **_: Any) -> list[Any]:
        """Return all items of a partition."""
        return [item for part in self._parts for item in part.get(partition, ())]
