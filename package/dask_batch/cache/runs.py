"""The runs of a cache, and what became of their hand-over.

A *run* is one hand-over of jobs. It is written to ``runs/<id>.json`` once, with the names of its
jobs and their keys; what becomes of it is in its log. A record that is damaged is put together
again from what else is known of the run, by whoever first needs it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dask_batch.cache.entries import listed
from dask_batch.cache.files import publish_bytes
from dask_batch.cache.owner import Owner
from dask_batch.cache.records import read_record, seal
from dask_batch.cache.recovery import mend_run, recovered_run
from dask_batch.cache.run import Run
from dask_batch.cache.runlog import NOBODY, RunLog, append_event, heirs, read_log
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError, DamagedEntryError, MissingEntryError

__all__ = ["Runs"]

logger = logging.getLogger(__name__)


class Runs:
    """The runs of a cache, as one client sees and makes them."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._runs: dict[str, Run] = {}
        self._names: dict[str, dict[str, str]] = {}
        self._heir: dict[str, int] = {}
        self._begun: set[str] = set()

    # ---- records ---------------------------------------------------------------------------

    def begin(self, run: Run) -> None:
        """Write a run down, on the disk when this returns, before anything is claimed for it.

        Raises
        ------
        CacheError
            There is one of that id, or it cannot be written.
        """
        record = run.as_record()
        if not publish_bytes(self._run_path(run.id), seal(record)):
            raise CacheError(f"there is a run {run.id} already in {self._cache.path}")
        self._remember(run)
        self._begun.add(run.id)

    def run(self, run_id: str) -> Run:
        """Return a run by its id.

        Raises
        ------
        MissingEntryError
            There is none.
        DamagedEntryError
            Its record is damaged, and so is what it could be put together from.
        """
        if run_id not in self._runs:
            self._remember(self._read_run(run_id))
        return self._runs[run_id]

    def _read_run(self, run_id: str) -> Run:
        path = self._run_path(run_id)
        try:
            return Run.from_record(read_record(path))
        except FileNotFoundError as error:
            raise MissingEntryError(f"there is no run {run_id}") from error
        except DamagedEntryError as error:
            logger.warning("%s; it is put together again from its definitions and its log", error)
            return self._recovered(run_id)

    def _recovered(self, run_id: str) -> Run:
        try:
            return mend_run(self._cache, run_id)
        except DamagedEntryError:
            raise
        except FileNotFoundError as error:
            raise MissingEntryError(f"there is no run {run_id} any more") from error
        except CacheError as error:
            logger.warning("the record of run %s cannot be mended: %s", run_id, error)
            return recovered_run(self._cache, run_id)

    def run_ids(self) -> list[str]:
        """Return the ids of all runs, in their order, which is that of time."""
        names = listed(self._cache.path / "runs")
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def unsettled(self) -> list[Run]:
        """Return the runs whose hand-over never came to an end, oldest first.

        One that nobody can tell anything of is left out, and said.
        """
        names = set(listed(self._cache.path / "runs"))
        ids = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        open_ids = [i for i in ids if f"{i}.settled" not in names and not self.log(i).settled]
        found = []
        for run_id in open_ids:
            try:
                found.append(self.run(run_id))
            except MissingEntryError:
                continue  # cleaned in the meantime
            except DamagedEntryError as error:
                logger.warning("run %s is left as it is: %s", run_id, error)
        return sorted(found, key=lambda run: (run.created, run.id))

    def _run_path(self, run_id: str) -> Path:
        if not run_id or "/" in run_id or "\0" in run_id or run_id.startswith("."):
            raise ValueError(f"not the id of a run: {run_id!r}")
        return self._cache.path / "runs" / f"{run_id}.json"

    def _remember(self, run: Run) -> None:
        self._runs[run.id] = run
        self._names[run.id] = {key: name for name, key in run.jobs}

    # ---- what became of a hand-over --------------------------------------------------------

    def log(self, run_id: str) -> RunLog:
        """Read what was recorded about a run's hand-over, by its owner and its heirs."""
        return read_log(self._run_path(run_id))

    def record_job(self, run_id: str, name: str, job_id: str) -> None:
        """Record that the batch system has accepted a job."""
        self.record(run_id, {"event": "job", "name": name, "id": job_id})

    def record(self, run_id: str, event: Mapping[str, Any]) -> None:
        """Record an event of a hand-over.

        Parameters
        ----------
        run_id
            The run, ours or one that we are the heir of.
        event
            JSON; ``event["event"]`` says what: ``job``, ``steward`` and ``repeated`` (with ``name``
            and ``id``), ``left`` (with ``names``: a full queue did not take them), ``awaited``
            (with the id of a later ``run`` whose jobs wait for some of this one), ``accepted``
            (all others are), ``released``, ``aborted``, ``closed``, ``error``, or anything else,
            which is kept.
        """
        append_event(self._run_path(run_id), event, self._writer(run_id))

    def _writer(self, run_id: str) -> int | None:
        """Return the number under which this process writes about a run; None for its owner."""
        if run_id in self._heir:
            return self._heir[run_id]
        me = Owner.current()
        if run_id in self._begun or self.run(run_id).owner == me:
            return None
        path = self._run_path(run_id)
        for number, holder in heirs(path):
            free = holder is None
            if free and publish_bytes(path.with_suffix(f".heir.{number}"), seal(_plain(me))):
                holder = me
            if holder == me:
                self._heir[run_id] = number
                return number
            if free:
                break
        return self._writer(run_id)  # another one was faster

    def heir(
        self,
        run_id: str,
        owner: Owner,
        *,
        dead: Callable[[Owner], bool] = lambda heir: heir.alive() is False,
    ) -> bool:
        """Become the one that finishes the hand-over of a dead run.

        Parameters
        ----------
        run_id
            The run.
        owner
            Who wants to be it: what is recorded from now on is recorded as this heir.
        dead
            Tells whether an earlier heir is dead, and may be succeeded.

        Returns
        -------
        bool
            False if another process is it, and may be alive.
        """
        path = self._run_path(run_id)
        for number, holder in heirs(path):
            if holder is None:
                if publish_bytes(path.with_suffix(f".heir.{number}"), seal(_plain(owner))):
                    holder = owner
                else:
                    return self.heir(run_id, owner, dead=dead)
            if holder == owner:
                self._heir[run_id] = number
                return True
            if holder != NOBODY and not dead(holder):
                return False
        raise AssertionError("heirs end with a vacancy")


def _plain(owner: Owner) -> dict[str, Any]:
    return dataclasses.asdict(owner)
