"""Calls that cannot be hashed yet: one of their arguments is a future of somebody else's.

A future of ours enters a key by the key of its task, finished or not; one of another executor with
the same cache as soon as that has handed it over. What has nothing but its value has to end first:
the call waits for it, in this process, and the client must stay.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

__all__ = ["Deferred", "Until"]

logger = logging.getLogger(__name__)

Until: TypeAlias = Callable[[Callable[[Any], object]], None]
"""Takes what is to be called, with a future, when that has come so far."""


class Deferred:
    """Runs actions when futures have ended, one after the other in one thread."""

    def __init__(self) -> None:
        self._due: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._open = 0
        self._thread: threading.Thread | None = None
        self._when_empty: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return self._open

    def after(self, until: Until, action: Callable[[], None]) -> None:
        """Run an action when a future has come so far. The action must not raise."""
        with self._changed:
            if self._open == 0:
                logger.info(
                    "a call waits for a future of another executor: this process must stay until "
                    "it has been handed over"
                )
            self._open += 1
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="dask-batch-deferred", daemon=True
                )
                self._thread.start()
        # Not in the thread that ends the future: hashing may take long, and it is not ours.
        until(lambda _: self._due.put(action))

    def wait(self) -> None:
        """Return when no action is open."""
        with self._changed:
            self._changed.wait_for(lambda: self._open == 0)

    def when_empty(self, action: Callable[[], None]) -> None:
        """Run an action when no other is open: now, if none is."""
        with self._changed:
            if self._open:
                self._when_empty.append(action)
                return
        action()

    def _run(self) -> None:
        while True:
            self._due.get()()
            with self._changed:
                self._open -= 1
                last = self._open == 0
                actions = self._when_empty if last else []
                if last:
                    self._when_empty = []
                    self._thread = None
                self._changed.notify_all()
            for action in actions:
                action()
            if last:
                return
