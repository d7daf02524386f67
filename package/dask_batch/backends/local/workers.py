"""The queue's side of its worker parents: which one starts which job, and what they tell.

A warm parent serves jobs of one *kind*: same interpreter, same environment, same preloaded
modules, so that a job forked from it sees what a new process would have seen. One more parent,
cold, starts everything else. A warm parent that cannot serve (no such interpreter, another
version of this package, threads after its imports) is replaced by a plainer one: without the
preloaded modules, then cold.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dask_batch.backends.local.launch import Order
from dask_batch.backends.local.machine import thread_variables
from dask_batch.backends.local.processes import ProcessIdentity
from dask_batch.backends.local.protocol import PROTOCOL_VERSION, Channel, Message
from dask_batch.backends.local.script import command, shell_script
from dask_batch.backends.local.submission import Profile

__all__ = ["Kind", "WorkerParent", "Workers"]

_LOG = logging.getLogger(__name__)
_KEEP_IDLE = 4
_KEEP_IDLE_S = 600.0
_RECENT_S = 5.0
"""A parent used this lately is not given up for one with other modules: they would take turns."""
_UNFIT_FOR_S = 60.0

_SESSION_VARIABLES = frozenset(
    {
        *("_", "COLUMNS", "DISPLAY", "LINES", "LS_COLORS", "OLDPWD", "PS1", "PWD", "SHLVL", "STY"),
        *("PYTEST_CURRENT_TEST", "SSH_AUTH_SOCK", "SSH_CLIENT", "SSH_CONNECTION", "SSH_TTY"),
        *("TERM", "TERM_PROGRAM", "TERM_SESSION_ID", "TMUX", "TMUX_PANE", "WINDOWID"),
        *("XDG_SESSION_ID", "DBUS_SESSION_BUS_ADDRESS", "VTE_VERSION", "COLORTERM"),
    }
)
"""What differs between terminals and matters to no library: it does not make another kind."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What jobs must have in common to be forked from the same parent."""

    python: str
    environment: tuple[tuple[str, str], ...] = ()
    preload: tuple[str, ...] = ()
    warm: bool = True

    @classmethod
    def of(cls, profile: Profile) -> Kind:
        """Return the kind of a job that may be forked.

        Some libraries look for GPUs when they are imported, and a fork could not look again. So a
        parent sees none, and has nothing imported for jobs that are to have some.
        """
        seen = {**profile.environment, **profile.device_environment(())}
        stable = sorted(item for item in seen.items() if item[0] not in _SESSION_VARIABLES)
        preload = () if profile.gpus else tuple(sorted(set(profile.preload)))
        return cls(profile.python, tuple(stable), preload)

    def plainer(self) -> Kind:
        """Return the kind to try if no parent of this one can serve."""
        if self.warm and self.preload:
            return Kind(self.python, self.environment)
        return COLD


COLD = Kind(sys.executable, warm=False)


@dataclass(eq=False, slots=True)
class WorkerParent:
    """One process that forks jobs."""

    kind: Kind
    process: subprocess.Popen[bytes]
    identity: ProcessIdentity
    channel: Channel
    ready: bool = False
    jobs: dict[str, ProcessIdentity | None] = field(default_factory=dict)
    """Jobs handed to it by id; None until it has told which process it became."""
    used_at: float = field(default_factory=time.monotonic)


