"""The hand-over of prepared jobs: claim, define, submit, record, release.

The order is what makes it safe to die anywhere in between:

1. The **run** is written: who hands over, under which job names.
2. Each key is **claimed**, in the order of the keys: of two clients with the same graph one gets
   all claims, the other loses at the first one they share, gives up its own and waits. (Those who
   claim in one common order cannot wait for each other in a circle.)
3. The **definitions** are written, whole.
4. The jobs are **submitted**, roots held, and their ids recorded. A client that dies here leaves
   jobs that nobody lets go; the next client that needs one of the keys becomes the *heir* of the
   run, finds by the unique names what was accepted, and releases or cancels it.
5. When all are accepted, that is recorded, and the roots are **released** together.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask_batch.backends.base import Backend, Job
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claim, Owner, Run
from dask_batch.cache.definitions import DefinitionDraft, write_definitions
from dask_batch.cache.files import make_directory
from dask_batch.errors import MissingEntryError, SubmissionError
from dask_batch.preparation import PreparedJob
from dask_batch.standing import Standing, Standings, log_stem

__all__ = ["HandOver", "Handed"]

logger = logging.getLogger(__name__)

_LOOK_S = 0.5
_NAME_LENGTH = 40


@dataclass(slots=True)
class Handed:
    """What a hand-over came to.

    Attributes
    ----------
    under_way
        The job of each key that is not in the store yet: submitted now, or found alive.
    run_id
        The run that was submitted; None if nothing had to be.
    submitted
        The ids of the jobs that were submitted.
    """

    under_way: dict[str, Standing] = field(default_factory=dict)
    run_id: str | None = None
    submitted: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Plan:
    """What of some jobs has to be submitted, and what stands already."""

    needed: list[PreparedJob]
    under_way: dict[str, Standing]
    generations: dict[str, int]


class HandOver:
    """Hands prepared jobs to a batch system.

    Parameters
    ----------
    standings
        The cache, the claims and the backend.
    common
        What all jobs of all runs share, as JSON data.
    """

    def __init__(
        self,
        standings: Standings,
        *,
        common: Mapping[str, Any],
    ) -> None:
        self.standings = standings
        self.cache = standings.cache
        self.claims = standings.claims
        self.backend: Backend = standings.backend
        self._common = common

    def __call__(self, jobs: Sequence[PreparedJob], pending: Mapping[str, Standing]) -> Handed:
        """Hand over what has to run.

        Parameters
        ----------
        jobs
            In an order in which parents come first.
        pending
            The jobs that this client follows already, by key.

        Raises
        ------
        SubmissionError
            A job was refused. Nothing of this hand-over runs.
        MissingEntryError
            A result that a job needs has vanished from the cache.
        """
        while True:
            plan = self._plan(jobs, pending)
            if not plan.needed:
                return Handed(plan.under_way)
            run = self._run(plan.needed)
            self.claims.begin(run)
            try:
                other = self._claim(run, plan)
                if other is None:
                    return self._submit(run, plan)
            except BaseException:
                # Nobody must take the claims for live ones, as long as this process is.
                self._abort(run, "it could not be handed over")
                raise
            self._abort(run, f"run {other.run.id} was first")
            self.standings.settled(other.run)

    # ---- what has to run -------------------------------------------------------------------

    def _plan(self, jobs: Sequence[PreparedJob], pending: Mapping[str, Standing]) -> _Plan:
        """Go from the wanted jobs downwards and stop at what is there or under way."""
        by_key = {job.key: job for job in jobs}
        plan = _Plan([], {}, {})
        needed: set[str] = set()
        seen: set[str] = set()
        level = {job.key for job in jobs if job.wanted}
        while level:
            seen |= level
            plan.under_way.update((key, pending[key]) for key in level & pending.keys())
            open_keys = level - pending.keys()
            open_keys -= self.cache.present(open_keys)
            survey = self.standings.survey(open_keys)
            plan.under_way.update(survey.alive)
            plan.generations.update(survey.generations)
            open_keys -= survey.alive.keys()
            # A job may have published between the two looks.
            open_keys -= self.cache.present(open_keys)
            self._refuse_vanished(open_keys - by_key.keys())
            needed |= open_keys
            level = {key for k in open_keys for key in by_key[k].inputs} - seen
        plan.needed = [job for job in jobs if job.key in needed]
        self._await_strangers(plan)
        return plan

    def _refuse_vanished(self, keys: set[str]) -> None:
        if keys:
            raise MissingEntryError(
                f"{len(keys)} result(s) that these tasks need have vanished from "
                f"{self.cache.path}, {min(keys)[:12]} among them: compute again"
            )

    def _await_strangers(self, plan: _Plan) -> None:
        """Wait for results of jobs that our batch system cannot wait for.

        A job on another backend has no id that ours could depend on, so what needs its result is
        handed over once it is there.
        """
        strangers = {
            key: standing
            for key, standing in plan.under_way.items()
            if standing.backend != self.backend.name or standing.job_id is None
        }
        needed = {key for job in plan.needed for key in job.inputs}
        waiting = strangers.keys() & needed
        while waiting:
            time.sleep(_LOOK_S)
            done = self.cache.present(waiting)
            ended = attempts.ended(self.cache, {k: strangers[k].generation for k in waiting})
            for key in done | ended:
                del plan.under_way[key]
            waiting -= done | ended

    # ---- claims ----------------------------------------------------------------------------

    def _run(self, jobs: Sequence[PreparedJob]) -> Run:
        # Sortable by eye, unique among clients that begin in the same second.
        run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        return Run(
            id=run_id,
            owner=Owner.current(),
            backend=self.backend.name,
            created=time.time(),
            jobs=tuple(
                (f"{_safe_name(job)}-{run_id}-{index}", job.key) for index, job in enumerate(jobs)
            ),
        )

    def _claim(self, run: Run, plan: _Plan) -> Claim | None:
        """Claim every key; return the claim of another run that was first, if any."""
        for key in sorted(job.key for job in plan.needed):
            mine, claim = self.claims.claim(key, run, after=plan.generations.get(key, -1))
            if not mine:
                return claim
            plan.generations[key] = claim.generation
        return None

    # ---- submission ------------------------------------------------------------------------

    def _submit(self, run: Run, plan: _Plan) -> Handed:
        definition = self._define(run, plan)
        jobs = self._jobs(run, plan, definition)
        names = dict(run.jobs)
        ids: dict[str, str] = {}

        def accepted(name: str, job_id: str) -> None:
            ids[name] = job_id
            self.claims.record_job(run.id, name, job_id)

        try:
            self.backend.submit(jobs, accepted)
            self.claims.record(run.id, {"event": "accepted"})
            self.backend.release([ids[job.name] for job in jobs if not job.parents])
        except BaseException as error:
            self._take_back(run, list(ids.values()))
            if isinstance(error, SubmissionError):
                error.key = names.get(error.job_name, "")
            raise
        self.claims.record(run.id, {"event": "released"})
        under_way = dict(plan.under_way)
        for index, (name, key) in enumerate(run.jobs):
            under_way[key] = Standing(
                key,
                plan.generations[key],
                run.id,
                name,
                ids[name],
                self.backend.name,
                log_stem(self.cache, run.id, index),
            )
        return Handed(under_way, run.id, [ids[name] for name in names])

    def _take_back(self, run: Run, ids: list[str]) -> None:
        """Leave nothing of a hand-over that did not succeed."""
        try:
            self.backend.cancel(ids)
        finally:
            self._abort(run, "it could not be submitted")

    def _abort(self, run: Run, reason: str) -> None:
        """Give up the claims of a run."""
        if not self.claims.log(run.id).aborted:
            self.claims.record(run.id, {"event": "aborted", "reason": reason})

    def _define(self, run: Run, plan: _Plan) -> Path:
        """Write the task definitions."""
        surroundings, resources = _Table(), _Table()
        drafts = []
        for job in plan.needed:
            header = {
                **job.header,
                "key": job.key,
                "generation": plan.generations[job.key],
                "inputs": sorted(job.inputs),
                "input_claims": self._input_claims(job, plan),
                "surroundings": surroundings.index(job.surroundings.record()),
                "resources": resources.index(dict(job.resources)),
                "preload": list(job.preload),
                "wanted": job.wanted,
            }
            drafts.append(DefinitionDraft(header, job.payload))
        common = {
            **self._common,
            "run": run.id,
            "surroundings": surroundings.records,
            "resources": resources.records,
        }
        return write_definitions(self.cache, run.id, common, drafts)

    def _input_claims(self, job: PreparedJob, plan: _Plan) -> dict[str, int]:
        """Return the attempts that inputs come from: they tell why one is not there."""
        claims = {key: plan.generations[key] for key in job.inputs & plan.generations.keys()}
        for key in job.inputs & plan.under_way.keys():
            claims[key] = plan.under_way[key].generation
        return claims

    def _jobs(self, run: Run, plan: _Plan, definition: Path) -> list[Job]:
        """Return what the backend gets."""
        logs = log_stem(self.cache, run.id, 0).parent
        make_directory(logs)
        names = {key: name for name, key in run.jobs}
        jobs = []
        for index, job in enumerate(plan.needed):
            after = (plan.under_way[k].job_id for k in sorted(job.inputs & plan.under_way.keys()))
            jobs.append(
                Job(
                    name=names[job.key],
                    definition=definition,
                    index=index,
                    resources=job.resources,
                    parents=tuple(names[k] for k in sorted(job.inputs & names.keys())),
                    after=tuple(job_id for job_id in after if job_id is not None),
                    log_directory=logs,
                    working_directory=job.surroundings.working_directory,
                    environment=job.surroundings.environment,
                    preload=job.preload,
                    repeatable=job.repeatable,
                )
            )
        return jobs


class _Table:
    """Distinct records: most jobs of a run have the same, which is written once."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self._places: dict[str, int] = {}

    def index(self, record: dict[str, Any]) -> int:
        """Return the place of a record."""
        text = json.dumps(record, sort_keys=True)
        if text not in self._places:
            self._places[text] = len(self.records)
            self.records.append(record)
        return self._places[text]


def _safe_name(job: PreparedJob) -> str:
    """Return a name for people in the letters that every batch system keeps as they are."""
    wished = job.resources.get("job_name") or job.function
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", str(wished)).strip("_.-")
    return safe[:_NAME_LENGTH] or "task"
