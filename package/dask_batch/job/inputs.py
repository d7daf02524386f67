"""What a task needs from the store: waited for where the file system is late, then loaded."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError, DamagedEntryError, MissingEntryError
from dask_batch.job import checks
from dask_batch.job.endings import EndedError
from dask_batch.spec import item

__all__ = ["Inputs"]

_POLL_S = 0.5


class Inputs:
    """The results that one attempt loads.

    Parameters
    ----------
    cache
        Where they are.
    claims
        The attempts that they come from, as far as those were under way: key and generation.
    grace_s
        How long after now one may take to be seen, in seconds.
    """

    def __init__(self, cache: Cache, claims: Mapping[str, int], grace_s: float) -> None:
        self._cache = cache
        self._claims = claims
        self._grace_s = grace_s
        self._deadline = time.monotonic() + grace_s
        self._referenced: dict[str, Any] = {}

    def wait(self, keys: Iterable[str]) -> None:
        """Return when all are in the store.

        Raises
        ------
        EndedError
            One never will be.
        """
        missing = set(keys)
        while True:
            missing -= self._cache.present(missing)
            if not missing:
                return
            for key in sorted(missing):
                root = checks.failed_input(self._cache, key, self._claims.get(key))
                if root is not None:
                    raise EndedError("dependency", root.message, root=root.key, missing=[key])
            if time.monotonic() >= self._deadline:
                raise self._too_late(missing)
            time.sleep(_POLL_S)

    def _too_late(self, missing: set[str]) -> EndedError:
        key = min(missing)
        return EndedError(
            "dependency",
            f"the input {key[:12]} is not in the cache, {self._grace_s:g} s after this job "
            "started; where the file system shows new files later than that, raise input_grace_s",
            root=key,
            missing=sorted(missing),
        )

    def load(self, key: str) -> Any:
        """Return the result of a key.

        Raises
        ------
        EndedError
            It is damaged, or not to be seen any more.
        """
        while True:
            try:
                return self._cache.load(key, mode="map")
            except DamagedEntryError as error:
                raise EndedError(
                    "dependency", f"an input cannot be read: {error}", root=key, missing=[key]
                ) from error
            except MissingEntryError as error:
                # It was there: a late file system shows the old and the new by turns.
                if time.monotonic() >= self._deadline:
                    raise self._too_late({key}) from error
            time.sleep(_POLL_S)

    def referenced(self, reference: Any) -> Any:
        """Resolve what a definition does not hold itself: results, their items, large arguments."""
        kind, key, *rest = reference
        if kind not in ("result", "item"):
            raise CacheError(f"an unknown reference in a task definition: {kind!r}")
        if key not in self._referenced:
            self._referenced[key] = self.load(key)
        whole = self._referenced[key]
        return item(whole, rest[0]) if kind == "item" else whole
