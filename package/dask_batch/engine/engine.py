"""The engine: where both doors meet. It takes prepared jobs, hands them over, and follows them.

One thread does all of it, so there is one order of events and nothing to lock between them::

    requests ──> hand over ──> watch: look, judge, resolve futures
                                 ^                        │
                                 └─ wait (a wake ends it)─┘

Whatever goes wrong in this thread reaches the futures: an engine never falls silent.
"""

from __future__ import annotations

import atexit
import functools
import logging
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from dask_batch.backends.base import Backend
from dask_batch.backends.reach import ends_with_client
from dask_batch.cache.store import Cache
from dask_batch.engine.backlog import Backlog
from dask_batch.engine.intake import Intake
from dask_batch.engine.orphans import Orphans
from dask_batch.engine.request import Request
from dask_batch.following.watch import Watch
from dask_batch.future import BatchFuture
from dask_batch.submitting.handover import HandOver, Interrupted

__all__ = ["Engine"]

logger = logging.getLogger(__name__)

_BETWEEN_S = 0.5
"""So often what is under way is looked at, at most, while more is being handed over."""
_GATHER_S = 0.01
"""Calls of ``submit`` that come within this time share one hand-over."""


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_ending = threading.Event()
"""Set when the interpreter ends: what an engine thread meets with then is nobody's concern."""


@atexit.register
def _hand_over_the_rest() -> None:
    """Hand over what was asked for in the last moments of a script that just ends.

    Jobs that would end with this process, or lose their cache with it, are waited for, as those of
    the standard library are.
    """
    engines = list(_engines)
    for engine in engines:
        engine.flush()
        if engine.outlasts or ends_with_client(engine.backend.name):
            engine.outlast()
    for engine in engines:
        engine.ended()
    _ending.set()


