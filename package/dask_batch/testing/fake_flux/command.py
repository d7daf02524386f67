"""The command ``flux`` of a fake instance, as far as jobs use it, and who listens to it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

__all__ = ["Listener"]

_SCRIPT: Final = """\
#!{python}
import json, socket, sys

with socket.socket(socket.AF_UNIX) as asking:
    asking.connect({path!r})
    asking.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
    answer = json.loads(asking.makefile().readline())
sys.stderr.write(answer["said"])
sys.exit(answer["code"])
"""
_LOOK_S: Final = 0.02


class Listener:
    """Answers ``flux job raise`` and ``flux job wait-event JOB start``.

    Parameters
    ----------
    directory
        Where the command and the socket are.
    end
        Raises an exception on jobs.
    began
        Tells whether a job has begun; None while that may change.
    """

    def __init__(
        self,
        directory: Path,
        end: Callable[[Collection[str], str, str], None],
        began: Callable[[str], bool | None],
    ) -> None:
        self.command = directory / "bin" / "flux"
        # Not in the directory: the path of a socket has to be short.
        self._folder = Path(tempfile.mkdtemp(prefix="fake-flux-"))
        self._path = self._folder / "socket"
        self._end = end
        self._began = began
        self._server = socket.socket(socket.AF_UNIX)

    def start(self) -> None:
        """Put the command in its place and listen."""
        self.command.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.command.write_text(_SCRIPT.format(python=sys.executable, path=str(self._path)))
        os.chmod(self.command, 0o700)
        self._server.bind(str(self._path))
        self._server.listen(64)
        threading.Thread(target=self._serve, daemon=True).start()

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            words = json.loads(connection.makefile().readline())
            code, said = self._obey(words)
            connection.sendall(json.dumps({"code": code, "said": said}).encode() + b"\n")

    def _obey(self, words: list[str]) -> tuple[int, str]:
        if words[:2] == ["job", "raise"]:
            options = dict(word[2:].split("=", 1) for word in words[2:-1])
            self._end([words[-1]], options.get("type", "cancel"), options.get("message", ""))
            return 0, ""
        if words[:2] == ["job", "wait-event"] and words[-1] == "start":
            while (began := self._began(words[-2])) is None:
                time.sleep(_LOOK_S)
            return (0, "") if began else (1, "flux-job: event 'start' never received\n")
        return 1, f"flux: the fake one does not know {' '.join(words)!r}\n"
