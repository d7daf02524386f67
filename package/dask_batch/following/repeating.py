"""What follows from a failed attempt: one more, another run's, or the end."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from dask_batch.backends.reach import ends_with_client
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claim
from dask_batch.evidence.history import Causes, History
from dask_batch.evidence.standing import Standing, Standings
from dask_batch.following.entries import Entry
from dask_batch.following.resolving import Resolving
from dask_batch.following.tending import Tending
from dask_batch.verdicts.diagnosis import diagnose
from dask_batch.verdicts.failures import Fallen, failure_of
from dask_batch.verdicts.follow import Evidence, Outcome, Verdict, judge, signal_of
from dask_batch.verdicts.retry import Ending
from dask_batch.verdicts.tail import tail_of

if TYPE_CHECKING:
    from dask_batch.following.watch import Watch

__all__ = ["Repeating"]

logger = logging.getLogger(__name__)

_FELL = "the job never started: one that it waits for did not succeed"


class Repeating:
    """Acts on provisional verdicts.

    Parameters
    ----------
    watch
        Whose entries they are about.
    standings, history, tending
        Where jobs stand, what is on record, and what repeats them.
    resolving
        Acts on what is final.
    """

    def __init__(
        self,
        watch: Watch,
        standings: Standings,
        history: History,
        tending: Tending,
        resolving: Resolving,
    ) -> None:
        self._watch = watch
        self._cache = watch.cache
        self._claims = standings.claims
        self._standings = standings
        self._history = history
        self._tending = tending
        self._resolving = resolving

    # ---- failures --------------------------------------------------------------------------

    def failed(self, key: str, entry: Entry, verdict: Verdict, end: dict[str, Any] | None) -> None:
        """Act on the failure of an attempt."""
        claim = self.claim(entry)
        if claim.generation > entry.standing.generation:
            self.adopt(entry, claim)
            return
        causes = self._causes(claim, verdict, end)
        if causes is not None and not causes.final and self._follow(key, entry, causes):
            return
        if causes is not None and causes.final and end is None:
            verdict = Verdict(Outcome.DEPENDENCY, _FELL, verdict.evidence)
        if end is None:
            verdict = self._diagnosed(entry, verdict)
            root = causes.failed.key if causes is not None and causes.failed is not None else ""
            if not self._resolving.record(entry, verdict, root=root):
                return  # the job's own record, or another client's, has come first: it counts
            end = attempts.read_end(self._cache, key, entry.standing.generation) or {}
        if self._repeated(entry, claim, verdict, end, causes):
            return
        self._end(key, entry, verdict, end, causes)

    def _causes(self, claim: Claim, verdict: Verdict, end: dict[str, Any] | None) -> Causes | None:
        """Ask why the inputs are not there, if the task may have fallen with one of them."""
        if verdict.outcome is Outcome.DEPENDENCY:
            return self._history.causes(claim)
        if verdict.outcome is Outcome.CANCELLED and end is None:
            # Slurm's accounting calls so, too, what it removed because a parent failed.
            causes = self._history.causes(claim)
            unknown = any(each.key not in self._watch.entries for each in causes.open)
            return causes if causes.final or unknown else None
        return None

    def claim(self, entry: Entry) -> Claim:
        """Return the claim that counts now for a key."""
        standing = entry.standing
        current = self._claims.current(standing.key)
        if current is None or self._claims.log(current.run.id).aborted:
            run = self._claims.run(standing.run_id)
            return Claim(standing.key, standing.generation, run, standing.job_name)
        return current

    def _diagnosed(self, entry: Entry, verdict: Verdict) -> Verdict:
        """Look for what the batch system's word leaves open in the log."""
        status = entry.status
        if verdict.outcome not in (Outcome.DIED, Outcome.NO_OUTPUT) or status is None:
            return verdict
        standing = entry.standing
        start = attempts.read_start(self._cache, standing.key, standing.generation)
        log = standing.log_stem.with_suffix(".err")
        found = diagnose(
            *(tail_of(log), status.exit_code, signal_of(status)),
            started=start is not None,
            reason=status.reason,
        )
        if found is None:
            return verdict
        return Verdict(*found, f"{verdict.evidence}; exit code and log say why")

    def _follow(self, key: str, entry: Entry, causes: Causes) -> bool:
        """Follow what a task waits for and this client did not know of; True if there is any."""
        for claim in causes.open:
            if claim.key not in self._watch.entries:
                ids = self._claims.log(claim.run.id).ids
                function = self._history.function(claim.run, claim.key)
                standing = self._standings.standing(claim, ids.get(claim.job_name))
                self._watch.follow(standing, function)
        for claim in causes.open:
            self._watch.link(claim.key, self._history.inputs(claim.run, claim.key))
        self._watch.link(key, [claim.key for claim in causes.open])
        return bool(causes.open)

    # ---- one more attempt ------------------------------------------------------------------

    def _repeated(
        self,
        entry: Entry,
        claim: Claim,
        verdict: Verdict,
        end: dict[str, Any],
        causes: Causes | None,
    ) -> bool:
        """Begin one more attempt, if there is to be one."""
        standing = entry.standing
        here = standing.backend == self._watch.backend.name and standing.job_id is not None
        if not here or not self._history.header(claim.run, claim.key):
            entry.course.verdict = verdict
            return False
        repeat = entry.course.settle(
            verdict,
            Ending.of(end),
            self._history.policy(claim.run, claim.key),
            self._history.past(claim),
            inputs_failed=causes is not None and causes.final,
        )
        if repeat is None:
            return False
        current, mine = self._tending.begin(claim)
        logger.info(
            "%s (%s, job %s) is %s: %s",
            entry.function, standing.key[:12], standing.job_id,
            "run again" if mine else "being run again by another process", repeat.why,
        )  # fmt: skip
        self.adopt(entry, current, mine=mine)
        return True

    def adopt(self, entry: Entry, claim: Claim, *, mine: bool = False) -> None:
        """Follow a later attempt, of the same run or of one that has taken over."""
        old = entry.standing
        if claim.run.id == old.run_id:
            lease_s = 0.0 if mine else self._watch.pace.lease_s
            entry.advance(claim.generation, act_at=time.monotonic() + lease_s)
        else:
            job_id = self._claims.log(claim.run.id).ids.get(claim.job_name)
            entry.move(self._standings.standing(claim, job_id))
            self._watch.taken_over(entry.standing)
            logger.info("%s (%s) is now made by run %s", entry.function, old.key[:12], claim.run.id)
        self._watch.known[old.key] = entry.standing
        self._watch.hasten()

    # ---- the end ---------------------------------------------------------------------------

    def not_repeated(self, entry: Entry, why: str) -> None:
        """Let a failure be final although it was to be repeated."""
        past = self._history.past(self.claim(entry))
        outcome = past[-1] if past else Outcome.DIED
        verdict = Verdict(outcome, f"its attempt failed ({outcome.value}), and {why}")
        entry.course.verdict = verdict
        self._resolving.record(entry, verdict)
        key = entry.standing.key
        end = attempts.read_end(self._cache, key, entry.standing.generation) or {}
        self._end(key, entry, verdict, end, None)

    def _end(
        self, key: str, entry: Entry, verdict: Verdict, end: dict[str, Any], causes: Causes | None
    ) -> None:
        """Let a failure be final."""
        self._stop(entry, end)
        if causes is not None and causes.failed is not None:
            failed = causes.failed
            end = {
                **end,
                "root": failed.key,
                "root_function": self._history.function(failed.run, failed.key),
            }
            self._resolving.fail(key, entry, verdict, end, self._failure(failed))
        else:
            self._resolving.fail(key, entry, verdict, end)

    def _stop(self, entry: Entry, end: dict[str, Any]) -> None:
        """End a job that lives in this process, and that another one has cancelled on record."""
        backend, standing = self._watch.backend, entry.standing
        cancelled = end.get("outcome") == "cancelled" and end.get("concluded_by") == "client"
        mine = standing.backend == backend.name and ends_with_client(backend.name)
        if cancelled and mine and standing.job_id is not None:
            backend.cancel([standing.job_id])

    def on_record(self, key: str) -> Fallen | None:
        """Return the failure of a task that is not under way any more; None if there is none."""
        claim = self._claims.current(key)
        if claim is None:
            return None
        end = attempts.read_end(self._cache, key, claim.generation)
        if end is None:
            return None
        root = str(end.get("root") or key)
        first = self._claims.current(root) or claim
        return Fallen(self._failure(claim), root, self._history.function(first.run, root))

    def _failure(self, claim: Claim) -> BaseException:
        """Return the failure of a task that is not under way any more, as its end record has it."""
        end = attempts.read_end(self._cache, claim.key, claim.generation) or {}
        verdict = judge(Evidence(end=end)) or Verdict(Outcome.DIED)
        standing: Standing = self._standings.standing(claim, None)
        return failure_of(
            verdict,
            key=claim.key,
            function=str(end.get("function") or self._history.function(claim.run, claim.key)),
            job_id=str(end.get("job_id") or "") or None,
            state=str(end.get("state") or ""),
            log=standing.log_stem.with_suffix(".err"),
            end=end,
        )
