"""Job ids of the local queue, and what they tell about a queue that is not there any more.

An id is ``local-<host>-<boot>-<queue>-<number>``. It is never used again, by no queue: a queue's
own part is random. From the host and boot parts a later queue on the same host knows, without
any file, that a job from before a reboot cannot be running.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["JobId", "QueueId"]

_PREFIX = "local"
_DIGITS = 8


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:_DIGITS]


def _text(path: str) -> str:
    """Return a small file's text; empty if it is not there."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


@cache
def _host() -> str:
    """Name this host, and the process namespace: pids mean nothing outside theirs."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        namespace = ""
    return _digest(socket.gethostname(), _text("/etc/machine-id"), namespace)


@cache
def _boot() -> str:
    """Name this boot of the host; empty where the system gives it no name."""
    if sys.platform == "darwin":
        argv = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        name = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
    else:
        name = _text("/proc/sys/kernel/random/boot_id")
    return _digest(name) if name else "0"


@dataclass(frozen=True, slots=True)
class QueueId:
    """One life of a queue."""

    host: str
    boot: str
    queue: str

    @classmethod
    def new(cls) -> QueueId:
        """Return the id of a queue that starts here and now."""
        return cls(_host(), _boot(), secrets.token_hex(_DIGITS // 2))

    def __str__(self) -> str:
        return f"{_PREFIX}-{self.host}-{self.boot}-{self.queue}"

    def before_reboot(self, other: QueueId) -> bool:
        """Whether ``other`` was a queue on this host before it was started anew."""
        return (
            self.host == other.host
            and "0" not in (self.boot, other.boot)
            and (self.boot != other.boot)
        )


@dataclass(frozen=True, slots=True)
class JobId:
    """A job's id, taken apart."""

    queue: QueueId
    number: int

    @classmethod
    def parse(cls, text: str) -> JobId | None:
        """Take an id apart; None if it is not one of a local queue."""
        parts = text.split("-")
        if len(parts) != 5 or parts[0] != _PREFIX or not parts[4].isdecimal():
            return None
        return cls(QueueId(*parts[1:4]), int(parts[4]))

    def __str__(self) -> str:
        return f"{self.queue}-{self.number}"
