"""Child processes of a client that die with it, and of which it hears at once when they end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from dask_batch.errors import BackendUnavailableError

__all__ = ["Child", "tethered"]

_TETHER: Final = str(Path(__file__).with_name("tether.py"))


def tethered(argv: Sequence[str], number: signal.Signals) -> list[str]:
    """Return the command that runs another one so that a signal ends it when its parent dies.

    Elsewhere than on Linux nothing of the kind is to be had.
    """
    if sys.platform != "linux":
        return list(argv)
    own = [sys.executable, "-I", "-S", _TETHER]
    return [*own, str(os.getpid()), str(int(number)), *argv]


@dataclass(frozen=True, slots=True)
class Child:
    """A process in a session of its own."""

    process: subprocess.Popen[bytes]

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        stdout: int | IO[Any],
        stderr: int | IO[Any],
        dies_by: signal.Signals,
        news: Callable[[], None],
    ) -> Child:
        """Start a process.

        Parameters
        ----------
        argv, env, cwd, stdout, stderr
            As for :class:`subprocess.Popen`; it reads nothing.
        dies_by
            The signal that it gets when the calling thread ends.
        news
            Called from another thread when it has ended.

        Raises
        ------
        BackendUnavailableError
            It cannot be started.
        """
        try:
            process = subprocess.Popen(
                tethered(argv, dies_by),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,  # Ctrl-C in the terminal is for the client
            )
        except OSError as error:
            raise BackendUnavailableError(f"{argv[0]} cannot be started: {error}") from error

        def wait() -> None:
            process.wait()
            news()

        threading.Thread(target=wait, name="dask-batch-child", daemon=True).start()
        return cls(process)

    def signal(self, number: signal.Signals) -> None:
        """Signal its session, of which it need not be the last that lives."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)
