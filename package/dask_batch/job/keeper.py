"""A worker's keeper: it stands between the client and the process in which the tasks run.

::

    client ── socket ── keeper (this process) ── socketpair ── workbench (a fork of it)

The keeper connects to the client at its meeting place and never runs a function of the user's. So
whatever a function does, hang in compiled code included, somebody answers: tells the client how
the workbench ended, ends it when the client asks for that, makes a new one. When the connection to
the client ends, so does everything here; when the keeper is killed, the kernel kills the workbench.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Final

from dask_batch.cache.meeting import Meeting
from dask_batch.errors import CacheError
from dask_batch.job import exit_codes
from dask_batch.job.arrival import arrive
from dask_batch.job.channel import Channel, Message
from dask_batch.job.descriptors import kept
from dask_batch.job.orphans import adopt_orphans, end_children, ended_child
from dask_batch.job.say import say

__all__ = ["Keeper", "main"]

_PR_SET_PDEATHSIG: Final = 1
_GRACE_S: Final = 5.0
"""How long a task may take to write down where it stood before it is killed."""
_TOGETHER_S: Final = 0.2
"""How far apart a batch system's SIGTERM may reach the processes of one job."""


class Keeper:
    """Stands between a client and the process in which its tasks run.

    Parameters
    ----------
    client
        The connection to the client.
    gentle
        Whether the workbench has others to end before it ends itself.
    """

    def __init__(self, client: Channel, *, gentle: bool = False) -> None:
        self._client = client
        self._gentle = gentle
        self._pid = 0
        """The workbench; 0 while there is none."""
        self._workbench: Channel | None = None
        self._job: str | None = None
        self._kill_at: float | None = None
        self._ending = False
        self._heard, self._told = os.pipe()
        for end in (self._heard, self._told):
            os.set_blocking(end, False)

    def serve(self) -> int:
        """Work until the client is gone or needs this worker no more; return the exit code."""
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda *_: None)  # their numbers come through the pipe
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the client's terminal is not ours
        signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
        adopt_orphans()
        self._fork()
        try:
            while not self._ending or self._pid:
                self._turn()
        except (EOFError, OSError):
            say("its client is gone")
            if self._gentle:
                self._wait_gently()
        self._kill(signal.SIGKILL)
        end_children()
        return 0

    def _turn(self) -> None:
        """Wait for something to do, and do it."""
        poll = selectors.DefaultSelector()
        with poll:
            poll.register(self._heard, selectors.EVENT_READ)
            poll.register(self._client, selectors.EVENT_READ)
            if self._workbench is not None:
                poll.register(self._workbench, selectors.EVENT_READ)
            left_s = None if self._kill_at is None else max(self._kill_at - time.monotonic(), 0.0)
            ready = {key.fileobj for key, _ in poll.select(left_s)}
        if self._workbench in ready:
            self._pass_on()
        if self._heard in ready:
            self._signals(os.read(self._heard, 4096))
        if self._client in ready:
            self._obey(self._client.receive())
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._kill_at = None
            self._kill(signal.SIGKILL)

    # ---- the client ------------------------------------------------------------------------

    def _obey(self, order: Message) -> None:
        """Do what the client says."""
        what = order["do"]
        if what == "run" and self._workbench is not None:
            self._job = order["job"]
            with contextlib.suppress(OSError):  # it has just ended, which will be told
                self._workbench.send(order)
        elif what == "run":
            self._client.send({"told": "refused", "job": order["job"]})
        elif what == "kill" and order["job"] == self._job:
            self._end_workbench()
        elif what == "renew" and not self._pid:
            self._fork()
        elif what == "end":
            self._ending = True
            self._end_workbench()

    def _end_workbench(self) -> None:
        """End the workbench: a task has a moment to write down where it stands."""
        if self._pid and self._kill_at is None:
            gently = self._job or self._gentle
            self._kill(signal.SIGTERM if gently else signal.SIGKILL)
            self._kill_at = time.monotonic() + _GRACE_S

    # ---- the workbench ---------------------------------------------------------------------

    def _wait_gently(self) -> None:
        """Let the workbench end others."""
        self._kill(signal.SIGTERM)
        until = time.monotonic() + _GRACE_S
        while self._pid and time.monotonic() < until:
            if os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return
            time.sleep(0.05)

    def _fork(self) -> None:
        """Make a workbench."""
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        # A signal that the fork would take by the keeper's handlers would be lost.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        pid = os.fork()
        if pid == 0:
            ours.close()
            channel = self._as_workbench(theirs, parent)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            raise _ForkedError(channel)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._pid = pid
        self._workbench = Channel(ours)

    def _as_workbench(self, end: socket.socket, parent: int) -> Channel:
        """Put off, in the fork, what belongs to the keeper; return the connection to that."""
        os.setsid()
        _die_with(parent)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for descriptor in (self._heard, self._told):
            os.close(descriptor)
        self._client.close()
        return Channel(socket.socket(fileno=kept(end.detach())))

    def _pass_on(self) -> None:
        """Tell the client what the workbench says."""
        assert self._workbench is not None
        try:
            message = self._workbench.receive()
        except EOFError:  # it ends, and SIGCHLD follows; or a function has closed this
            self._workbench.close()
            self._workbench = None
            if self._job is None:
                self._kill(signal.SIGKILL)
            return
        if message["told"] == "ended":
            self._job = None
            if self._kill_at is not None and not self._ending:
                message = {**message, "killed": True}
        self._client.send(message)

    def _signals(self, numbers: bytes) -> None:
        """Heed signals to this process."""
        if signal.SIGUSR1 in numbers and self._pid and self._job:
            os.kill(self._pid, signal.SIGUSR1)
        if signal.SIGTERM in numbers:
            self._ending = True
            self._end_workbench()
        if signal.SIGCHLD in numbers:
            self._reap()

    def _reap(self) -> None:
        """Wait for the workbench if it has ended, end all that it has left, and tell."""
        how = ended_child(self._pid)
        if how is None:
            return
        if how.si_code != os.CLD_EXITED and how.si_status == signal.SIGTERM:
            self._look_whether_all_are_to_end()
        self._kill(signal.SIGKILL)  # not reaped yet: the number is nobody else's
        os.waitpid(self._pid, 0)
        self._pid = 0
        end_children()
        while self._workbench is not None and self._workbench.speaks():  # its last words
            self._pass_on()
        if self._workbench is not None:  # something that it forked has it open as well
            self._workbench.close()
            self._workbench = None
        exited = how.si_code == os.CLD_EXITED
        self._client.send(
            {
                "told": "died",
                "job": self._job,
                "exit_code": how.si_status if exited else None,
                "signal": None if exited else how.si_status,
                "killed": self._kill_at is not None or self._ending,
            }
        )
        self._job = None
        self._kill_at = None

    def _look_whether_all_are_to_end(self) -> None:
        """See whether what ended the workbench is on its way to this process, too."""
        if self._kill_at is None and select.select([self._heard], [], [], _TOGETHER_S)[0]:
            self._ending |= signal.SIGTERM in os.read(self._heard, 4096)

    def _kill(self, number: int) -> None:
        """Signal the workbench and what it has started, unless it sees to that itself."""
        if not self._pid:
            return
        alone = self._gentle and number == signal.SIGTERM
        for signalled in (os.kill,) if alone else (os.killpg, os.kill):
            # Before it is the leader of a session it is in no group of its own.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signalled(self._pid, number)


