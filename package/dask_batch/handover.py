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
5. When all are accepted, and the stewards that look after them when nobody is there, that is
   recorded, and the roots are **released** together.

A queue may be full before all are accepted. Then what it took is one *window*: the rest is left,
which is recorded, so that nobody waits for it. It is defined, and claimed until somebody hands it
over as a run of its own: this client, a steward, or another client that needs it.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask_batch.backends.base import Backend, Job
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claim, Owner, Run
from dask_batch.cache.definitions import DefinitionDraft, write_definitions
from dask_batch.cache.files import make_directory
from dask_batch.errors import MissingEntryError, QueueFullError, SubmissionError
from dask_batch.preparation import PreparedJob
from dask_batch.reread import definition_path
from dask_batch.standing import Standing, Standings, log_stem
from dask_batch.submission import Submission

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
    left
        The keys that a full queue did not take, in the order of the jobs.
    stewards
        The ids of the stewards.
    heir
        The id of the steward that hands over what was left; None if there is none.
    """

    under_way: dict[str, Standing] = field(default_factory=dict)
    run_id: str | None = None
    submitted: list[str] = field(default_factory=list)
    left: tuple[str, ...] = ()
    stewards: tuple[str, ...] = ()
    heir: str | None = None


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
    steward
        Whether stewards are handed over with jobs that may need one.

    Attributes
    ----------
    between
        Called after each job that was accepted: what else is to be done meanwhile.
    """

    def __init__(
        self,
        standings: Standings,
        *,
        common: Mapping[str, Any],
        steward: bool = True,
    ) -> None:
        self.standings = standings
        self.cache = standings.cache
        self.claims = standings.claims
        self.backend: Backend = standings.backend
        self.between: Callable[[], None] = lambda: None
        self._common = common
        self._steward = steward

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
            except QueueFullError as full:
                self._abort(run, "the queue is full")
                definition_path(self.cache, run.id).unlink(missing_ok=True)
                logger.info("%d job(s) wait: %s", len(plan.needed), str(full.output).strip())
                return Handed(plan.under_way, left=tuple(job.key for job in plan.needed))
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
            left = self._left(open_keys)
            survey = self.standings.survey(open_keys - left.keys())
            plan.under_way.update(survey.alive)
            plan.generations.update(survey.generations)
            plan.generations.update(left)
            open_keys -= survey.alive.keys()
            # A job may have published between the two looks.
            open_keys -= self.cache.present(open_keys)
            self._refuse_vanished(open_keys - by_key.keys())
            needed |= open_keys
            level = {key for k in open_keys for key in by_key[k].inputs} - seen
        plan.needed = [job for job in jobs if job.key in needed]
        self._await_strangers(plan)
        return plan

    def _left(self, keys: set[str]) -> dict[str, int]:
        """Return the generation of each key whose claim is on a job that was never accepted."""
        claims = [claim for key in keys if (claim := self.claims.current(key)) is not None]
        logs = {run_id: self.claims.log(run_id) for run_id in {claim.run.id for claim in claims}}
        return {
            claim.key: claim.generation
            for claim in claims
            if claim.job_name in logs[claim.run.id].left and logs[claim.run.id].settled
        }

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
        # Whoever runs one of those again is to know who else waits for it.
        for other in sorted(self._waited_for(plan)):
            self.claims.record(other, {"event": "awaited", "run": run.id})
        submission = Submission(
            self.backend,
            self.claims,
            run,
            self._jobs(run, plan, definition),
            steward=self._steward,
            between=self.between,
        )
        try:
            accepted = submission()
        except SubmissionError as error:
            error.key = dict(run.jobs).get(error.job_name, "")
            raise
        under_way = dict(plan.under_way)
        for index, (name, key) in enumerate(run.jobs):
            if name in accepted.ids:
                under_way[key] = Standing(
                    key,
                    plan.generations[key],
                    run.id,
                    name,
                    accepted.ids[name],
                    self.backend.name,
                    log_stem(self.cache, run.id, index),
                )
        return Handed(
            under_way,
            run.id,
            list(accepted.ids.values()),
            left=tuple(key for name, key in run.jobs if name not in accepted.ids),
            stewards=tuple(accepted.stewards.values()),
            heir=accepted.stewards[accepted.heir] if accepted.heir is not None else None,
        )

    def _waited_for(self, plan: _Plan) -> set[str]:
        """Return the runs for whose jobs some of these wait."""
        needed = {key for job in plan.needed for key in job.inputs}
        return {plan.under_way[key].run_id for key in needed & plan.under_way.keys()}

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

    def _is_repeated(self, standing: Standing) -> bool:
        """Whether a job of an earlier hand-over may be run again after a failure."""
        run = self.claims.run(standing.run_id)
        return self.standings.history.policy(run, standing.key).repeats

    def _jobs(self, run: Run, plan: _Plan, definition: Path) -> list[Job]:
        """Return what the backend gets."""
        logs = log_stem(self.cache, run.id, 0).parent
        make_directory(logs)
        names = {key: name for name, key in run.jobs}
        jobs = []
        for index, job in enumerate(plan.needed):
            above = [plan.under_way[k] for k in sorted(job.inputs & plan.under_way.keys())]
            after = (standing.job_id for standing in above)
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
                    patient=any(self._is_repeated(standing) for standing in above),
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
