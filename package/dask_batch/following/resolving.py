"""The end of a key: futures resolve or fail, and with a failure all that depends on it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from dask_batch.cache import attempts
from dask_batch.errors import CacheError, TaskError
from dask_batch.following.entries import Entry, Observer
from dask_batch.following.giving_up import GivingUp
from dask_batch.following.sweep import Sweep
from dask_batch.future import BatchFuture
from dask_batch.verdicts.failures import dependency_failure, failure_of
from dask_batch.verdicts.follow import Outcome, Verdict, signal_of

if TYPE_CHECKING:
    from dask_batch.following.watch import Watch

__all__ = ["Resolving"]

logger = logging.getLogger(__name__)

_SMALL_BYTES = 1 << 20
"""An entry so large is read for a callback that may have no use for it."""


class Resolving:
    """Acts on final verdicts.

    Parameters
    ----------
    watch
        Whose entries they are about.
    giving_up
        What judges whole hand-overs.
    sweep
        What ends jobs that can never start.
    """

    def __init__(self, watch: Watch, giving_up: GivingUp, sweep: Sweep) -> None:
        self._watch = watch
        self._cache = watch.cache
        self._sweep = sweep
        self._giving_up = giving_up

    # ---- what others are told --------------------------------------------------------------

    def note_start(self, key: str, entry: Entry) -> None:
        """Let it be seen that a task runs."""
        if entry.started:
            return
        entry.started = True
        for future in entry.futures:
            if not future.done() and not future.running():
                future.set_running_or_notify_cancel()
        self.tell(entry.observers, "started", key)

    def tell(
        self, observers: Iterable[Observer], event: Literal["started", "finished"], key: str
    ) -> None:
        """Tell observers; their mistakes are theirs."""
        for observe in observers:
            _guarded(functools.partial(observe, event, key))

    def succeed(self, future: BatchFuture) -> None:
        """Resolve a future with what is in the cache.

        A caller's callback gets a small value as it would get one of a thread pool: at once, so
        that it has run when whoever waits for the value goes on.
        """
        load = functools.partial(self._cache.load, future.key, mode="copy")
        if future.is_heard and self._is_small(future.key):
            try:
                value = load()
            except BaseException:
                logger.debug("%s is read when it is asked for", future.key, exc_info=True)
            else:
                _guarded(functools.partial(future._resolve, value))
                return
        _guarded(functools.partial(future._resolve_from, load))

    def _is_small(self, key: str) -> bool:
        try:
            return self._cache.path_of(key).stat().st_size <= _SMALL_BYTES
        except OSError:
            return False

    def fail_all(self, entry: Entry, error: BaseException) -> None:
        """Fail the futures of an entry."""
        for future in entry.futures:
            _guarded(functools.partial(future._fail, error))

    # ---- ends ------------------------------------------------------------------------------

    def finish(self, key: str, entry: Entry) -> None:
        """Resolve what waits for a result that is there."""
        self.note_start(key, entry)
        self._watch.drop(key, entry)
        self._giving_up.worked(entry)
        self.tell(entry.observers, "finished", key)
        for future in entry.futures:
            self.succeed(future)

    def fail(
        self,
        key: str,
        entry: Entry,
        verdict: Verdict,
        end: dict[str, Any],
        cause: BaseException | None = None,
    ) -> None:
        """Fail the futures of a task, and everything here that depends on it.

        Parameters
        ----------
        key, entry, verdict, end
            The task, the final verdict, and the end record.
        cause
            For a task that fell with another one, that one's failure.
        """
        standing = entry.standing
        if entry.never_starts:
            self._sweep.add(entry)
        if cause is not None:
            root, function = str(end.get("root") or ""), str(end.get("root_function") or "")
            fallen = dependency_failure(
                cause, key=key, function=entry.function, root=root, root_function=function,
                job_id=standing.job_id,
            )  # fmt: skip
            self._fell(key, entry, fallen)
            self._fail_children(entry, cause, root=root, root_function=function)
            return
        error = failure_of(
            verdict, key=key, function=entry.function, job_id=standing.job_id,
            state=_state(entry, end),
            log=standing.log_stem.with_suffix(".err"), end=end,
            cut=attempts.read_cut(self._cache, key, standing.generation),
            unbegun=entry.status.unbegun if entry.status is not None else None,
        )  # fmt: skip
        self._fell(key, entry, error)
        self._fail_children(entry, error, root=key, root_function=entry.function)
        if self._giving_up.fell(entry, verdict, end):
            self._give_up(standing.run_id, error)

    def end_job(self, entry: Entry) -> None:
        """Have the job of an entry ended, whatever it is at."""
        self._sweep.add(entry)

    def not_found_out(self, key: str, entry: Entry, error: Exception) -> None:
        """Give up finding out what became of a task: nothing is recorded about it."""
        failure = TaskError(
            f"{entry.function or 'a task'}: what became of it cannot be found out: {error!r}",
            key=key,
            function=entry.function,
            job_id=entry.standing.job_id,
            evidence="none: reading its records failed again and again",
            log=entry.standing.log_stem.with_suffix(".err"),
            advice="See that the cache directory can be read, and compute again: what has "
            "finished is not repeated.",
        )
        failure.__cause__ = error
        self._watch.drop(key, entry)
        self.fail_all(entry, failure)

    def _fell(self, key: str, entry: Entry, error: BaseException) -> None:
        self._watch.drop(key, entry)
        self.fail_all(entry, error)

    def _fail_children(
        self, failed: Entry, cause: BaseException, *, root: str, root_function: str
    ) -> None:
        level = list(failed.children)
        while level:
            below: list[str] = []
            there = self._cache.present(level)
            for key in level:
                entry = self._watch.entries.get(key)
                if entry is None:
                    continue
                if key in there:
                    self.finish(key, entry)
                    continue
                error = dependency_failure(
                    cause, key=key, function=entry.function, root=root,
                    root_function=root_function, job_id=entry.standing.job_id,
                )  # fmt: skip
                self.record(entry, Verdict(Outcome.DEPENDENCY, error.message), root=root)
                # It may be waiting for ever: nothing but its parents' success would let it go.
                self._sweep.add(entry)
                self._watch.drop(key, entry)
                self.fail_all(entry, error)
                below.extend(entry.children)
            level = below

    # ---- records ---------------------------------------------------------------------------

    def record(self, entry: Entry, verdict: Verdict, *, root: str = "") -> bool:
        """Leave a verdict for the clients that come later, if the job itself left none.

        Returns False if the job, or another client, has come first. Where the cache cannot be
        written (a full disk) those who come later have to find out for themselves: who waits here
        is told all the same.
        """
        standing, status = entry.standing, entry.status
        record = {
            "outcome": verdict.outcome.value,
            "message": verdict.message,
            "evidence": verdict.evidence,
            "function": entry.function,
            "job_id": standing.job_id,
            "state": status.word if status is not None else "",
            "exit_code": status.exit_code if status is not None else None,
            "signal": signal_of(status) if status is not None else None,
            "root": root,
            "concluded_by": "client",
        }
        try:
            return attempts.end(self._cache, standing.key, standing.generation, record)
        except CacheError as error:
            logger.warning(
                "what became of %s (%s) cannot be recorded: %s",
                entry.function, standing.key[:12], error,
            )  # fmt: skip
            return True

    def _give_up(self, run_id: str, cause: BaseException) -> None:
        """End what is left of a hand-over whose first jobs have all died of one cause."""

        def fail(key: str, entry: Entry, error: TaskError) -> None:
            self.record(entry, Verdict(Outcome.GIVEN_UP, error.message, error.evidence))
            self._sweep.add(entry)
            self._fell(key, entry, error)

        self._giving_up(run_id, cause, fail)
        if self._watch.given_up is not None:
            _guarded(functools.partial(self._watch.given_up, run_id, cause))


def _state(entry: Entry, end: dict[str, Any]) -> str:
    """Return the word for the state of a failed job.

    What the batch system said before the job's own record came (*running*) is out of date.
    """
    status = entry.status
    if status is not None and status.state.ended:
        return status.word or status.state.value
    return str(end.get("state") or "")


def _guarded(call: Callable[[], object]) -> None:
    """Call what belongs to others: whatever it raises, the engine's thread goes on."""
    try:
        call()
    except BaseException:
        logger.exception("a callback failed; the jobs and the other futures do not depend on it")