class Engine:
    """Runs prepared jobs on one backend, for one cache.

    Parameters
    ----------
    hand_over
        Hands prepared jobs over.
    watch
        Follows them.

    Attributes
    ----------
    ended
        Called in the end, when nothing is under way any more; at the end of this process, when that
        has been waited for as far as it is.
    outlasts
        Whether this process does not end before its jobs have.
    """

    def __init__(self, hand_over: HandOver, watch: Watch) -> None:
        self.backend: Backend = watch.backend
        self.cache: Cache = watch.cache
        self._hand_over = hand_over
        self._watch = watch
        self._backlog = Backlog(watch, hand_over.standings)
        self._take_in = Intake(hand_over, watch, self._backlog)
        self._take_over = Orphans(watch, hand_over.standings, hand_over)
        self._requests: list[Request] = []
        self._commands: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._busy = False
        self._closing = False
        self._thread: threading.Thread | None = None
        self._between_looks = 0.0
        self._leaving = False
        self.ended: Callable[[], None] = lambda: None
        self.outlasts = False
        hand_over.between = self._between
        hand_over.meanwhile = self._meanwhile
        watch.given_up = self._given_up
        _engines.add(self)

    # ---- for any thread --------------------------------------------------------------------

    def request(self, request: Request) -> None:
        """Take a request. Its futures resolve, or fail, whatever happens."""
        self.check_time()
        with self._changed:
            if self._closing:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._requests.append(request)
            self._ensure_thread()
            self._changed.notify_all()
        self.backend.wake()

    @staticmethod
    def check_time() -> None:
        """Raise if it is too late for anything to be handed over: the interpreter ends."""
        if _ending.is_set():
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def forget(self, future: BatchFuture) -> None:
        """Stop waiting for a future; its job is cancelled when nothing else wants it."""
        self._command(functools.partial(self._forget, future))

    def flush(self) -> None:
        """Return when everything requested so far has been handed over.

        What a full queue has left counts as that once there is a steward who hands it over.
        """
        with self._changed:
            while (self._requests or self._busy or self._unguarded) and self._alive():
                self._changed.wait(1.0)

    def leave(self) -> None:
        """Return when nothing is half handed over; do not wait for others to hand theirs over.

        What could not be handed over for that is given up.
        """
        with self._changed:
            self._leaving = True
            self._changed.notify_all()
            while (self._requests or self._busy) and self._alive():
                self._changed.wait(1.0)

    def _meanwhile(self) -> None:
        """Look after what is under way while others hand theirs over; heed what is asked for."""
        with self._changed:
            if self._commands or self._leaving:
                raise Interrupted
        self._between()

    def outlast(self) -> None:
        """Return when nothing that was handed over here is under way."""
        with self._changed:
            while self._alive() and (self._asked() or self._busy or self._has_own):
                self._changed.wait(0.1)

    @property
    def _has_own(self) -> bool:
        own = (entry.ours for entry in list(self._watch.entries.values()))
        return any(own) or bool(self._backlog)

    @property
    def _unguarded(self) -> bool:
        return bool(self._backlog) and not self._backlog.guarded

    def idle(self) -> bool:
        """Whether nothing is under way."""
        with self._changed:
            return not (self._requests or self._busy or self._watch.entries or self._backlog)

    def cancel_waiting(self) -> None:
        """Cancel every task whose job has not started; return when that is done."""
        with self._changed:
            while (self._requests or self._busy) and self._alive() and not self._hand_over.waiting:
                self._changed.wait(1.0)
        self._command(self._cancel_waiting, wait=True)

    def cancel_all(self) -> None:
        """Cancel every task, running ones too; return when that is done."""
        self._command(self._cancel_all, wait=True)

    def close(self) -> None:
        """Take no more requests, and end when nothing is under way any more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.backend.wake()

    def join(self) -> None:
        """Wait for the thread to end; after :meth:`close`."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def job_id(self, key: str) -> str | None:
        """Return the id of the job of a key that is or was under way here."""
        standing = self._watch.known.get(key)
        return standing.job_id if standing is not None else None

    def log_stem(self, key: str) -> Path | None:
        """Return where the logs of a key are, without ``.out`` or ``.err``."""
        standing = self._watch.known.get(key)
        return standing.log_stem if standing is not None else None

    def _command(self, command: Callable[[], None], *, wait: bool = False) -> None:
        """Have something done in the engine's thread."""
        done = threading.Event()
        failed: list[Exception] = []

        def run() -> None:
            try:
                command()
            except Exception as error:
                # The batch system cannot be reached, or the cache: the jobs are followed on.
                logger.warning("what was asked for could not be done: %s", error)
                failed.append(error)
            finally:
                done.set()

        with self._changed:
            if not self._alive():
                return
            self._commands.append(run)
            self._changed.notify_all()
        self.backend.wake()
        if wait and threading.current_thread() is not self._thread:
            while not done.wait(1.0) and self._alive():
                pass
            if failed:
                raise failed[0]

    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _ensure_thread(self) -> None:
        if not self._alive():
            # A daemon: an interpreter that ends does not wait for jobs, which go on without it.
            self._thread = threading.Thread(target=self._run, name="dask-batch", daemon=True)
            self._thread.start()

    # ---- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._take_turn():
                pass
        except BaseException as error:
            if _ending.is_set():
                logger.info("this process ends; the jobs that it handed over go on")
            else:
                logger.exception("the engine failed; the jobs that it handed over go on")
            self._break(error)
        finally:
            self._hand_over.standings.close()
            self.backend.close()
            self.ended()

    def _take_turn(self) -> bool:
        """Do what is to be done now, then wait; False at the end."""
        with self._changed:
            while not (self._asked() or self._under_way() or self._closing):
                self._changed.wait()
            if not (self._asked() or self._under_way()):
                return False
            if self._requests and all(r.gather for r in self._requests) and not self._closing:
                self._changed.wait(_GATHER_S)
            requests, self._requests = self._requests, []
            commands, self._commands = self._commands, []
            self._busy = True
        try:
            again = bool(self._backlog) and self._backlog.due_in_s <= 0
            if again:
                requests = [*self._backlog.take(), *requests]
            elif self._backlog and requests:
                self._backlog.join(requests)
                requests = []
            if requests:
                self._put_off(self._take_in(requests, again=again))
            for command in commands:
                command()
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
        if self._watch.entries:
            self._watch.look()
            self._backlog.sweep()
            self._take_over()
        self._wait()
        return True

    def _asked(self) -> bool:
        return bool(self._requests or self._commands)

    def _under_way(self) -> bool:
        return bool(self._watch.entries or self._backlog)

    def _wait(self) -> None:
        """Wait until something is to be done, or looked for."""
        if self._asked():
            return
        due_in_s = self._backlog.due_in_s if self._backlog else float("inf")
        if self._watch.entries:
            self.backend.wait(min(self._watch.look_s, due_in_s))
            self._rest()
        elif self._backlog:
            with self._changed:
                if not self._asked():
                    self._changed.wait(due_in_s)

    def _between(self) -> None:
        """Look after what is under way while a long hand-over goes on."""
        if self._watch.entries and time.monotonic() >= self._between_looks:
            self._between_looks = float("inf")  # a look that waits itself looks no more
            self._watch.look()
            self._between_looks = time.monotonic() + max(self._watch.look_s, _BETWEEN_S)

    def _rest(self) -> None:
        """Let news gather, so that looks take their share of the time and no more."""
        with self._changed:
            left_s = self._watch.not_before - time.monotonic()
            if left_s > 0 and not (self._requests or self._commands):
                self._changed.wait(left_s)

    def _break(self, error: BaseException) -> None:
        """Fail every future there is: nobody must wait for a thread that has ended."""
        with self._changed:
            requests, self._requests = self._requests, []
            self._closing = True
            self._changed.notify_all()
        for request in requests:
            request.fail(error)
        self._backlog.fail(error)
        self._watch.break_off(error)

    # ---- hand-over -------------------------------------------------------------------------

    def _put_off(self, requests: list[Request]) -> None:
        """Hand requests over after what has been asked for, or not at all."""
        if not self._leaving:
            with self._changed:
                self._requests = [*requests, *self._requests]
            return
        for request in requests:
            request.cancel()

    def _given_up(self, run_id: str, error: BaseException) -> None:
        """Hand over nothing more of a graph whose first jobs have all died of one cause."""
        self._backlog.give_up(run_id, error)

    # ---- cancelling ------------------------------------------------------------------------

    def _forget(self, future: BatchFuture) -> None:
        self._watch.forget(future)
        self._backlog.forget()

    def _cancel_waiting(self) -> None:
        """Cancel what has not started, and what has not even been handed over."""
        self._cancel_unsubmitted()
        self._watch.cancel(waiting_only=True)

    def _cancel_all(self) -> None:
        """Cancel what is under way and what has not been handed over."""
        self._cancel_unsubmitted()
        self._watch.cancel(waiting_only=False)
        self._backlog.dismiss(self._take_in.stewards)

    def _cancel_unsubmitted(self) -> None:
        with self._changed:
            requests, self._requests = self._requests, []
        for request in requests:
            request.cancel()
        self._backlog.cancel()
