"""The effect of a decision to repeat: the next generation is claimed, and its job run again.

Any client that follows a job, and any steward, may do this; they decide the same from the same
records. The claim on the next generation is atomic, so one of them wins, and what the winner does
then can be done twice without harm. One that dies between the claim and the repetition is replaced
by whoever waits longer than a lease for a sign of it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from dask_batch.backends.base import Backend, JobState
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claim, Claims, Run, RunLog
from dask_batch.cache.store import Cache
from dask_batch.errors import DamagedEntryError, MissingEntryError
from dask_batch.evidence.history import History
from dask_batch.submitting.reread import job_of
from dask_batch.verdicts.retry import resources_of_attempt

__all__ = ["Tending"]

logger = logging.getLogger(__name__)


class Tending:
    """Repeats jobs.

    Parameters
    ----------
    cache, claims, backend
        Where the records are, and who runs the jobs.
    history
        What is on record.
    """

    def __init__(self, cache: Cache, claims: Claims, backend: Backend, history: History) -> None:
        self.cache = cache
        self.claims = claims
        self.backend = backend
        self.history = history

    def begin(self, claim: Claim) -> tuple[Claim, bool]:
        """Claim the attempt after one that has ended and is on record.

        Returns
        -------
        current : Claim
            The claim that counts now: of this run, or of whoever has taken over.
        mine : bool
            Whether it falls to this process to run the job again.
        """
        current = self.claims.current(claim.key)
        if current is None or current.generation < claim.generation:
            current = claim
        if current.generation > claim.generation and not self._given_back(current):
            return current, False
        mine, now = self.claims.claim(claim.key, claim.run, after=current.generation)
        return now, mine

    def _given_back(self, claim: Claim) -> bool:
        """Whether a claim is that of a run that was taken back."""
        return self.claims.log(claim.run.id).aborted

    def rerun(self, claim: Claim, job_id: str) -> str:
        """Run the job of a claimed attempt; return its id, which may be new.

        Does nothing where the attempt has come to an end already.

        Raises
        ------
        BackendError
            It could not be done; it may be tried again.
        """
        run, key = claim.run, claim.key
        over = attempts.read_end(self.cache, key, claim.generation) is not None
        if over or self.cache.present([key]) or self.claims.superseded(key, claim.generation):
            return job_id
        policy, past = self.history.policy(run, key), self.history.past(claim)
        job = job_of(self.cache, self.claims, run, claim.job_name)
        resources = resources_of_attempt(job.resources, policy, past)
        if resources != job.resources:
            job = job_of(self.cache, self.claims, run, claim.job_name, resources=resources)
        new_id = self.backend.rerun(job, job_id, self._dependents(claim, job_id))
        if new_id != job_id:
            self.claims.record_job(run.id, claim.job_name, new_id)
        event = {
            "event": "repeated",
            "name": claim.job_name,
            "generation": claim.generation,
            "id": new_id,
        }
        self.claims.record(run.id, event)
        return new_id

    def reran(self, claim: Claim) -> str | None:
        """Return the id of the job of a repeated attempt, if somebody recorded that it is run."""
        for event in reversed(self.claims.log(claim.run.id).events):
            same = event["event"] == "repeated" and event.get("name") == claim.job_name
            if same and event.get("generation") == claim.generation:
                return str(event.get("id"))
        return None

    def _dependents(self, claim: Claim, job_id: str) -> dict[str, tuple[str, ...]]:
        """Return the queued jobs that wait for one, with all that each waits for.

        They may be of its own run, or of later ones: the next window of a graph, another graph.
        """
        found: dict[str, tuple[str, ...]] = {}
        names: defaultdict[str, set[str]] = defaultdict(set)
        for run, log in self._runs(claim):
            found.update(self._dependents_of(run, log, claim, job_id))
            for name, each in log.ids.items():
                names[each].add(name)
        return {each: found[each] for each in self._still_theirs({i: names[i] for i in found})}

    def _still_theirs(self, names: Mapping[str, Collection[str]]) -> Iterator[str]:
        """Yield the ids that a batch system without memory has not given to other jobs since."""
        said = self.backend.status(list(names)) if names and self.backend.shared else {}
        for job_id, own in names.items():
            status = said.get(job_id)
            gone = status is not None and status.state is JobState.LOST and not status.name
            others = status is not None and bool(status.name) and status.name not in own
            if not (gone or others):
                yield job_id

    def _runs(self, claim: Claim) -> Iterator[tuple[Run, RunLog]]:
        """Yield a run, and the later ones with jobs that wait for some of its jobs."""
        log = self.claims.log(claim.run.id)
        yield claim.run, log
        for run_id in log.awaited:
            try:
                run, later = self.claims.run(run_id), self.claims.log(run_id)
            except (MissingEntryError, DamagedEntryError) as error:
                logger.warning("jobs of run %s may wait in vain: %s", run_id, error)
                continue
            if run.backend == self.backend.name and not later.aborted:
                yield run, later

    def _dependents_of(
        self, run: Run, log: RunLog, claim: Claim, job_id: str
    ) -> dict[str, tuple[str, ...]]:
        names = {key: name for name, key in run.jobs}
        children = self.history.dependents(run, claim.key)
        open_children = self._open(run, children)
        inputs = {key for child in open_children for key in children[child]}
        missing = inputs - self.cache.present(inputs)

        def id_of(key: str) -> str | None:
            if key == claim.key:
                return job_id
            return log.ids[names[key]] if names.get(key) in log.ids else self._elsewhere(key)

        found: dict[str, tuple[str, ...]] = {}
        for child in open_children:
            child_id = log.ids.get(names[child])
            if child_id is not None:
                waits = (id_of(key) for key in children[child] if key in missing)
                found[child_id] = tuple(each for each in waits if each is not None)
        return found

    def _open(self, run: Run, children: dict[str, tuple[str, ...]]) -> list[str]:
        """Return those children that have neither a result nor an end, and are the run's still."""
        there = self.cache.present(children)
        found = []
        for key in children.keys() - there:
            current = self.claims.current(key)
            if current is None or current.run.id != run.id:
                continue
            if attempts.read_end(self.cache, key, current.generation) is None:
                found.append(key)
        return sorted(found)

    def _elsewhere(self, key: str) -> str | None:
        """Return the id of the job of another run that makes a key, on this batch system."""
        current = self.claims.current(key)
        if current is None or current.run.backend != self.backend.name:
            return None
        return self.claims.log(current.run.id).ids.get(current.job_name)
