"""What the store shows of many attempts at once: which have published, which have left a record."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from dask_batch.cache import attempts
from dask_batch.cache.store import Cache

__all__ = ["Seen", "Sighting"]

logger = logging.getLogger(__name__)

_SAY_S = 300.0
"""How often a store that cannot be read is mentioned."""


@dataclass(slots=True)
class Seen:
    """What a look at the store has shown.

    Attributes
    ----------
    published, ended
        The keys with a result, and those whose attempt has left an end record instead.
    read
        The keys that anything can be said of.
    unread
        Why a part of the store could not be read, by key. Empty where that is true of all of it:
        that says nothing of any key.
    """

    published: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)
    unread: dict[str, Exception] = field(default_factory=dict)


class Sighting:
    """Looks at the store.

    Parameters
    ----------
    cache
        The store.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._dark = False
        self._said = 0.0

    def __call__(self, generations: Mapping[str, int], now: float) -> Seen:
        """Look for results and end records.

        Parameters
        ----------
        generations
            The attempts, by key.
        now
            The monotonic clock.
        """
        seen = Seen()
        try:
            self._look(generations, seen)
        except Exception as error:
            seen = self._in_parts(generations)
            if not seen.read:
                self._unreadable(error, now)
                return Seen()
        self._dark = False
        return seen

    def _look(self, generations: Mapping[str, int], seen: Seen) -> None:
        published = self._cache.present(generations)
        rest = {key: n for key, n in generations.items() if key not in published}
        seen.ended |= attempts.ended(self._cache, rest)
        seen.published |= published
        seen.read |= generations.keys()

    def _in_parts(self, generations: Mapping[str, int]) -> Seen:
        """Look into one directory after the other: one that fails does not hide the others."""
        shards: dict[str, dict[str, int]] = {}
        for key, generation in generations.items():
            shards.setdefault(key[:2], {})[key] = generation
        seen = Seen()
        for shard in shards.values():
            try:
                self._look(shard, seen)
            except Exception as error:
                seen.unread.update(dict.fromkeys(shard, error))
        return seen

    def _unreadable(self, error: Exception, now: float) -> None:
        if not self._dark or now - self._said > _SAY_S:
            self._said = now
            logger.warning(
                "the cache cannot be read now; nothing is concluded from that: %s",
                error,
                exc_info=None if isinstance(error, OSError) else error,
            )
        self._dark = True
