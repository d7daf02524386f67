"""What takes the place of a directory on one machine's disk when a bag is grouped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

__all__ = ["Shares"]


class Shares:
    """The members of a bag's partitions by the output that they belong to.

    It has as much of ``partd``'s interface as Dask's functions use, and is a plain value: a job
    that takes a partition apart returns one, and a job that collects an output is given them all.

    Parameters
    ----------
    parts
        Those of other partitions, to be taken together.
    """

    __slots__ = ("_members",)

    def __init__(self, parts: Iterable[Shares] = ()) -> None:
        self._members: defaultdict[Hashable, list[Any]] = defaultdict(list)
        for part in parts:
            self.append(part._members)

    def append(self, groups: Mapping[Hashable, Iterable[Any]], fsync: bool = False) -> None:
        """Add members to outputs; ``fsync`` has no meaning here."""
        for group, members in groups.items():
            self._members[group].extend(members)

    def get(self, group: Hashable, lock: bool = True) -> list[Any]:
        """Return the members of one output; ``lock`` has no meaning here."""
        return self._members.get(group, [])
