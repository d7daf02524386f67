"""Looking after a cache: is all of it whole, and what of it is not needed any more?"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dask_batch.backends.registry import open_backend
from dask_batch.cache.housekeeping import file_system_time
from dask_batch.cache.inspection import Finding, inspect
from dask_batch.cache.mending import mend
from dask_batch.cache.store import Cache
from dask_batch.cache.sweeping import Sweep
from dask_batch.configuration.config import resolve
from dask_batch.errors import ConfigurationError
from dask_batch.upkeep.cleaning import Choice, Cleaning
from dask_batch.upkeep.finished import Finished

__all__ = ["CacheReport", "CleanReport", "clean", "verify"]

_KEEP = datetime.timedelta(days=7)


# ---- verify ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CacheReport:
    """What was found in a cache.

    Attributes
    ----------
    path : Path
        The cache directory.
    counts : mapping
        How many files of each section (``results``, ``definitions``, ``runs``, ...) are whole.
    size_bytes : int
        Of all files.
    damaged : tuple of Finding
        What is truncated or altered: each has ``path``, ``section``, ``size`` and ``reason``.
    unsafe : tuple of Finding
        What belongs to somebody else, or others may write.
    unreadable : tuple of Finding
        What the file system did not give just now.
    stray : tuple of Finding
        What is no file of a cache.
    temporary : int
        How many private files there are, of living writers or dead ones.
    mended : tuple of Path
        The damaged files that were set aside, to be computed again, or put together again.
    """

    path: Path
    counts: Mapping[str, int]
    size_bytes: int
    damaged: tuple[Finding, ...]
    unsafe: tuple[Finding, ...]
    unreadable: tuple[Finding, ...]
    stray: tuple[Finding, ...]
    temporary: int
    mended: tuple[Path, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged, unsafe or unreadable."""
        return not (self.damaged or self.unsafe or self.unreadable)

    def __str__(self) -> str:
        whole = ", ".join(f"{count} {section}" for section, count in self.counts.items())
        lines = [f"{self.path}: {whole or 'empty'}; {self.size_bytes:,} bytes"]
        for problem in ("damaged", "unsafe", "unreadable", "stray"):
            found: tuple[Finding, ...] = getattr(self, problem)
            lines += [f"  {problem}: {f.path.relative_to(self.path)}: {f.reason}" for f in found]
        lines += [f"  mended: {path.relative_to(self.path)}" for path in self.mended]
        return "\n".join(lines)


def verify(cache_directory: str | Path | None = None, *, repair: bool = True) -> CacheReport:
    """Read all of a cache, and say what is wrong with it.

    Parameters
    ----------
    cache_directory
        The cache; default as in the configuration.
    repair
        Set damaged results aside, so that they are computed again when they are asked for, as
        everyone does who comes across one; and put damaged records of runs together again from
        what else is known of them. If false, only tell.

    Returns
    -------
    CacheReport
        Printed, it tells all that was found.

    Notes
    -----
    Every byte of every result is read. Other clients and jobs may go on meanwhile.

    Examples
    --------
    >>> report = verify("cache")  # doctest: +SKIP
    >>> report.ok, report.counts["results"]  # doctest: +SKIP
    (True, 120)
    """
    cache = Cache(resolve(cache_directory=cache_directory).cache_directory, create=False)
    by_problem: dict[str | None, list[Finding]] = {}
    for finding in inspect(cache.path):
        by_problem.setdefault(finding.problem, []).append(finding)
    damaged = tuple(by_problem.get("damaged", ()))
    return CacheReport(
        path=cache.path,
        counts=dict(Counter(finding.section for finding in by_problem.get(None, ()))),
        size_bytes=sum(finding.size for found in by_problem.values() for finding in found),
        damaged=damaged,
        unsafe=tuple(by_problem.get("unsafe", ())),
        unreadable=tuple(by_problem.get("unreadable", ())),
        stray=tuple(by_problem.get("stray", ())),
        temporary=len(by_problem.get("temporary", ())),
        mended=mend(cache, damaged) if repair else (),
    )


