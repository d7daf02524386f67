"""Where the keys stand that somebody has claimed: is their job alive, over, or half handed over?"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dask_batch.backends.base import Backend, JobState, JobStatus
from dask_batch.backends.reach import ends_with_client
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claim, Claims, Owner, Run, RunLog
from dask_batch.cache.store import Cache
from dask_batch.evidence.history import History
from dask_batch.evidence.settling import Settling
from dask_batch.evidence.whereabouts import Askable, Sight, sight_of
from dask_batch.job.checks import starter_is_dead
from dask_batch.verdicts.follow import Evidence, judge, signal_of
from dask_batch.verdicts.retry import Ending

__all__ = ["Standing", "Standings", "Survey", "log_stem"]

logger = logging.getLogger(__name__)


_LAG_S = 2.0
"""How long after the first miss a job is looked up again, in seconds."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The job that is under way for a key."""

    key: str
    generation: int
    run_id: str
    job_name: str
    job_id: str | None
    """None where only the store can tell what becomes of it: it runs out of our sight."""
    backend: str
    log_stem: Path


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found about some keys.

    Attributes
    ----------
    alive
        The keys that a job is under way for.
    generations
        For every key that was ever claimed, the highest generation.
    """

    alive: Mapping[str, Standing]
    generations: Mapping[str, int]


def _may_have_a_job(claim: Claim, log: RunLog) -> bool:
    """Whether the job of a claim was handed over: not taken back, nor left by a full queue."""
    return not log.aborted and claim.job_name not in log.left


def log_stem(cache: Cache, run_id: str, index: int) -> Path:
    """Return the path of a job's logs, without ``.out`` or ``.err``."""
    return cache.path / "logs" / run_id / str(index)


