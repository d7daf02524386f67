"""Processes of this machine as the kernel knows them: identity, sessions, memory.

A pid alone names nothing, as it is used again: a process is its pid *and* its start time. Every
job is the leader of a session of its own, so what belongs to it is found by the session's id,
whatever it forked and whoever is now the parent of that.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = [
    "ProcessIdentity",
    "children",
    "kill_session",
    "private_memory_bytes",
    "resident_memory_by_session",
    "session_members",
    "signal_session",
]

_LINUX = sys.platform == "linux"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_KILL_ROUNDS = 20
"""A process may fork while its session is being killed; each round finds what the last missed."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, for ever: ``started`` tells it from a later one with the same pid."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Return the identity of a living process; None if there is none of that pid."""
        if _LINUX:
            stat = _read_stat(pid)
            return None if stat is None or stat.state in "ZX" else cls(pid, stat.started)
        try:
            return cls(pid, repr(psutil.Process(pid).create_time()))
        except psutil.Error:
            return None

    @classmethod
    def of_child(cls, pid: int) -> ProcessIdentity:
        """Return the identity of a child that has not been waited for, living or dead."""
        if _LINUX:
            stat = _read_stat(pid)
            return cls(pid, "" if stat is None else stat.started)
        return cls.of(pid) or cls(pid, "")

    def age_s(self) -> float:
        """Return for how long the process has been running, or would have been."""
        try:
            if _LINUX:
                return time.clock_gettime(time.CLOCK_BOOTTIME) - int(self.started) / _TICKS_PER_S
            return time.time() - float(self.started)
        except ValueError:  # its start is not known
            return 0.0

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return ProcessIdentity.of(self.pid) == self


@dataclass(frozen=True, slots=True)
class _Stat:
    """What ``/proc/<pid>/stat`` says."""

    pid: int
    state: str
    session: int
    started: str
    """Clock ticks since boot: unlike a date, it does not move when the clock is set."""
    resident_bytes: int


def _read_stat(pid: int) -> _Stat | None:
    """Read one ``/proc/<pid>/stat``; None if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return _Stat(
        pid=pid,
        state=fields[0].decode(),
        session=int(fields[3]),
        started=fields[19].decode(),
        resident_bytes=int(fields[21]) * _PAGE_BYTES,
    )


def _all_stats() -> Iterator[_Stat]:
    """Read the stat of every process there is."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and (stat := _read_stat(int(name))) is not None:
            yield stat


def session_members(session: int) -> list[int]:
    """Return the pids of a session, those of processes that are dead but not reaped left out."""
    if _LINUX:
        return [s.pid for s in _all_stats() if s.session == session and s.state not in "ZX"]
    members = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == session and process.info["status"] != "zombie":
                members.append(process.pid)
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return members


def signal_session(session: int, number: int) -> None:
    """Send a signal to all processes of a session."""
    for pid in {session, *session_members(session)}:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):  # it ended, or runs as another user
            continue


def kill_session(session: int) -> None:
    """Kill what is left of a session whose leader has ended and been waited for."""
    for _ in range(_KILL_ROUNDS):
        members = session_members(session)
        if not members:
            return
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue


def children() -> set[int] | None:
    """Return the pids of this (single-threaded) process's children; None if that is not known.

    It needs a Linux kernel built with ``CONFIG_PROC_CHILDREN``, as distributions do.
    """
    pid = os.getpid()
    try:
        return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split()}
    except OSError:
        return None


def resident_memory_by_session() -> dict[int, int]:
    """Return the resident memory of every session, in bytes; shared pages count many times."""
    resident: dict[int, int] = {}
    if _LINUX:
        for stat in _all_stats():
            resident[stat.session] = resident.get(stat.session, 0) + stat.resident_bytes
        return resident
    for process in psutil.process_iter(["memory_info"]):
        if process.info["memory_info"] is None:
            continue
        try:
            session = os.getsid(process.pid)
        except OSError:
            continue
        resident[session] = resident.get(session, 0) + process.info["memory_info"].rss
    return resident


def private_memory_bytes(session: int) -> int | None:
    """Return the memory that a session holds for itself; None where the kernel cannot say.

    Pages of mapped files do not count, as the kernel can drop them: a job that maps a large
    array of the cache has not used that memory. Pages shared with other processes (those of the
    worker's warm parent) count by their share.
    """
    total = 0
    for pid in session_members(session):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (ProcessLookupError, FileNotFoundError):
            continue
        except OSError:
            return None
        sizes = dict(line.split(":", 1) for line in text.splitlines()[1:])
        if "Pss_Anon" not in sizes:  # Linux before 5.4
            return None
        total += sum(int(sizes[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem")) * 1024
    return total
