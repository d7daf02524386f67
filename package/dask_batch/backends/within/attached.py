"""Jobs that a command of the batch system starts, stays with, and tells the end of."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

from dask_batch.backends.within import commands
from dask_batch.backends.within.children import Child
from dask_batch.backends.within.launcher import Ended

__all__ = ["Attached"]

_MESSAGE_BYTES: Final = 4000


@dataclass(slots=True)
class Attached:
    """A job of which is known what its command says."""

    child: Child
    words: IO[Any]
    """What the command itself has said."""
    log: str
    """The job's stderr, where people look for the reason if it has not begun."""
    read: Callable[[int, str], Ended]
    """Tells the end from the command's exit code and words."""
    signals: tuple[signal.Signals, ...]
    """What ends it: one after the other, and the last again and again."""

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        stdout: IO[Any] | None = None,
        log: str,
        read: Callable[[int, str], Ended],
        signals: tuple[signal.Signals, ...] = (signal.SIGTERM,),
        news: Callable[[], None],
    ) -> Attached:
        """Start a command, which gets the first of its signals when this process dies.

        Parameters
        ----------
        argv, env, cwd
            As for :class:`subprocess.Popen`.
        stdout
            Where its output goes; None if all that comes is its own words.
        log, read, signals
            See the attributes.
        news
            Called from another thread when it has ended.

        Raises
        ------
        BackendUnavailableError
            It cannot be started.
        """
        words = tempfile.TemporaryFile()  # noqa: SIM115 - what is said is read when it has ended
        child = Child.start(
            argv,
            env=env,
            cwd=cwd,
            stdout=stdout or words,
            stderr=words,
            dies_by=signals[0],
            news=news,
        )
        return cls(child, words, log, read, signals)

    def ended(self) -> Ended | None:
        """Return how it has ended; None while it runs."""
        code = self.child.process.poll()
        if code is None:
            return None
        self.words.seek(0, os.SEEK_END)
        self.words.seek(max(0, self.words.tell() - _MESSAGE_BYTES))
        said = self.words.read().decode("utf-8", "replace").strip()
        self.words.close()
        how = self.read(code, said)
        if how.reason and how.exit_code is None:
            commands.add_to_log(self.log, said)
        return how

    def kill(self) -> None:
        """End it, or insist on it."""
        self.child.signal(self.signals[0])
        self.signals = self.signals[1:] or self.signals