class Workers:
    """All worker parents.

    Parameters
    ----------
    entry
        What warm jobs call.
    journal_path
        Where a parent writes if the queue is gone.
    successor
        The environment of the queue that a parent then starts, as far as it must be the same.
    watch, unwatch
        Told of each channel that comes and goes.
    """

    def __init__(
        self,
        *,
        entry: str,
        journal_path: Path,
        successor: dict[str, str],
        watch: Callable[[Channel], None],
        unwatch: Callable[[Channel], object],
    ) -> None:
        self._entry, self._journal_path, self._successor = entry, journal_path, successor
        self._watch, self._unwatch = watch, unwatch
        self._parents: dict[Kind, WorkerParent] = {}
        self._retired: list[WorkerParent] = []
        self._unfit: dict[Kind, float] = {}
        self._ending: list[subprocess.Popen[bytes]] = []

    def __iter__(self) -> Iterator[WorkerParent]:
        return iter([*self._parents.values(), *self._retired])

    def prepare(self, profile: Profile) -> WorkerParent:
        """Return the parent for a job, started if need be."""
        kind = self._usable(Kind.of(profile) if profile.warm and profile.cpus == 1 else COLD)
        if kind.preload and kind not in self._parents and not self._room():
            kind = self._usable(kind.plainer())
        while True:
            parent = self._parents.pop(kind, None) or self._new(kind)
            if parent is not None:
                self._parents[kind] = parent  # at the end: the most recently used one
                parent.used_at = time.monotonic()
                return parent
            if kind is COLD:
                raise OSError("no worker parent can be started")
            kind = self._usable(kind)

    def start(
        self,
        parent: WorkerParent,
        job_id: str,
        profile: Profile,
        index: int,
        devices: Sequence[str] = (),
    ) -> None:
        """Have a parent start a job that is to see these GPUs."""
        parent.jobs[job_id] = None
        order = _order(job_id, profile, index, devices, warm=parent.kind.warm).wire()
        # If it is gone, that is noticed when its channel is read.
        with contextlib.suppress(OSError):
            parent.channel.send({"type": "start", "job": job_id, "order": order})

    def signal(self, job_id: str, number: int, *, main: bool = False) -> None:
        """Have a job's session signalled, or its main process alone."""
        message = {"type": "signal", "job": job_id, "signal": number, "main": main}
        for parent in self:
            if job_id in parent.jobs:
                with contextlib.suppress(OSError):
                    parent.channel.send(message)

    def abandon(self, job_id: str) -> None:
        """Kill the parent that should start a job, if it hangs in its own imports."""
        for parent in self:
            if job_id in parent.jobs and not parent.ready:
                parent.process.kill()

    def note(self, parent: WorkerParent, message: Message) -> None:
        """Keep up with what a parent tells."""
        if message["type"] == "ready":
            parent.ready = True
        elif message["type"] == "started":
            identity = ProcessIdentity(message["pid"], message["started"])
            parent.jobs[message["job"]] = identity
        elif message["type"] in ("ended", "failed"):
            del parent.jobs[message["job"]]
        elif message["type"] == "declined":
            del parent.jobs[message["job"]]
            self._retire(parent)
        elif message["type"] == "unfit":
            _LOG.info("no warm workers from %s: %s", parent.kind.python, message["reason"])

    def lose(self, parent: WorkerParent) -> set[str]:
        """Forget a parent that is gone; return the jobs that it certainly has not started."""
        unstarted = set() if parent.ready else set(parent.jobs)
        if not parent.ready:
            self._unfit[parent.kind] = time.monotonic()
        self._dismiss(parent)
        return unstarted

    def tidy(self) -> None:
        """Let go of idle parents beyond the most recently used ones; wait for those that end."""
        idle = [parent for parent in self._parents.values() if not parent.jobs]
        surplus = idle[: max(0, len(idle) - _KEEP_IDLE)]
        old = [parent for parent in idle if time.monotonic() - parent.used_at > _KEEP_IDLE_S]
        spent = [parent for parent in self._retired if not parent.jobs]
        for parent in {id(parent): parent for parent in (*surplus, *old, *spent)}.values():
            self._dismiss(parent)
        self._ending = [process for process in self._ending if process.poll() is None]

    def close(self) -> None:
        """Let go of all parents."""
        for parent in self:
            self._dismiss(parent)

    def leave(self) -> None:
        """Tell all parents that the queue ends on purpose, although jobs may run."""
        for parent in self:
            with contextlib.suppress(OSError):
                parent.channel.send({"type": "leave"})

    def _dismiss(self, parent: WorkerParent) -> None:
        with contextlib.suppress(OSError):
            parent.channel.send({"type": "dismiss"})
        self._unwatch(parent.channel)
        parent.channel.close()
        if parent in self._retired:
            self._retired.remove(parent)
        else:
            self._parents.pop(parent.kind, None)
        self._ending.append(parent.process)

    def _retire(self, parent: WorkerParent) -> None:
        """Give no more jobs to a parent; those it has go on."""
        if self._parents.get(parent.kind) is parent:
            self._retired.append(self._parents.pop(parent.kind))

    def _room(self) -> bool:
        """Whether one more warm parent may be kept beside those that are in use."""
        recent = time.monotonic() - _RECENT_S
        in_use = [p for p in self._parents.values() if p.jobs or p.used_at > recent]
        return len(in_use) < _KEEP_IDLE

    def _usable(self, kind: Kind) -> Kind:
        """Return the kind, or a plainer one if it was found unfit just now."""
        now = time.monotonic()
        self._unfit = {k: at for k, at in self._unfit.items() if now - at < _UNFIT_FOR_S}
        while kind in self._unfit and kind is not COLD:
            kind = kind.plainer()
        return kind

    def _new(self, kind: Kind) -> WorkerParent | None:
        """Start a parent; None if that is impossible, which is then remembered."""
        ours, theirs = socket.socketpair()
        options = {
            "version": PROTOCOL_VERSION,
            "warm": kind.warm,
            "preload": kind.preload,
            "entry": self._entry,
            "journal": str(self._journal_path),
            "successor": self._successor,
        }
        argv = [kind.python, "-P", "-m", "dask_batch.backends.local.nursery"]
        try:
            process = subprocess.Popen(
                [*argv, str(theirs.fileno()), json.dumps(options)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=_parent_environment(kind),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            _LOG.warning("%s cannot be started: %s", kind.python, error)
            ours.close()
            self._unfit[kind] = time.monotonic()
            return None
        finally:
            theirs.close()
        identity = ProcessIdentity.of(process.pid) or ProcessIdentity(process.pid, "")
        parent = WorkerParent(kind, process, identity, Channel(ours))
        self._watch(parent.channel)
        return parent


def _parent_environment(kind: Kind) -> Mapping[str, str]:
    """Return the environment in which libraries are imported: one thread each."""
    base = dict(kind.environment) if kind.warm else dict(os.environ)
    # pyarrow's allocator starts a thread of its own otherwise.
    return base | thread_variables(1) | {"JE_ARROW_MALLOC_CONF": "background_thread:false"}


def _order(
    job_id: str, profile: Profile, index: int, devices: Sequence[str], *, warm: bool
) -> Order:
    """Return what a parent has to know to start a job."""
    argv: tuple[str, ...] = ()
    script = ""
    if not warm:
        argv = command(profile.python, profile.definition, index, profile.program)
        if profile.prologue:
            argv, script = ("bash",), shell_script(argv, prologue=profile.prologue)
    own = {"DASK_BATCH_JOB_ID": job_id, "DASK_BATCH_BACKEND": "local"}
    return Order(
        definition=profile.definition,
        index=index,
        log_directory=profile.log_directory,
        working_directory=profile.working_directory,
        environment={
            **profile.environment,
            **thread_variables(profile.cpus),
            **own,
            **profile.device_environment(devices),
        },
        argv=argv,
        script=script,
    )