# ---- clean -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CleanReport:
    """What a clean-up did.

    Attributes
    ----------
    removed : mapping
        How many files of each kind were removed: ``temporary``, ``results``, ``arguments``,
        ``claims``, ``attempts``, ``definitions``, ``logs``, ``runs``, ``names``, ``damaged``,
        ``retired``, ``checkpoints``, ``ranks``, ``workers``, ``environments``.
    freed_bytes : int
        Their size.
    kept_runs : mapping
        The runs that were kept, and why.
    dry_run : bool
        Whether nothing was removed, only reckoned.
    """

    removed: Mapping[str, int]
    freed_bytes: int
    kept_runs: Mapping[str, str]
    dry_run: bool

    def __str__(self) -> str:
        what = ", ".join(f"{count} {kind}" for kind, count in sorted(self.removed.items()))
        verb = "would be removed" if self.dry_run else "were removed"
        lines = [f"{what or 'no files'} {verb}: {self.freed_bytes:,} bytes"]
        lines += [f"  kept: run {run}: {reason}" for run, reason in self.kept_runs.items()]
        return "\n".join(lines)


def clean(
    cache_directory: str | Path | None = None,
    *,
    keep: float | datetime.timedelta = _KEEP,
    older_than: float | datetime.timedelta | None = None,
    functions: str | Iterable[str] | None = None,
    keys: str | Iterable[str] | None = None,
    dry_run: bool = False,
) -> CleanReport:
    """Remove from a cache what nobody needs any more, beside clients and jobs at work.

    Always removed are the temporary files of writers that have died, checkpoints of tasks that have
    a result, environments that were written for jobs of runs that are over, and, once they are
    older than ``keep``: claims, attempts, definitions and logs of runs that are over, large
    arguments that no unfinished run refers to, names without a result, what the long-lived workers
    of clients that are gone have left, and what has been set aside as damaged or retired. Results
    are removed by choice alone.

    Parameters
    ----------
    cache_directory
        The cache; default as in the configuration.
    keep
        How long what is over is kept, in seconds or as a :class:`datetime.timedelta`.
    older_than
        Remove also results that were made longer ago than this (and meet the other choices).
    functions
        Remove also results of functions of these names.
    keys
        Remove also the results of these keys.
    dry_run
        Remove nothing; only tell what would be removed.

    Returns
    -------
    CleanReport
        What was removed, and which runs were kept, and why.

    Raises
    ------
    CacheError
        The cache cannot be read.

    Notes
    -----
    Never removed is what a job that may still run needs. Whether it may is asked of its batch
    system; where that cannot be asked from here, a run counts as over when nothing has been heard
    of it for 30 days. What a dead client left half handed over is first finished or taken back.

    Examples
    --------
    >>> print(clean("cache", functions="simulate", older_than=90 * 24 * 3600))  # doctest: +SKIP
    """
    cache = Cache(resolve(cache_directory=cache_directory).cache_directory, create=False)
    choice = Choice(_seconds(older_than), _several(functions), _several(keys))
    for key in choice.keys or ():
        cache.path_of(key)  # refuses what is no key
    keep_s = _seconds(keep) or 0.0
    sweep = Sweep(cache, file_system_time(cache.path), dry_run=dry_run)
    finished = Finished(cache, sweep.now, keep_s, open_backend, inherit=not dry_run)
    try:
        kept = Cleaning(sweep, finished, keep_s).run(choice)
    finally:
        finished.close()
    removed = {kind: count for kind, count in sweep.removed.items() if count}
    return CleanReport(removed, sweep.freed_bytes, kept, dry_run)


def _seconds(span: float | datetime.timedelta | None) -> float | None:
    if span is None:
        return None
    seconds = span.total_seconds() if isinstance(span, datetime.timedelta) else float(span)
    if not seconds >= 0:
        raise ConfigurationError(f"{span!r} is not a span of time: give seconds, or a timedelta")
    return seconds


def _several(names: str | Iterable[str] | None) -> frozenset[str] | None:
    if names is None:
        return None
    return frozenset((names,) if isinstance(names, str) else names)
