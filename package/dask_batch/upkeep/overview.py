"""What a cache's runs have come to, and an end to them: a look from outside, without an engine."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dask_batch.backends import open_backend
from dask_batch.backends.base import JobState, JobStatus
from dask_batch.backends.reach import ends_with_client
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claim, Claims, Run, RunLog
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError, MissingEntryError
from dask_batch.evidence.history import History
from dask_batch.evidence.whereabouts import Askable, Sight, client_lives, sight_of
from dask_batch.verdicts.retry import Ending

__all__ = ["Overview", "RunStatus"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How far a run has come.

    Attributes
    ----------
    run : str
        The run's id.
    backend : str
        The batch system that it was handed to.
    host : str
        The machine of the client that handed it over.
    created : float
        When, in seconds since the epoch.
    finished, failed, running, waiting, unknown : int
        How many of its jobs are in which state. A job that has ended but whose result was asked
        for by a later run counts as what it was; one that has failed and is run again as waiting.
    job_ids : mapping
        The batch system's ids, by job name.
    repeated : int
        How many attempts were made beyond the first of each job.
    """

    run: str
    backend: str
    host: str
    created: float
    finished: int
    failed: int
    running: int
    waiting: int
    unknown: int
    job_ids: Mapping[str, str]
    repeated: int = 0


