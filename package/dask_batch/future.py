"""The future of a task: a standard one that knows its key, its job and its logs."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from dask_batch.cache.store import Cache

__all__ = ["BatchFuture", "Home", "when_ended"]

_Base = concurrent.futures.Future


class Home(Protocol):
    """Whom a future belongs to: what follows its job. In practice an engine."""

    cache: Cache

    def forget(self, future: BatchFuture) -> None:
        """Stop waiting for a future that its caller has cancelled."""

    def job_id(self, key: str) -> str | None:
        """Return the id of the job of a key."""

    def log_stem(self, key: str) -> Path | None:
        """Return where the logs of a key are, without their suffix."""


class _Unread:
    """Stands for a result that is in the cache and has not been asked for yet."""

    __slots__ = ("load",)

    def __init__(self, load: Callable[[], Any]) -> None:
        self.load = load


def when_ended(future: _Base[Any], action: Callable[[_Base[Any]], object]) -> None:
    """Have an action called, with a future, at its end; one of ours need not read its value."""
    if isinstance(future, BatchFuture):
        _Base.add_done_callback(future, action)
    else:
        future.add_done_callback(action)


class BatchFuture(_Base[Any]):
    """What an executor returns for a call, or for a collection.

    It behaves as :class:`concurrent.futures.Future` does, and may stand anywhere in the arguments
    of another call. The value is read from the cache when it is first asked for: a future that
    only feeds other calls costs the client nothing.

    Attributes
    ----------
    key : str
        The content key of the task, 64 hex digits; empty until it is known.
    ephemeral : bool
        Whether the key is good for this run alone.
    """

    def __init__(self, home: Home | None = None, key: str = "") -> None:
        super().__init__()
        self.key = key
        self.ephemeral = False
        self._home = home
        self._is_heard = False
        self._is_recorded = False
        self._when_recorded: list[Callable[[BatchFuture], object]] = []

    @property
    def cache(self) -> Cache | None:
        """The cache in which its result will be."""
        return self._home.cache if self._home is not None else None

    # ---- where its task is known -------------------------------------------------------------

    def is_known_to(self, home: Home | None) -> bool:
        """Whether a session that belongs to ``home`` knows of its task.

        Its own has been asked for it; any other one finds it in the cache, once it is there.
        """
        return self._home is home or self._is_recorded or self.done()

    def add_known_callback(self, action: Callable[[BatchFuture], object]) -> None:
        """Have an action called, once, when any session knows of its task."""
        with self._condition:
            waits = not (self._is_recorded or self.done())
            if waits:
                self._when_recorded.append(action)
        if waits:
            when_ended(self, lambda _: self._recorded())
        else:
            action(self)

    def wait_until_known(self) -> None:
        """Return when any session knows of its task."""
        known = threading.Event()
        self.add_known_callback(lambda _: known.set())
        known.wait()

    # ---- its end -----------------------------------------------------------------------------

    def add_done_callback(self, fn: Callable[[_Base[Any]], object]) -> None:
        """Have a function called, with this future, when that has ended."""
        self._is_heard = True
        super().add_done_callback(fn)

    @property
    def is_heard(self) -> bool:
        """Whether a caller's function is to be called at its end."""
        return self._is_heard

    # ---- what the engine does to it ----------------------------------------------------------

    def _recorded(self) -> None:
        """Take note that others can find its task in the cache: it has been handed over."""
        with self._condition:
            self._is_recorded = True
            waiting, self._when_recorded = self._when_recorded, []
        for action in waiting:
            action(self)

    def _resolve_from(self, load: Callable[[], Any]) -> None:
        """Resolve, with a value that is read when it is wanted."""
        if self._claim():
            self.set_result(_Unread(load))

    def _resolve(self, value: Any) -> None:
        if self._claim():
            self.set_result(value)

    def _fail(self, error: BaseException) -> None:
        if self._claim():
            self.set_exception(error)

    def _claim(self) -> bool:
        """Make it running if it is not; False if it has been cancelled or has ended."""
        if self.done():
            # Seen by waiters as cancelled only after the notification.
            if self.cancelled() and self._state != "CANCELLED_AND_NOTIFIED":
                self.set_running_or_notify_cancel()
            return False
        return self.running() or self.set_running_or_notify_cancel()

    def _cancel_running(self) -> bool:
        """Cancel, even if it runs: its job is being killed. False if it has ended."""
        with self._condition:
            if self._state == "RUNNING":
                # The standard library has no way to say this of a future that runs, because a
                # thread cannot be killed. A job can.
                self._state = "PENDING"
        return super().cancel()

    # ---- what a caller asks ------------------------------------------------------------------

    def cancel(self) -> bool:
        """Cancel the task if it has not started. The job ends when nobody else wants it."""
        cancelled = super().cancel()
        if cancelled and self._home is not None:
            self._home.forget(self)
        return cancelled

    def result(self, timeout: float | None = None) -> Any:
        """Return the value, waiting for it at most ``timeout`` seconds."""
        value = super().result(timeout)
        if not isinstance(value, _Unread):
            return value
        loaded = value.load()
        with self._condition:
            if self._result is value:
                self._result = loaded
            return self._result

    @property
    def job_id(self) -> str | None:
        """The id of its job at the batch system; None before that is known or if there is none."""
        return self._home.job_id(self.key) if self._home is not None else None

    def stdout(self) -> str:
        """Return what the job has printed so far; empty if it has not begun."""
        return self._log("out")

    def stderr(self) -> str:
        """Return what the job has written to stderr so far; empty if it has not begun."""
        return self._log("err")

    def _log(self, suffix: str) -> str:
        stem: Path | None = self._home.log_stem(self.key) if self._home is not None else None
        if stem is None:
            return ""
        try:
            return stem.with_suffix(f".{suffix}").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
