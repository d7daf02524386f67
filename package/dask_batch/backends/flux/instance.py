"""What is said to a Flux instance and what it answers, as plain records: the seam to the bindings.

:mod:`.bindings` speaks to a real instance; ``dask_batch.testing.fake_flux`` is a stand-in.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = [
    "HOLD",
    "NORMAL",
    "URGENT",
    "Dependency",
    "Event",
    "Instance",
    "Machine",
    "Phase",
    "Refused",
    "Request",
    "Row",
]

HOLD = 0
"""The urgency of a job that is not to begin."""
NORMAL = 16
URGENT = 31


class Phase(enum.IntEnum):
    """How far a job has come: Flux's own states, in their order."""

    NEW = 1
    DEPEND = 2
    PRIORITY = 4
    SCHED = 8
    RUN = 16
    CLEANUP = 32
    INACTIVE = 64


@dataclass(frozen=True, slots=True)
class Dependency:
    """What one job waits for of another."""

    kind: str
    """``afterok``, ``afterany``, ..."""
    job_id: str


@dataclass(frozen=True, slots=True)
class Request:
    """One job to be, in Flux's terms."""

    name: str
    command: tuple[str, ...]
    slots: int = 1
    cpus: int = 1
    """Of each slot."""
    gpus: int = 0
    """Of each slot."""
    nodes: int | None = None
    exclusive: bool = False
    nested: bool = False
    """Whether the command is the one initial program of an instance with all the slots."""
    run_time_s: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    expanded: Mapping[str, str] = field(default_factory=dict)
    """Variables whose values hold Flux's ``{{...}}``."""
    directory: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    queue: str | None = None
    bank: str | None = None
    dependencies: tuple[Dependency, ...] = ()
    urgency: int = NORMAL
    note: Mapping[str, Any] = field(default_factory=dict)
    """What we keep with the job, for whoever finds it: JSON data."""


@dataclass(frozen=True, slots=True)
class Refused:
    """An instance's words on a job that it did not take."""

    message: str


@dataclass(frozen=True, slots=True)
class Row:
    """What an instance knows of a job at one moment."""

    job_id: str
    name: str
    phase: Phase
    urgency: int = NORMAL
    submitted: float = 0.0
    wait_status: int | None = None
    """As :func:`os.waitpid` has it; None: its command has not ended, or never began."""
    exception: str = ""
    """The type of the exception that ended it."""
    note: str = ""
    waits_for: frozenset[Dependency] = frozenset()
    """As Flux tells them: ``after-success``, ``after-finish``, ..."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of an instance's journal."""

    job_id: str
    name: str
    context: Mapping[str, Any] = field(default_factory=dict)
    job_name: str = ""
    """Told with the first one, ``submit``."""
    timestamp: float = 0.0
    dependency: Dependency | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """What an instance has: CPUs and GPUs of each node."""

    nodes: tuple[tuple[int, int], ...]

    @property
    def cpus(self) -> int:
        """How many there are together."""
        return sum(cpus for cpus, _ in self.nodes)

    @property
    def gpus(self) -> int:
        """How many there are together."""
        return sum(gpus for _, gpus in self.nodes)


class Instance(Protocol):
    """A Flux instance. May be used from several threads.

    Every method raises :class:`~dask_batch.errors.BackendUnavailableError` if it does not answer.
    """

    place: str
    """Where its first broker is: host and path, the same whoever asks."""
    owned: bool
    """Whether it is this user's: only then there is a journal to be read."""
    command: str
    """The program ``flux``."""

    def submit(self, requests: Sequence[Request]) -> list[str | Refused]:
        """Hand over jobs that do not wait for each other; return an id, or a refusal, for each."""

    def set_urgency(self, urgencies: Mapping[str, int]) -> None:
        """Change urgencies. Jobs that run, have ended or are unknown are no error."""

    def end(self, job_ids: Collection[str], kind: str, note: str) -> None:
        """Raise a fatal exception on jobs. Ended and unknown ones are no error."""

    def rows(self, job_ids: Collection[str]) -> list[Row]:
        """Return what is known of jobs by their ids."""

    def named(self, names: Collection[str]) -> list[Row]:
        """Return the user's jobs of these names."""

    def active(self) -> list[Row]:
        """Return the user's jobs that have not ended."""

    def note(self, job_id: str) -> Mapping[str, Any]:
        """Return what was kept with a job (:attr:`Request.note`)."""

    def machine(self) -> Machine:
        """Return what there is."""

    def events(self, stopped: Callable[[], bool]) -> Iterator[Event | None]:
        """Yield what happens from now on; None now and then, when nothing does.

        The first None says that nothing that happens later will be missed.
        """

    def close(self) -> None:
        """Let go of the connections of this thread."""