class Overview:
    """Looks at the runs of a cache, with one backend of each kind.

    Parameters
    ----------
    cache
        Which.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.claims = Claims(cache)
        self._history = History(cache, self.claims)
        self._askable = Askable(open_backend)

    def runs(self) -> list[Run]:
        """Return the runs that were not taken back, oldest first.

        One whose record is damaged, or not ours, is left out, and said.
        """
        runs = []
        for run_id in self.claims.run_ids():
            try:
                run = self.claims.run(run_id)
                aborted = self.claims.log(run_id).aborted
            except MissingEntryError:
                continue  # cleaned in the meantime
            except CacheError as error:
                logger.warning(
                    "run %s is left out: %s. dask_batch.verify(%r) mends what can be mended.",
                    run_id, error, str(self.cache.path),
                )  # fmt: skip
                continue
            if not aborted:
                runs.append(run)
        return sorted(runs, key=lambda run: (run.created, run.id))

    # ---- how far -----------------------------------------------------------------------------

    def status(self, run: Run) -> RunStatus:
        """Count the jobs of a run by what has become of them."""
        log = self.claims.log(run.id)
        claims = self._claims(run)
        counts = dict.fromkeys(("finished", "failed", "running", "waiting", "unknown"), 0)
        for stage in self._stages(run, claims, log).values():
            counts[stage] += 1
        return RunStatus(
            run.id, run.backend, run.owner.host, run.created, **counts, job_ids=dict(log.ids),
            repeated=sum(len(attempts_of) - 1 for attempts_of in claims.values()),
        )  # fmt: skip

    def stages(self, run: Run) -> dict[str, str]:
        """Return of each key of a run what has become of it: a word of :class:`RunStatus`."""
        return self._stages(run, self._claims(run), self.claims.log(run.id))

    def stage(self, claim: Claim) -> str:
        """Return what has become of the task of one claim: a word of :class:`RunStatus`."""
        run, key = claim.run, claim.key
        claims = self._claims(run, [key])
        return self._stages(run, claims, self.claims.log(run.id), [key])[key]

    def _stages(
        self,
        run: Run,
        claims: Mapping[str, list[Claim]],
        log: RunLog,
        keys: Sequence[str] | None = None,
    ) -> dict[str, str]:
        ends = self._ends([key for _, key in run.jobs] if keys is None else keys, claims)
        stages = {key: end or "unknown" for key, end in ends.items()}
        open_claims = [
            claims[key][-1] for key, end in ends.items() if end is None and key in claims
        ]
        states = self._states(run, log, [claim.job_name for claim in open_claims])
        for claim in open_claims:
            state = states.get(claim.job_name)
            if self._is_to_come(claim, log, state):
                stages[claim.key] = "waiting"
            elif state is None and ends_with_client(run.backend):
                stages[claim.key] = self._on_record(claim, log)
            else:
                stages[claim.key] = _counted(state)
        return stages

    def _on_record(self, claim: Claim, log: RunLog) -> str:
        """Tell by the store alone how far a job is that lives in its client's process."""
        if self.cache.check(claim.key):
            return "finished"  # since its end was looked for
        start = attempts.read_start(self.cache, claim.key, claim.generation)
        if start is not None and attempts.starter_alive(start):
            return "running"
        forgotten = sight_of(claim.run) is Sight.SEEN and claim.job_name in log.ids
        lives = False if forgotten else client_lives(claim.run)
        if lives is None:
            return "unknown"
        if not lives:
            return "failed"
        return "waiting" if start is None else "running"

    def _is_to_come(self, claim: Claim, log: RunLog, state: JobState | None) -> bool:
        """Whether a job is to be handed over, or run again, by the run's client or steward."""
        if claim.job_name not in log.ids:
            return claim.job_name in log.left
        if state is None or not state.ended:
            return False
        if attempts.read_end(self.cache, claim.key, claim.generation) is not None:
            return True  # and it is open all the same: see _ends
        return not self._history.is_first(claim) and not _is_repeated(claim, log)

    def _claims(self, run: Run, keys: Sequence[str] | None = None) -> dict[str, list[Claim]]:
        """Return the claims of a run on each of its keys, or on some; none where it has none."""
        found: dict[str, list[Claim]] = {}
        for key in [key for _, key in run.jobs] if keys is None else keys:
            try:
                own = [each for each in self.claims.generations(key) if each.run.id == run.id]
            except CacheError as error:
                logger.warning("who makes %s cannot be told: %s", key[:12], error)
                continue
            if own:
                found[key] = own
        return found

    def _ends(
        self, keys: Sequence[str], claims: Mapping[str, list[Claim]]
    ) -> dict[str, str | None]:
        """Tell of each task whether the store knows its end."""
        published = self.cache.present(keys)
        ended = attempts.ended(self.cache, {k: c[-1].generation for k, c in claims.items()})
        failed = {key for key in ended if not self.goes_on(claims[key][-1])}
        said: dict[str, str | None] = dict.fromkeys(keys)
        said.update(dict.fromkeys(published, "finished"))
        said.update(dict.fromkeys(failed, "failed"))
        return said

    def goes_on(self, claim: Claim) -> bool:
        """Whether an attempt that has failed is to be repeated by its run."""
        if self.claims.superseded(claim.key, claim.generation):
            return False
        end = attempts.read_end(self.cache, claim.key, claim.generation)
        repeat = None if end is None else self._history.decide(claim, Ending.of(end))
        return repeat is not None and not repeat.free

    def _states(self, run: Run, log: RunLog, names: Iterable[str]) -> dict[str, JobState]:
        """Return the states of jobs by name, as far as the batch system knows them."""
        backend = self._askable.of(run)
        ids = {name: log.ids[name] for name in names if name in log.ids}
        if backend is None or not ids:
            return {}
        known = backend.status(list(ids.values()))
        return {
            name: known[job_id].state
            for name, job_id in ids.items()
            if job_id in known and not _is_anothers(known[job_id], name)
        }

    # ---- an end ------------------------------------------------------------------------------

    def cancel(self, run: Run, key: str | None) -> int:
        """End the jobs of a run, or that of one key; return how many were under way."""
        chosen = self.under_way(run, key)
        self.end(run, chosen)
        return len(chosen)

    def under_way(self, run: Run, key: str | None) -> list[tuple[str, str]]:
        """Return the names and keys of a run's jobs that have not ended, or that of one key."""
        ends = self._ends([each for _, each in run.jobs], self._claims(run))
        return [
            (name, each) for name, each in run.jobs if key in (None, each) and ends[each] is None
        ]

    def end(self, run: Run, chosen: Sequence[tuple[str, str]]) -> None:
        """End jobs of a run, by their names and keys."""
        log = self.claims.log(run.id)
        backend = self._askable.of(run)
        ids = {name: log.ids[name] for name, _ in chosen if name in log.ids}
        if backend is not None and ids:
            known = backend.status(list(ids.values()))
            backend.cancel(
                [
                    job_id
                    for name, job_id in ids.items()
                    if job_id not in known or not _is_anothers(known[job_id], name)
                ]
            )
        for name, each in chosen:
            self._end(run, each, log.ids.get(name))

    def _end(self, run: Run, key: str, job_id: str | None) -> None:
        try:
            current = self.claims.current(key)
        except CacheError as error:
            logger.warning("who makes %s cannot be told: %s", key[:12], error)
            return
        if current is None or current.run.id != run.id:
            return
        record = {
            "outcome": "cancelled",
            "message": "it was cancelled",
            "job_id": job_id,
            "concluded_by": "client",
        }
        if attempts.end(self.cache, key, current.generation, record):
            return
        # It has failed and is to be repeated: that attempt is over before it begins.
        mine, claim = self.claims.claim(key, run, after=current.generation)
        if mine:
            attempts.end(self.cache, key, claim.generation, record)

    # ---- backends ----------------------------------------------------------------------------

    def can_ask(self, run: Run) -> bool:
        """Whether there is somebody to ask from here what became of a run's jobs."""
        return self._askable.of(run) is not None

    def close(self) -> None:
        """Let go of the backends."""
        self._askable.close()


def _is_anothers(status: JobStatus, name: str) -> bool:
    """Whether an id is by now another job's: a controller that lost its memory counts anew."""
    return status.name not in ("", name)


def _is_repeated(claim: Claim, log: RunLog) -> bool:
    return any(
        event["event"] == "repeated"
        and event.get("name") == claim.job_name
        and event.get("generation") == claim.generation
        for event in log.events
    )


def _counted(state: JobState | None) -> str:
    if state is None or state in (JobState.UNKNOWN, JobState.LOST):
        return "unknown"
    if state in (JobState.HELD, JobState.WAITING):
        return "waiting"
    if state is JobState.COMPLETED:
        return "finished"
    return "failed" if state.ended else "running"
