"""The warm parent of jobs: one thread, everything imported, forks on request.

``python -P -m dask_batch.backends.local.nursery FD`` speaks with the queue over the socket ``FD``.
It is told once what to import, then which jobs to start and which to signal; it tells which
process each became and how each ended. Whatever a job leaves behind in its session is killed
before its end is told.

When the queue is gone it writes into the journal what it can no longer tell, has another queue
started that goes on, and ends as soon as its last job has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dask_batch.backends.local import journal, launch, processes
from dask_batch.backends.local.processes import ProcessIdentity
from dask_batch.backends.local.protocol import PROTOCOL_VERSION, Channel, Message
from dask_batch.backends.local.warmth import installation_of, warm_up

__all__ = ["Nursery", "main"]

_PR_SET_CHILD_SUBREAPER = 36

_REMEMBER_EXITS = 10_000


@dataclass(slots=True)
class Nursery:
    """The state of one worker parent.

    Attributes
    ----------
    channel
        To the queue.
    entry
        What a warm job calls.
    journal_path
        Where to write if the queue is gone.
    jobs
        Job ids and processes by pid.
    installation
        When something was last installed, by folder; empty: what was imported does not matter.
    """

    channel: Channel
    entry: str
    journal_path: Path
    jobs: dict[int, tuple[str, ProcessIdentity]] = field(default_factory=dict)
    installation: dict[str, int] = field(default_factory=dict)
    pid: int = field(default_factory=os.getpid)
    orphaned: bool = False
    dismissed: bool = False
    """The queue has said that it needs this process no more."""
    successor: dict[str, str] = field(default_factory=dict)
    """The environment for a queue that goes on where this one was killed; empty: nobody does."""
    _told: deque[tuple[str, int, ProcessIdentity]] = field(
        default_factory=lambda: deque(maxlen=_REMEMBER_EXITS)
    )
    """Ends that were told last: the queue may have been killed before it heard of them."""
    _wake: tuple[socket.socket, socket.socket] = field(default_factory=socket.socketpair)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def run(self) -> None:
        """Serve until the queue is gone and no job is left."""
        for end in self._wake:
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only the wake-up matters
        signal.set_wakeup_fd(self._wake[1].fileno(), warn_on_full_buffer=False)
        self._selector.register(self._wake[0], selectors.EVENT_READ)
        self._selector.register(self.channel, selectors.EVENT_READ)
        self._tell({"type": "ready"})
        while not self.orphaned or self.jobs:
            for key, _ in self._selector.select():
                if key.fileobj is self.channel:
                    self._hear()
                else:
                    self._wake[0].recv(4096)
            self._reap()

    def _hear(self) -> None:
        """Do what the queue asks for; notice that it is gone."""
        try:
            for message in self.channel.receive():
                if self.orphaned:  # what it has not started by now, it never will
                    return
                if message["type"] == "start":
                    self._start(message)
                elif message["type"] == "dismiss":
                    self.dismissed = True
                elif message["type"] == "leave":
                    self.successor = {}
                elif message["type"] == "signal":
                    self._signal(message["job"], message["signal"], main=message["main"])
        except EOFError:
            self._be_orphaned()

    def _tell(self, message: Message) -> None:
        """Tell the queue, if it is there. It never waits for this process, so this may wait."""
        if self.orphaned:
            return
        try:
            self.channel.send_whole(message)
        except OSError:
            self._be_orphaned()

    def _be_orphaned(self) -> None:
        """Go on without the queue: its successor reads in the journal what runs here."""
        if self.orphaned:
            return
        self.orphaned = True
        self._selector.unregister(self.channel)
        if not self.dismissed:
            self._append(self._report)
            self._start_successor()

    def _report(self) -> None:
        """Say what the queue may not have heard and put on record: then that no more start."""
        for job_id, process in self.jobs.values():
            journal.append_process(self.journal_path, job_id, process)
        journal.append_exits(self.journal_path, self._told)
        journal.append_orphaned(self.journal_path, ProcessIdentity.of_child(self.pid))

    def _start_successor(self) -> None:
        """Have the queue go on: there may be no client for a long time."""
        if not self.successor:
            return
        try:
            subprocess.Popen(
                [sys.executable, "-P", "-m", "dask_batch.backends.local.server"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | self.successor,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:  # the next client starts it
            sys.stderr.write(f"the queue cannot be started: {error}\n")

    def _append(self, write: Callable[[], None]) -> None:
        """Write into the journal; without it the jobs still end as they would."""
        try:
            write()
        except OSError as error:
            sys.stderr.write(f"the journal cannot be written: {error}\n")

    def _start(self, message: Message) -> None:
        """Fork one job."""
        job_id: str = message["job"]
        note = functools.partial(journal.append_process, self.journal_path, job_id)
        if installation_of(self.installation) != self.installation:
            self._tell({"type": "declined", "job": job_id})
            return
        order = launch.Order.read(message["order"])
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
        except OSError as error:
            self._tell({"type": "failed", "job": job_id, "reason": f"fork: {error}"})
            return
        finally:
            if os.getpid() == self.pid:
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if pid == 0:
            launch.become_job(order, self.entry, self._close, note)
        process = ProcessIdentity.of_child(pid)
        self.jobs[pid] = job_id, process
        self._tell({"type": "started", "job": job_id, "pid": pid, "started": process.started})

    def _close(self) -> None:
        """Close what a job must not inherit."""
        self._selector.close()
        self.channel.close()
        for end in self._wake:
            end.close()

    def _signal(self, job_id: str, number: int, *, main: bool) -> None:
        """Signal a job's session or its main process, if that has not ended.

        A pid that was reaped is nobody's; those of living and of unreaped jobs are theirs.
        """
        for pid, (known, _) in self.jobs.items():
            if known == job_id and main:
                os.kill(pid, number)
            elif known == job_id:
                processes.signal_session(pid, number)

    def _reap(self) -> None:
        """Wait for what has ended, clean up behind it, and tell."""
        ended: list[tuple[str, int, ProcessIdentity]] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid in self.jobs:
                job_id, process = self.jobs.pop(pid)
                ended.append((job_id, status, process))
        if not ended:
            return
        self._kill_leftovers([process.pid for _, _, process in ended])
        if self.orphaned:
            self._append(lambda: journal.append_exits(self.journal_path, ended))
        self._told.extend(ended)
        for job_id, status, _ in ended:
            self._tell({"type": "ended", "job": job_id, "status": status})

    def _kill_leftovers(self, sessions: list[int]) -> None:
        """Kill what ended jobs have left in their sessions.

        This process is a subreaper: what lost its parent is its child. So where it has no
        children but jobs, there is nothing to look for.
        """
        children = processes.children()
        if children is not None and not children - self.jobs.keys():
            return
        for session in sessions:
            processes.kill_session(session)


def _become_subreaper() -> None:
    """Have orphaned descendants handed to this process instead of to init, where that exists."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def main(argv: list[str]) -> int:
    """Serve the queue at the other end of a socket.

    Parameters
    ----------
    argv
        The program, the socket's descriptor, and options as JSON: ``version``, ``warm``,
        ``preload``, ``entry``, ``journal``, ``successor``.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(argv[1])))
    options = json.loads(argv[2])
    # Looked at before anything is imported: better one false alarm than an old library kept.
    installation = installation_of(sys.path) if options["warm"] else {}
    if options["version"] != PROTOCOL_VERSION:
        trouble = f"it speaks version {PROTOCOL_VERSION}, the queue {options['version']}"
    else:
        trouble = warm_up(options["preload"], options["entry"]) if options["warm"] else ""
    if trouble:
        with contextlib.suppress(OSError):  # nobody is left to hear it
            channel.send_whole({"type": "unfit", "reason": trouble})
        return 0
    _become_subreaper()
    gc.collect()
    gc.freeze()  # what is never freed is never written to, and stays shared with the jobs
    os.chdir("/")
    os.umask(0o077)
    Nursery(
        channel,
        options["entry"],
        Path(options["journal"]),
        installation=installation,
        successor=options["successor"],
    ).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
