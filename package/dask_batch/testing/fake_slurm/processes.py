"""The processes of a job: found through /proc, signalled all together."""

from __future__ import annotations

import os
import signal

__all__ = ["alive", "members", "signal_all"]


def _table() -> dict[int, tuple[int, int, str]]:
    """Return parent, session and state of every process."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                # The name in parentheses may hold anything.
                fields = file.read().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found[int(name)] = (int(fields[1]), int(fields[3]), fields[0].decode())
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def members(leader: int) -> list[int]:
    """Return the processes of a leader's session, and all descendants of the leader."""
    table = _table()
    found = {pid for pid, (_, session, _) in table.items() if leader in (pid, session)}
    while True:
        more = {pid for pid, (parent, _, _) in table.items() if parent in found} - found
        if not more:
            return sorted(pid for pid in found if table.get(pid, (0, 0, "Z"))[2] != "Z")
        found |= more


def signal_all(leader: int, number: signal.Signals) -> None:
    """Signal every process of a job."""
    for pid in members(leader):
        try:
            os.kill(pid, number)
        except ProcessLookupError:  # it ended in between
            pass
