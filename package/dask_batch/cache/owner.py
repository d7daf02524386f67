"""Which process is it, and does it live? Reused process ids and reboots are told apart."""

from __future__ import annotations

import functools
import os
import re
import socket
from dataclasses import dataclass

__all__ = ["Owner"]


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, named so that it cannot be mistaken for a later one.

    Notes
    -----
    Two machines of one name (cloned images that are all called ``localhost``) look like one that
    was rebooted.
    """

    host: str
    boot_id: str
    """Changes with every boot; in a process-id namespace of its own, names that too."""
    pid: int
    started: str
    """When the process started, in the kernel's ticks since boot; elsewhere in seconds."""

    @classmethod
    def current(cls) -> Owner:
        """Return this process."""
        return _of_process(os.getpid())

    def alive(self) -> bool | None:
        """Tell whether the process lives.

        Returns
        -------
        bool or None
            None if it cannot be told from here: the process is on another host, or in another
            process-id namespace of this one.
        """
        if self.host != socket.gethostname():
            return None
        here = _boot_id()
        if self.boot_id != here:
            same_boot = self.boot_id.partition(":")[0] == here.partition(":")[0]
            return None if same_boot else False
        return _started(self.pid) == self.started


@functools.lru_cache(maxsize=1)  # keyed by pid: a forked child is another process
def _of_process(pid: int) -> Owner:
    return Owner(socket.gethostname(), _boot_id(), pid, _started(pid) or "")


@functools.cache
def _boot_id() -> str:
    """Return the boot's id, and the process-id namespace where it is not the machine's own."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        namespace = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    except OSError:
        import psutil

        return str(int(psutil.boot_time()))
    # 0xEFFFFFFC is the inode of the first namespace on every Linux (PROC_PID_INIT_INO).
    return boot if namespace == str(0xEFFFFFFC) else f"{boot}:{namespace}"


def _started(pid: int) -> str | None:
    """Return the start time of a process that lives, else None. A zombie does not live."""
    if pid <= 0:
        return None
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command's name, in parentheses, may itself hold spaces and parentheses.
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None if os.path.exists("/proc/self/stat") else _started_elsewhere(pid)
    return None if fields[0] in b"ZX" else fields[19].decode("ascii")


def _started_elsewhere(pid: int) -> str | None:
    """Return the start time where there is no ``/proc``."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return None
