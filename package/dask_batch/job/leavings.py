"""What a task may change that belongs to its whole process, and what is set right after it.

A process that runs several tasks looks to each like one that has just begun: environment, search
path, signals, limits and random numbers are as they were before the first task. What a task has
changed in modules stays.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import sys
from typing import Any, Final

from dask_batch.job.say import say

__all__ = ["Standing", "renew_randomness"]

_LIMITS: Final = sorted(
    {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
)


class Standing:
    """How a process stands when it is made; to be made in its main thread."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._path = list(sys.path)
        self._folder = _working_directory()
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._limits = {limit: resource.getrlimit(limit) for limit in _LIMITS}
        self._collecting = gc.isenabled()
        self._interval_s = sys.getswitchinterval()

    def restore(self) -> None:
        """Let the process stand so again; seed its random numbers anew."""
        self._restore_environment()
        sys.path[:] = self._path
        if self._folder is not None:
            with contextlib.suppress(OSError):  # each task has its own, and says so if it is gone
                os.chdir(self._folder)
        os.umask(self._umask)
        self._restore_signals()
        for limit, before in self._limits.items():
            _restore_limit(limit, before)
        (gc.enable if self._collecting else gc.disable)()
        sys.setswitchinterval(self._interval_s)
        renew_randomness()

    def _restore_environment(self) -> None:
        for name in os.environ.keys() - self._environment.keys():
            del os.environ[name]
        for name, value in self._environment.items():
            if os.environ.get(name) != value:
                os.environ[name] = value

    def _restore_signals(self) -> None:
        for number, handler in self._signals.items():
            # None: it is a library's own, of which Python knows nothing.
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return None


def _restore_limit(limit: int, before: tuple[int, int]) -> None:
    """Set a limit to what it was, or, where that may not be, as high as may be."""
    now = resource.getrlimit(limit)
    if now == before:
        return
    try:
        resource.setrlimit(limit, before)
    except (ValueError, OSError):
        hard = now[1]
        resource.setrlimit(limit, (hard, hard))
        say(f"a task has lowered a limit of its process for good: number {limit} to {hard}")


def renew_randomness() -> None:
    """Seed the global generators of Python and NumPy anew, as far as they are loaded."""
    for name in ("random", "numpy.random"):  # NumPy loads its own when it is first used
        generators: Any = sys.modules.get(name)
        if generators is not None:
            generators.seed()