class _ForkedError(BaseException):
    """This process is the fork: it leaves all that the keeper was about."""

    def __init__(self, keeper: Channel) -> None:
        self.keeper = keeper


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(exit_codes.FAILED)


def _workbench(channel: Channel, meeting: Meeting, place: Path, number: int) -> int:
    """Run tasks; what they need is imported here, so that the keeper stays small."""
    try:
        from dask_batch.job.workbench import serve
    except ImportError as error:
        say(f"cannot import what a task needs: {error}")
        return exit_codes.NO_MODULE
    initial = place.with_suffix(".h5") if meeting.initial else None
    folder = place.with_suffix(f".{number}.{os.getpid()}")
    return serve(channel, initial, meeting.ranks, folder)


def main(path: str, number: int) -> int:
    """Work for the client that waits at a meeting place.

    Parameters
    ----------
    path
        The meeting place's file, in a cache directory.
    number
        Which of its workers this is.

    Returns
    -------
    int
        The exit code: 0 once the client needs it no more, or is gone.
    """
    try:
        meeting = Meeting.read(Path(path))
    except FileNotFoundError:
        say(f"{path} is not there: its client needs it no more, or its node does not share it")
        return exit_codes.NO_CACHE
    except CacheError as error:
        say(str(error))
        return exit_codes.NO_CACHE
    client = arrive(meeting, number)
    if client is None:
        return exit_codes.FAILED
    keeper = Keeper(client, gentle=meeting.ranks is not None)
    try:
        return keeper.serve()
    except _ForkedError as forked:
        channel = forked.keeper
    return _workbench(channel, meeting, Path(path), number)