class Standings:
    """Finds out where claimed keys stand.

    Parameters
    ----------
    cache, claims
        Where the claims are.
    backend
        The backend of this client.
    open_backend
        Gives the backend of another name, for jobs that a client handed to it; None if this
        machine does not have it.

    Attributes
    ----------
    between
        Called while an answer, or another client, is waited for: what else is to be done meanwhile.
    """

    def __init__(
        self,
        cache: Cache,
        claims: Claims,
        backend: Backend,
        open_backend: Callable[[str], Backend | None],
    ) -> None:
        self.cache = cache
        self.claims = claims
        self.backend = backend
        self.history = History(cache, claims)
        self._askable = Askable(open_backend, own=backend)
        self.between: Callable[[], None] = lambda: None
        self._settling = Settling(claims, self.backend_of, lambda: self.between())

    def survey(self, keys: Iterable[str]) -> Survey:
        """Find out where keys stand whose results are not in the store."""
        claims = {key: claim for key in keys if (claim := self.claims.current(key)) is not None}
        logs = {
            run.id: self.settled(run)
            for run in {claim.run.id: claim.run for claim in claims.values()}.values()
        }
        ended = attempts.ended(self.cache, {k: c.generation for k, c in claims.items()})
        valid = {k: c for k, c in claims.items() if _may_have_a_job(c, logs[c.run.id])}
        alive = self._alive({k: c for k, c in valid.items() if k not in ended}, logs)
        alive.update(self._repeated({k: c for k, c in valid.items() if k in ended}, logs))
        return Survey(alive, {key: claim.generation for key, claim in claims.items()})

    def _repeated(
        self, claims: Mapping[str, Claim], logs: Mapping[str, RunLog]
    ) -> dict[str, Standing]:
        """Of claims on attempts that have failed, return those that their run repeats."""
        found: dict[str, Standing] = {}
        for key, claim in claims.items():
            end = attempts.read_end(self.cache, key, claim.generation)
            job_id = logs[claim.run.id].ids.get(claim.job_name)
            here = claim.run.backend == self.backend.name and sight_of(claim.run) is Sight.SEEN
            if end is None or job_id is None or not here:
                continue
            if self._is_repeated(claim, Ending.of(end)):
                found[key] = self.standing(claim, job_id)
        return found

    def _is_repeated(self, claim: Claim, ending: Ending) -> bool:
        """Whether a run repeats an attempt that ended so, for reasons of the attempt itself.

        What was lost, or fell with an input, is as well made by a new run.
        """
        repeat = self.history.decide(claim, ending)
        return repeat is not None and not repeat.free

    def settled(self, run: Run) -> RunLog:
        """Wait until a run has been released or aborted, as its heir if its owner has died."""
        return self._settling.settled(run)

    # ---- jobs ------------------------------------------------------------------------------

    def _alive(
        self, claims: Mapping[str, Claim], logs: Mapping[str, RunLog]
    ) -> dict[str, Standing]:
        """Of claims on attempts that nobody has seen end, return those whose job is alive."""
        by_run: dict[str, list[Claim]] = {}
        for claim in claims.values():
            by_run.setdefault(claim.run.id, []).append(claim)
        alive: dict[str, Standing] = {}
        for run_id, members in by_run.items():
            run, sight = members[0].run, sight_of(members[0].run)
            if sight is Sight.GONE:
                alive.update(self._not_yet_dead(members))
                continue
            backend = self.backend_of(run)
            if backend is None or sight is Sight.HIDDEN:
                alive.update(self._out_of_sight(members))
                continue
            ids = self._ids(backend, members, logs[run_id])
            states = self._states(backend, list(ids.values()))
            stuck = []
            for claim in members:
                job_id = ids.get(claim.job_name)
                status = states.get(job_id) if job_id is not None else None
                if self._lives(claim, status):
                    alive[claim.key] = self.standing(claim, job_id)
                elif status is not None and status.state is JobState.DEPENDENCY_FAILED:
                    stuck.append(status.job_id)
            if stuck:
                # They may be queued still, and would be for ever.
                self._settling.patiently(backend, functools.partial(backend.cancel, stuck))
        return alive

    def _ids(self, backend: Backend, members: list[Claim], log: RunLog) -> dict[str, str]:
        ids = {c.job_name: log.ids[c.job_name] for c in members if c.job_name in log.ids}
        nameless = [claim.job_name for claim in members if claim.job_name not in ids]
        if nameless:
            ids.update(self._settling.patiently(backend, lambda: backend.find(nameless)))
        return ids

    def _states(self, backend: Backend, ids: Collection[str]) -> dict[str, JobStatus]:
        """Ask for states; what is not known at once is asked for once more, after a lag."""
        states = dict(self._settling.patiently(backend, lambda: backend.status(ids)))
        missing = [job_id for job_id in ids if job_id not in states]
        if missing:
            time.sleep(_LAG_S)
            states.update(self._settling.patiently(backend, lambda: backend.status(missing)))
        return states

    def _lives(self, claim: Claim, status: JobStatus | None) -> bool:
        """Whether an attempt may still publish, or be repeated by its run."""
        if status is not None and status.name and status.name != claim.job_name:
            status = None  # the id has been given to another job since
        if status is not None and not status.state.ended:
            return True
        if status is not None and status.state is JobState.DEPENDENCY_FAILED:
            return self._may_go_on(claim)
        if status is not None and status.state is not JobState.LOST:
            verdict = judge(Evidence(status=status))
            outcome = verdict.outcome.value if verdict is not None else None
            end = {"outcome": outcome, "exit_code": status.exit_code, "signal": signal_of(status)}
            return self._is_repeated(claim, Ending.of(end))
        # The batch system answered, twice, and does not know the job. Only a process on this
        # very host can prove it wrong.
        start = attempts.read_start(self.cache, claim.key, claim.generation)
        return (
            start is not None
            and start["host"] == Owner.current().host
            and not starter_is_dead(start)
        )

    def _may_go_on(self, claim: Claim) -> bool:
        """Whether a job that waits for a failed one waits for one that is being repeated."""
        causes = self.history.causes(claim)
        above = {each.key for each in causes.open}
        return not causes.final and bool(above) and above == self.survey(above).alive.keys()

    def gone(self, standing: Standing) -> bool:
        """Whether a job has ended with the process that handed it over, and only so."""
        if not ends_with_client(standing.backend):
            return False
        run = self.claims.run(standing.run_id)
        start = attempts.read_start(self.cache, standing.key, standing.generation)
        lives = start is not None and attempts.starter_alive(start)
        return sight_of(run) is Sight.GONE and not lives

    def _not_yet_dead(self, members: list[Claim]) -> dict[str, Standing]:
        """Return the jobs whose client has died, and whose own process has not yet."""
        standings = {claim.key: self.standing(claim, None) for claim in members}
        return {key: each for key, each in standings.items() if not self.gone(each)}

    def _out_of_sight(self, members: list[Claim]) -> dict[str, Standing]:
        run = members[0].run
        if ends_with_client(run.backend) and run.owner.alive():
            logger.info(
                "%d task(s) are under way in process %d of this machine: waiting for their results",
                len(members), run.owner.pid,
            )  # fmt: skip
            return {claim.key: self.standing(claim, None) for claim in members}
        logger.warning(
            "%d task(s) are claimed by run %s on the %s backend of %s, which cannot be asked from "
            "here: waiting for their results. If that machine is gone for good, say so with "
            "dask_batch.cancel(%r, run=%r).",
            len(members), run.id, run.backend, run.owner.host, str(self.cache.path), run.id,
        )  # fmt: skip
        return {claim.key: self.standing(claim, None) for claim in members}

    def standing(self, claim: Claim, job_id: str | None) -> Standing:
        """Return the standing of a claim whose job is alive."""
        index = int(claim.job_name.rpartition("-")[2])  # a job's name ends with its index
        return Standing(
            claim.key,
            claim.generation,
            claim.run.id,
            claim.job_name,
            job_id,
            claim.run.backend,
            log_stem(self.cache, claim.run.id, index),
        )

    def backend_of(self, run: Run) -> Backend | None:
        """Return the backend that a run went to; None if it cannot be asked from here."""
        return self._askable.of(run)

    def close(self) -> None:
        """Close the other backends that were opened."""
        self._askable.close()
