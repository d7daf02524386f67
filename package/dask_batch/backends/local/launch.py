"""A forked process becomes a job: its session, its files, its environment, then its body.

Runs in the child of a worker parent, which has one thread, so anything may be called here. None
of it returns.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from dask_batch.backends.local.processes import ProcessIdentity

__all__ = ["DEFAULT_ENTRY", "Order", "become_job"]

DEFAULT_ENTRY = "dask_batch.job.run:main"

_CANNOT_START = 125
"""As ``env`` and ``nohup`` say that they could not run what they were given."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker parent is told about one job."""

    definition: str
    index: int
    log_directory: str
    working_directory: str
    environment: dict[str, str]
    argv: tuple[str, ...] = ()
    """The program to run; empty: the body is called in the forked process itself."""
    script: str = ""
    """What ``argv`` finds in the file that is put behind it, if anything."""

    def wire(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def read(cls, wire: dict[str, Any]) -> Order:
        """Return what :meth:`wire` gave."""
        return cls(**wire | {"argv": tuple(wire["argv"])})


def become_job(
    order: Order,
    entry: str,
    close_inherited: Callable[[], None],
    note: Callable[[ProcessIdentity], None],
) -> NoReturn:
    """Turn this freshly forked process into a job and run it.

    Parameters
    ----------
    order
        The job.
    entry
        ``module:function``, called with the definition and the index; returns the exit code.
    close_inherited
        Closes what the parent had open for itself.
    note
        Puts on record which process the job is.

    Notes
    -----
    All signals are blocked on entry, so that none is handled by what the parent had set up.
    """
    code = _CANNOT_START
    try:
        os.setsid()
        close_inherited()
        _reset_signals(warm=not order.argv)
        _note_identity(note)
        _take_surroundings(order)
        code = _run_program(order) if order.argv else _call(entry, order)
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)


def _note_identity(note: Callable[[ProcessIdentity], None]) -> None:
    """Put on record which process this is, before anything of the job can have an effect.

    Then a later queue knows of a job without such a record that it never began.
    """
    with contextlib.suppress(OSError):  # a full disk: the worker parent tells the queue
        note(ProcessIdentity.of_child(os.getpid()))


def _reset_signals(*, warm: bool) -> None:
    """Give signals the meaning that they have in a new process, then let them through."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is not signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
    if warm:  # as the interpreter does when it starts
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # The warning before the time limit: harmless to whoever does not listen.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _take_surroundings(order: Order) -> None:
    """Open the job's files, and take its environment and directory."""
    os.makedirs(order.log_directory, mode=0o700, exist_ok=True)
    base = os.path.join(order.log_directory, str(order.index))
    _redirect(os.devnull, os.O_RDONLY, 0)
    _redirect(base + ".out", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 1)
    _redirect(base + ".err", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 2)
    os.environ.clear()
    os.environ.update(order.environment)
    time.tzset()
    try:
        os.chdir(order.working_directory)
    except OSError:  # the body says so, if it needs it
        os.chdir(order.log_directory)


def _redirect(path: str, flags: int, target: int) -> None:
    """Open a file as one of the standard streams."""
    descriptor = os.open(path, flags, 0o600)
    os.dup2(descriptor, target, inheritable=True)
    if descriptor != target:
        os.close(descriptor)


def _run_program(order: Order) -> NoReturn:
    """Replace this process by the job's program."""
    argv = list(order.argv)
    if order.script:
        path = os.path.join(order.log_directory, f"{order.index}.sh")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(order.script)
        argv.append(path)
    os.execvpe(argv[0], argv, order.environment)


def _call(entry: str, order: Order) -> int:
    """Call the job's body in this process, as if the interpreter had just been started for it."""
    _renew_randomness()
    sys.argv = ["-m", order.definition, str(order.index)]
    # What the worker parent runs as ``__main__`` is no business of the job's.
    sys.modules["__main__"] = types.ModuleType("__main__")
    module, _, function = entry.partition(":")
    body: Any = getattr(importlib.import_module(module), function)
    try:
        return int(body(order.definition, order.index))
    except SystemExit as stop:
        return _exit_code(stop.code)
    except BaseException:
        traceback.print_exc()
        return 1


def _exit_code(code: object) -> int:
    """Return what the interpreter would exit with, given ``SystemExit.code``."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _renew_randomness() -> None:
    """Seed NumPy's global generator anew, if the parent had it; ``random`` does so by itself."""
    generators: Any = sys.modules.get("numpy.random")  # NumPy loads it when it is first used
    if generators is not None:
        generators.seed()


def _flush() -> None:
    """Write out what was printed, as far as that is possible."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # full disk; closed or replaced by the job
            continue
