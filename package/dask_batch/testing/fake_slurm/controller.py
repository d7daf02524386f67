"""The controller: one process and one thread, which takes requests and looks at the clock.

It ends when it is told to (SIGTERM: its state is saved), when it is killed (what was not saved is
lost, as with slurmctld), and when the process that started it has gone: then with all its jobs.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import incidents
from .queue import Queue
from .requests import Refusal
from .sbatch import sbatch
from .scancel import scancel, sinfo
from .scontrol import scontrol
from .squeue import squeue
from .step import write

__all__ = ["main"]

TICK_S = 0.1
SAVE_S = 0.25
"""At most this much is lost when the controller is killed."""
REQUEST_S = 10.0

_COMMANDS: Mapping[str, Callable[[Queue, Mapping[str, Any]], dict[str, Any]]] = {
    "sbatch": sbatch,
    "scancel": scancel,
    "scontrol": scontrol,
    "sinfo": sinfo,
    "squeue": squeue,
    "incident": incidents.happen,
}


class Controller:
    """Answers requests on a socket.

    Parameters
    ----------
    folder
        The fake's directory; it is also the current one, so that the socket's path is short.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = json.loads((folder / "config.json").read_text())
        self.queue = Queue(config, folder)
        self._state = folder / "state.json"
        if self._state.exists():
            self.queue.restore(json.loads(self._state.read_text()))
        self._saved = ""
        self._saved_at = 0.0
        self._over = False

    def serve(self) -> None:
        """Take requests until the end."""
        with socket.socket(socket.AF_UNIX) as listening, selectors.DefaultSelector() as selector:
            Path("socket").unlink(missing_ok=True)
            listening.bind("socket")
            listening.listen(128)
            woken, waker = socket.socketpair()
            for end in (woken, waker):
                end.setblocking(False)
            # Children's ends and SIGTERM interrupt the wait.
            signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
            signal.signal(signal.SIGCHLD, lambda *_: None)
            signal.signal(signal.SIGTERM, self._stop)
            selector.register(listening, selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            selector.register(sys.stdin, selectors.EVENT_READ)
            os.write(1, b"ready\n")
            while not self._over:
                for key, _ in selector.select(TICK_S):
                    if key.fileobj is listening:
                        self._answer(listening.accept()[0])
                    elif key.fileobj is woken:
                        woken.recv(4096)
                    else:
                        self._orphaned()
                self._look()
        self._save()

    def _stop(self, *_: object) -> None:
        self._over = True

    def _orphaned(self) -> None:
        """Stdin is at its end: the owner has gone. Leave no jobs behind."""
        incidents.kill_all(self.queue)
        self._over = True

    def _look(self) -> None:
        _reap()
        self.queue.advance()
        if time.monotonic() - self._saved_at > SAVE_S:
            self._save()

    def _save(self) -> None:
        text = json.dumps(self.queue.saved())
        if text != self._saved:
            write(str(self._state), text)
            self._saved = text
        self._saved_at = time.monotonic()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(REQUEST_S)
            try:
                with connection.makefile("rb") as file:
                    request = json.load(file)
            except (OSError, ValueError):
                return  # a client that was killed in the middle of its request
            # What is due comes first, so that an answer is never older than a tick.
            self._look()
            answer = self._obey(request)
            try:
                connection.sendall(json.dumps(answer).encode())
            except OSError:
                return  # a client that did not wait for the answer

    def _obey(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            answer = _COMMANDS[request["command"]](self.queue, request)
        except Refusal as refusal:
            answer = {"error": refusal.stderr, "code": refusal.code}
        self.queue.advance()
        return answer


def _reap() -> None:
    """Let no zombies be: the ends of jobs are read from their steps' records."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return


def main(folder: str) -> None:
    """Run in a directory."""
    os.umask(0o077)  # what it takes requests on, and jobs' environments, are its owner's alone
    os.chdir(folder)
    Controller(Path(folder)).serve()
