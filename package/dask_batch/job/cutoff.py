"""Before the wall clock: where an attempt stands when its time is nearly over is written down.

A batch system warns by ``SIGUSR1``; where it does not, a clock of the job's own does, a minute or
a tenth of its time before the limit. ``SIGTERM`` (cancelled, preempted, or the time limit itself)
is written down as well, and then ends the process as it would have. What was the reason only the
batch system knows.

The function may sit in compiled code for hours, in which no Python handler runs in the main
thread. So the signal's number goes through a pipe to a thread, which runs whenever the compiled
code lets go of the interpreter. Signals are handled, not blocked: programs that the function
starts have them as usual. A handler of the function's own is the one that counts. A fork has one
thread and no handler of ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from dask_batch.job.descriptors import kept
from dask_batch.job.endings import clipped

__all__ = ["Cutoff"]

_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
_UNHANDLED = {
    signal.SIGUSR1: (signal.SIG_DFL, signal.SIG_IGN),  # who warns may have it ignored until now
    signal.SIGTERM: (signal.SIG_DFL,),
}
_STOP = 0
_LONGEST_WAIT_S = 3600.0  # poll() takes milliseconds, in 31 bits
_TRACE_CHARS = 100_000
_exit = os._exit


class Cutoff:
    """Watches for the end of an attempt's time.

    Parameters
    ----------
    record
        Called, in a thread, with what is to be written down: at most once.
    ends_at
        When the time limit is reached, in seconds since the epoch; None if that is not known.
    warn_at
        When to write down where the attempt stands, if nobody has warned before; None: never.
    """

    def __init__(
        self,
        record: Callable[[Mapping[str, Any]], None],
        *,
        ends_at: float | None = None,
        warn_at: float | None = None,
    ) -> None:
        self._record = record
        self._ends_at = ends_at
        self._warn_at = warn_at
        self._warned = False
        self._main = threading.main_thread().ident
        self._handled: list[signal.Signals] = []
        self._thread: threading.Thread | None = None
        self._heard, self._told = (kept(end) for end in os.pipe())
        os.set_blocking(self._heard, False)
        os.set_blocking(self._told, False)

    def start(self) -> None:
        """Begin to watch; in the main thread."""
        global _current
        _current = self
        for number in _SIGNALS:
            if signal.getsignal(number) in _UNHANDLED[number]:
                signal.signal(number, self._tell)
                # Libraries need not be ready for calls that are interrupted.
                signal.siginterrupt(number, False)
                self._handled.append(number)
        signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
        self._listen()

    def stop(self) -> None:
        """End the watch, and let signals mean what they did."""
        global _current
        _current = None
        self._hush()
        self._let_go()

    # ---- the main thread's side ------------------------------------------------------------

    def _tell(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal. Mostly the pipe has its number already; a function may have its own."""
        with contextlib.suppress(OSError):  # it is full: the thread has enough to read
            os.write(self._told, bytes([number]))

    def _let_go(self) -> None:
        for number in self._handled:
            if signal.getsignal(number) == self._tell:
                signal.signal(number, signal.SIG_DFL)
        if (present := signal.set_wakeup_fd(-1)) not in (-1, self._told):
            signal.set_wakeup_fd(present)
        for end in (self._told, self._heard):
            with contextlib.suppress(OSError):  # the function has closed it
                os.close(end)

    def _listen(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="cutoff", daemon=True)
        self._thread.start()

    def _hush(self) -> None:
        """Let the thread come to its end; what it has not read stays in the pipe."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._tell(_STOP)
            thread.join()

    # ---- the thread's side -----------------------------------------------------------------

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._heard, select.POLLIN)
        while True:
            for number in self._numbers(poll):
                if number == _STOP:
                    return
                if signal.getsignal(number) == self._tell:
                    self._note(signal.Signals(number).name)
                    if number == signal.SIGTERM:
                        _die_of(number)
            if self._warn_at is not None and time.time() >= self._warn_at:
                self._note("clock")

    def _numbers(self, poll: select.poll) -> bytes:
        """Wait, and return the numbers of the signals that came, at most one."""
        wait_s = _LONGEST_WAIT_S
        if self._warn_at is not None and not self._warned:
            wait_s = min(max(self._warn_at - time.time(), 0.0), wait_s)
        if not poll.poll(wait_s * 1000):
            return b""
        try:
            return os.read(self._heard, 1)
        except BlockingIOError:
            return b""
        except OSError:  # the function has closed it: nothing will be heard any more
            return bytes([_STOP])

    def _note(self, warned_by: str) -> None:
        """Have it written down where the main thread is, once."""
        if self._warned:
            return
        self._warned = True
        now = time.time()
        frame = sys._current_frames().get(self._main or 0)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        self._record(
            {
                "time": now,
                "signal": warned_by,
                "left_s": None if self._ends_at is None else max(self._ends_at - now, 0.0),
                "traceback": clipped(stack, _TRACE_CHARS),
            }
        )

    # ---- forks -----------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Have one thread, and no signal on its way."""
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._hush()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        self._listen()

    def after_fork_in_child(self) -> None:
        """Leave no trace in a process that is not the job."""
        self._let_go()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


def _die_of(number: int) -> None:
    """End this process by a signal's default action, from whatever thread."""
    with contextlib.suppress(OSError, AttributeError):
        c = ctypes.CDLL(None)
        c.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        c.signal.restype = ctypes.c_void_p
        c.signal(number, None)  # signal.signal is for the main thread, which may not listen
        os.kill(os.getpid(), number)
        time.sleep(1.0)
    _exit(128 + number)


_current: Cutoff | None = None


def _before_fork() -> None:
    if _current is not None:
        _current.before_fork()


def _after_fork_in_parent() -> None:
    if _current is not None:
        _current.after_fork_in_parent()


def _after_fork_in_child() -> None:
    global _current
    if _current is not None:
        _current.after_fork_in_child()
        _current = None


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
