"""What is on record about the attempts at a key: policy, endings so far, inputs, causes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dask_batch.cache import attempts
from dask_batch.cache.claims import Claim, Claims, Run
from dask_batch.cache.definitions import read_definition
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError
from dask_batch.verdicts.follow import Outcome
from dask_batch.verdicts.retry import Ending, Repeat, RetryPolicy, decide

__all__ = ["Causes", "History"]

logger = logging.getLogger(__name__)

_KEPT_RUNS = 16
"""The headers of so many runs are kept: they never change."""


@dataclass(frozen=True, slots=True)
class Causes:
    """Why the inputs of a task are not there.

    Attributes
    ----------
    failed
        The claim on an attempt that has failed for good, if there is one.
    open
        The claims on attempts that may still come to a result.
    vanished
        An input that nobody makes and that is not in the cache.
    """

    failed: Claim | None
    open: tuple[Claim, ...]
    vanished: str | None = None

    @property
    def final(self) -> bool:
        """Whether the inputs will never be complete."""
        return self.failed is not None or self.vanished is not None


class History:
    """Reads the records of a cache; keeps nothing that can change.

    Parameters
    ----------
    cache, claims
        Where they are.
    """

    def __init__(self, cache: Cache, claims: Claims) -> None:
        self.cache = cache
        self.claims = claims
        self._headers: dict[str, dict[str, Mapping[str, Any]]] = {}

    # ---- definitions -------------------------------------------------------------------------

    def header(self, run: Run, key: str) -> Mapping[str, Any]:
        """Return the header of a task's definition; empty where it cannot be read."""
        known = self._known(run)
        if key not in known:
            index = next((i for i, (_, each) in enumerate(run.jobs) if each == key), None)
            known[key] = {} if index is None else self._read(run, index)
        return known[key]

    def headers(self, run: Run) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield key and header of every task of a run."""
        known = self._known(run)
        for index, (_, key) in enumerate(run.jobs):
            if key not in known:
                known[key] = self._read(run, index)
            yield key, known[key]

    def _known(self, run: Run) -> dict[str, Mapping[str, Any]]:
        if run.id not in self._headers and len(self._headers) >= _KEPT_RUNS:
            del self._headers[next(iter(self._headers))]
        return self._headers.setdefault(run.id, {})

    def _read(self, run: Run, index: int) -> Mapping[str, Any]:
        path = self.cache.path / "definitions" / f"{run.id}.h5"
        try:
            return read_definition(path, index).header
        except CacheError as error:
            # Without its definition a job cannot be repeated: what happened is final.
            logger.warning("the definitions of run %s cannot be read: %s", run.id, error)
            return {}

    def policy(self, run: Run, key: str) -> RetryPolicy:
        """Return how a task is repeated."""
        return RetryPolicy.from_header(self.header(run, key))

    def function(self, run: Run, key: str) -> str:
        """Return the name of a task's function."""
        return str((self.header(run, key).get("attributes") or {}).get("function") or "")

    def inputs(self, run: Run, key: str) -> tuple[str, ...]:
        """Return the keys of the results that a task loads."""
        return tuple(self.header(run, key).get("inputs") or ())

    def dependents(self, run: Run, key: str) -> dict[str, tuple[str, ...]]:
        """Return which tasks of a run load the result of a key, each with all that it loads."""
        return {
            each: tuple(header.get("inputs") or ())
            for each, header in self.headers(run)
            if key in (header.get("inputs") or ())
        }

    # ---- attempts ----------------------------------------------------------------------------

    def past(self, claim: Claim) -> list[Outcome]:
        """Return how the earlier attempts of the same run at a key ended."""
        ends = [
            attempts.read_end(self.cache, each.key, each.generation)
            for each in self._earlier(claim)
        ]
        return [Ending.of(end).outcome for end in ends if end is not None]

    def is_first(self, claim: Claim) -> bool:
        """Whether an attempt is the first one of its run."""
        return not self._earlier(claim)

    def _earlier(self, claim: Claim) -> list[Claim]:
        """Return the claims of the same run on earlier attempts."""
        earlier = self.claims.generations(claim.key)[: claim.generation]
        return [each for each in earlier if each.run.id == claim.run.id]

    def decide(self, claim: Claim, ending: Ending) -> Repeat | None:
        """Decide whether an attempt that ended so is repeated by its run.

        *Dependency* must mean that its inputs have not really failed: see :meth:`causes`.
        """
        if not self.header(claim.run, claim.key):
            return None
        return decide(ending, self.policy(claim.run, claim.key), self.past(claim))

    # ---- causes ------------------------------------------------------------------------------

    def causes(self, claim: Claim) -> Causes:
        """Find out why the inputs of a task are not there: what failed first, or is under way."""
        found: list[Claim] = []
        seen: set[str] = set()
        stack = list(self.inputs(claim.run, claim.key))
        while stack:
            missing = set(stack) - seen
            seen |= missing
            missing -= self.cache.present(missing)
            stack = []
            for key in sorted(missing):
                above = self.claims.current(key)
                if above is None:
                    return Causes(None, (), vanished=key)
                end = attempts.read_end(self.cache, key, above.generation)
                ending = None if end is None else Ending.of(end)
                if ending is not None and ending.outcome is Outcome.DEPENDENCY:
                    stack += self.inputs(above.run, key)
                elif ending is not None and self.decide(above, ending) is None:
                    return Causes(above, ())
                found.append(above)
        return Causes(None, tuple(found))
