"""What tells tasks of equal content apart: their block index, or else an ordinal.

``delayed(sample)()`` ten times is ten samples: equal content, other names. Names cannot enter a
key, they change from run to run; the block index of a collection's task can, and where there is
none, tasks are numbered in the order of a walk that depends on the graph's structure alone.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from numbers import Integral
from typing import Any, Final

__all__ = ["Ordinals", "block_index"]


def block_index(name: Hashable) -> tuple[int, ...]:
    """Return the block index in a task's name: the integers behind its first item."""
    return tuple(_integers(name[1:])) if isinstance(name, tuple) else ()


def _integers(items: tuple[Any, ...]) -> Iterator[int]:
    for item in items:
        if isinstance(item, tuple):
            yield from _integers(item)
        elif isinstance(item, Integral):
            yield int(item)


class Ordinals:
    """Numbers tasks of equal content, within one graph.

    A name keeps its ordinal for the life of the process, so that computing one of ten samples
    later gives the same sample, unless a task visited before it has taken that ordinal.
    """

    # Of ordinals other than 0: a name that is not remembered gets the lowest that is free.
    _remembered: Final[dict[tuple[bytes, Hashable], int]] = {}
    _lock: Final = threading.Lock()

    def __init__(self) -> None:
        self._taken: dict[bytes, set[int]] = {}
        self._lowest: dict[bytes, int] = {}
        self._given: dict[tuple[bytes, Hashable], int] = {}

    def of(self, content: bytes, name: Hashable) -> int:
        """Return the ordinal of a task, to be asked for in the order of the walk."""
        identity = content, name
        known = self._given.get(identity)
        if known is not None:
            return known  # fused into several tasks, it is still one
        taken = self._taken.setdefault(content, set())
        with self._lock:
            ordinal = self._remembered.get(identity)
            if ordinal is None or ordinal in taken:
                ordinal = self._lowest_free(content, taken)
                if ordinal:
                    self._remembered.setdefault(identity, ordinal)
        taken.add(ordinal)
        self._given[identity] = ordinal
        return ordinal

    def _lowest_free(self, content: bytes, taken: set[int]) -> int:
        ordinal = self._lowest.get(content, 0)
        while ordinal in taken:
            ordinal += 1
        self._lowest[content] = ordinal
        return ordinal
