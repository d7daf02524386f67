"""Calls that cannot be hashed yet: one of their arguments is a future of somebody else's.

A future of ours enters a key by the key of its task, finished or not. One of another executor
has nothing but its value, so the call waits for it, in this process: the client must stay.
"""

from __future__ import annotations

import concurrent.futures
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Deferred"]

logger = logging.getLogger(__name__)


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

    def after(self, future: concurrent.futures.Future[Any], action: Callable[[], None]) -> None:
        """Run an action when a future has ended. The action must not raise."""
        with self._changed:
            if self._open == 0:
                logger.info(
                    "a call waits for a future of another executor: this process must stay until "
                    "that has its value"
                )
            self._open += 1
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="dask-batch-deferred", daemon=True
                )
                self._thread.start()
        # Not in the thread that ends the future: hashing may take long, and it is not ours.
        future.add_done_callback(lambda _: self._due.put(action))

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
