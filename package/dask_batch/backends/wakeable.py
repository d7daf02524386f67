"""Backends that are waited with, and woken."""

from __future__ import annotations

import threading

__all__ = ["Wakeable"]


class Wakeable:
    """A backend whose waits end with their time, with news, or when another thread ends them."""

    def __init__(self) -> None:
        self._news = threading.Event()
        self._closed = threading.Event()

    def wait(self, timeout_s: float) -> None:
        """Return after ``timeout_s``, on news of a job, or when woken."""
        self._news.wait(timeout_s)
        self._news.clear()

    def wake(self) -> None:
        """End a :meth:`wait` of another thread, or the next one."""
        self._news.set()

    def close(self) -> None:
        """Give up waiting, and let go of what is held. Jobs go on."""
        self._closed.set()
        self._news.set()
