"""Removing the claims of runs that are over, beside clients that may claim the same keys.

Generations of a key follow one another without a gap, and a client claims the one behind the
highest that it has seen. So claims are removed from the highest downwards, a key's attempts before
its claim (a record of an end that outlived its claim would end the next attempt of that number
before it began). A client that has seen the highest claim before it was removed, and claims the
one behind it after that, leaves a gap: it is looked for after each removal, and at the end, and
filled again.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection
from pathlib import Path

from dask_batch.cache.claims import Claim, Claims
from dask_batch.cache.entries import listed
from dask_batch.cache.store import Cache
from dask_batch.cache.sweeping import Sweep
from dask_batch.errors import DamagedEntryError, MissingEntryError

__all__ = ["fill_gaps", "removable", "unclaim"]

_CLAIM = re.compile(r"([0-9a-f]{64})\.([0-9]+)")


def removable(claims: Claims, over: Collection[str]) -> tuple[set[str], dict[str, list[Claim]]]:
    """Return which of the runs that are over can be removed, and the claims on all their keys.

    A run stays as long as a claim of its own lies below one of a run that stays.
    """
    keys = {run_id: {key for _, key in claims.run(run_id).jobs} for run_id in over}
    standing: dict[str, list[Claim]] = {}
    unclear: set[str] = set()
    for key in set().union(*keys.values()):
        try:
            standing[key] = claims.generations(key)
        except (DamagedEntryError, FileNotFoundError, MissingEntryError):
            unclear.add(key)  # whose claims they are cannot be told now
    runs = {run_id for run_id in over if not keys[run_id] & unclear}
    while True:
        buried = {
            claim.run.id
            for generations in standing.values()
            for claim in generations[: _first_that_goes(generations, runs)]
        }
        if not buried & runs:
            return runs, standing
        runs -= buried


def _first_that_goes(generations: list[Claim], runs: Collection[str]) -> int:
    """Return the lowest generation from which on all claims are of certain runs."""
    first = len(generations)
    while first and generations[first - 1].run.id in runs:
        first -= 1
    return first


def unclaim(sweep: Sweep, generations: list[Claim], runs: Collection[str]) -> None:
    """Remove the claims of runs on one key, with their attempts, from the highest downwards."""
    for claim in reversed(generations[_first_that_goes(generations, runs) :]):
        path = _claim_path(sweep.cache, claim.key, claim.generation)
        if os.path.lexists(_claim_path(sweep.cache, claim.key, claim.generation + 1)) and (
            not sweep.dry_run
        ):
            return  # somebody has claimed the next one since: this one stays below it
        attempts = sweep.cache.path / "attempts" / claim.key[:2]
        for name in listed(attempts):
            if name.startswith(f"{claim.key}.{claim.generation}."):
                sweep.remove(attempts / name, "attempts")
        sweep.remove(path, "claims")
        if not sweep.dry_run and fill_gaps(sweep.cache, [claim.key]):
            return


def fill_gaps(cache: Cache, keys: Collection[str]) -> int:
    """Fill the gaps below claims that were made while others were removed; return how many.

    What fills a gap is a name more of the claim above it.
    """
    filled = 0
    for key in keys:
        numbers = _numbers(cache, key)
        for number in range(max(numbers, default=-1), 0, -1):
            if number - 1 not in numbers:
                above, missing = (_claim_path(cache, key, n) for n in (number, number - 1))
                with contextlib.suppress(FileExistsError, FileNotFoundError):
                    os.link(above, missing, follow_symlinks=False)
                    filled += 1
    return filled


def _numbers(cache: Cache, key: str) -> set[int]:
    shard = cache.path / "claims" / key[:2]
    found = (_CLAIM.fullmatch(name) for name in listed(shard) if name.startswith(key))
    return {int(match[2]) for match in found if match is not None}


def _claim_path(cache: Cache, key: str, generation: int) -> Path:
    return cache.path / "claims" / key[:2] / f"{key}.{generation}"
