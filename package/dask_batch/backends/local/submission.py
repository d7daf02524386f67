"""A hand-over on the wire: small, as what many jobs have in common is sent once, and checked.

A hand-over comes in parts, each a message with any of ``environments`` (objects of strings),
``profiles`` (:class:`Profile` as objects, ``environment`` a position in the former) and ``jobs``
(lists ``[name, profile, index, parents, after, more]``, the last an object of what else is said).
Nothing of it counts before the last message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from dask_batch.backends.gpus import Devices
from dask_batch.backends.local.protocol import Message, ProtocolError
from dask_batch.backends.local.records import Demand
from dask_batch.backends.local.script import DEFAULT_PROGRAM
from dask_batch.job.devices import VARIABLES, restricted

__all__ = ["LONGEST_S", "Member", "Profile", "Staged", "parts"]

_TEXTS = ("definition", "log_directory", "working_directory", "python", "prologue", "program")
_MAX_JOBS = 2_000_000
LONGEST_S = 1e12
"""No time limit is as long, in seconds."""
_MAX_TEXT = 2**20
_JOBS_PER_PART = 5_000
_PROFILES_PER_PART = 200
_IDS_PER_PART = 50_000


@dataclass(frozen=True, slots=True)
class Profile:
    """What jobs of a hand-over have in common: how to start them and what they need."""

    definition: str
    log_directory: str
    working_directory: str
    environment: Mapping[str, str]
    python: str
    cpus: int = 1
    memory_bytes: int = 0
    limit_memory: bool = False
    run_time_s: float | None = None
    priority: int = 0
    prologue: str = ""
    warm: bool = True
    """Whether it may be forked from a warm parent."""
    preload: tuple[str, ...] = ()
    program: str = DEFAULT_PROGRAM
    """The module that a fresh process runs."""
    gpus: int = 0
    gpu_variable: str = ""
    gpu_names: tuple[str, ...] = ()
    """The devices among which its GPUs have to be, and the variable in which it finds them."""

    def demand(self, group: str | None) -> Demand:
        """Return what a job takes of the machine."""
        devices = Devices(self.gpu_variable, self.gpu_names)
        return Demand(self.cpus, self.memory_bytes, self.priority, group, self.gpus, devices)

    def device_environment(self, devices: Sequence[str]) -> dict[str, str]:
        """Return the variables with which a job sees these devices, and no others."""
        if not self.gpu_variable:
            return {}
        return restricted(self.environment, self.gpu_variable, self.gpu_names, devices)


@dataclass(frozen=True, slots=True)
class Member:
    """One job of a hand-over. ``parents`` are positions in it; ``after`` are job ids."""

    name: str
    profile: Profile
    index: int
    parents: tuple[int, ...] = ()
    after: tuple[str, ...] = ()
    repeatable: bool = False
    patient: bool = False
    after_failure: tuple[str, ...] = ()
    after_end: tuple[str, ...] = ()

    def wire(self, profile: int) -> list[Any]:
        """Return it as JSON data; ``profile`` is a position."""
        more = {name: value for name in _MORE if (value := getattr(self, name))}
        return [self.name, profile, self.index, self.parents, self.after, more]

    @property
    def id_count(self) -> int:
        """How many ids and positions it names: what makes it large."""
        return sum(map(len, (self.parents, self.after, self.after_failure, self.after_end)))


_MORE = ("repeatable", "patient", "after_failure", "after_end")


def parts(members: Iterable[Member]) -> Iterator[Message]:
    """Yield the messages that bring a hand-over to the queue, :class:`Staged` reads them."""
    environments: dict[int, int] = {}
    profiles: dict[int, int] = {}
    message: Message = {"type": "part", "environments": [], "profiles": [], "jobs": []}
    ids = 0
    for member in members:
        profile = member.profile
        if id(profile.environment) not in environments:
            environments[id(profile.environment)] = len(environments)
            message["environments"].append(dict(profile.environment))
        if id(profile) not in profiles:
            profiles[id(profile)] = len(profiles)
            wire = {item.name: getattr(profile, item.name) for item in fields(profile)}
            wire["environment"] = environments[id(profile.environment)]
            message["profiles"].append(wire)
        message["jobs"].append(member.wire(profiles[id(profile)]))
        ids += member.id_count
        if ids >= _IDS_PER_PART or _full(message):
            yield message
            ids = 0
            message = {"type": "part", "environments": [], "profiles": [], "jobs": []}
    yield message


def _full(message: Message) -> bool:
    """Whether a part is large enough to be sent."""
    return bool(
        message["environments"]
        or len(message["profiles"]) >= _PROFILES_PER_PART
        or len(message["jobs"]) >= _JOBS_PER_PART
    )


@dataclass(slots=True)
class Staged:
    """The parts of a hand-over that have come so far."""

    environments: list[dict[str, str]] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)

    def add(self, message: Message) -> None:
        """Take in a part.

        Raises
        ------
        ProtocolError
            Something in it is not what it must be.
        """
        for environment in _list(message.get("environments", [])):
            self.environments.append(_environment(environment))
        for wire in _list(message.get("profiles", [])):
            self.profiles.append(self._profile(wire))
        for wire in _list(message.get("jobs", [])):
            self.members.append(self._member(wire))
        if len(self.members) > _MAX_JOBS:
            raise ProtocolError(f"a hand-over of more than {_MAX_JOBS} jobs")

    def _profile(self, wire: Any) -> Profile:
        if not isinstance(wire, dict):
            raise ProtocolError("a profile is not an object")
        texts = {name: _text(wire.get(name)) for name in _TEXTS}
        run_time_s = wire.get("run_time_s")
        return Profile(
            environment=self._at(self.environments, wire.get("environment")),
            cpus=_whole(wire.get("cpus"), least=1),
            memory_bytes=_whole(wire.get("memory_bytes")),
            limit_memory=wire.get("limit_memory") is True,
            run_time_s=None if run_time_s is None else _seconds(run_time_s),
            priority=_whole(wire.get("priority"), least=-(2**53)),
            warm=wire.get("warm") is True,
            preload=_texts(wire.get("preload")),
            gpus=_whole(wire.get("gpus", 0)),
            gpu_variable=_variable(wire.get("gpu_variable", "")),
            gpu_names=_texts(wire.get("gpu_names", [])),
            **texts,
        )

    def _member(self, wire: Any) -> Member:
        if not isinstance(wire, list) or len(wire) != 6 or not isinstance(wire[5], dict):
            raise ProtocolError("a job is not a list of six")
        name, profile, index, parents, after, more = wire
        return Member(
            name=_text(name),
            profile=self._at(self.profiles, profile),
            index=_whole(index),
            parents=tuple(_whole(parent) for parent in _list(parents)),
            after=_texts(after),
            repeatable=more.get("repeatable") is True,
            patient=more.get("patient") is True,
            after_failure=_texts(more.get("after_failure", [])),
            after_end=_texts(more.get("after_end", [])),
        )

    @staticmethod
    def _at(items: list[Any], position: Any) -> Any:
        """Return what a part refers to."""
        if _whole(position) >= len(items):
            raise ProtocolError(f"there is no item {position}")
        return items[position]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ProtocolError(f"{value!r:.80} is not a list")
    return value


def _text(value: Any) -> str:
    """Check a string that is to become a path, an argument or a variable."""
    if not isinstance(value, str) or "\0" in value or len(value) > _MAX_TEXT:
        raise ProtocolError(f"{value!r:.80} is not a string that the system takes")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_text(item) for item in _list(value))


def _variable(value: Any) -> str:
    """Check the variable in which devices are named, if they are."""
    if value != "" and value not in VARIABLES:
        raise ProtocolError(f"{value!r:.80} is no variable that lists devices")
    return str(value)


def _whole(value: Any, *, least: int = 0) -> int:
    if type(value) is not int or not least <= value < 2**63:
        raise ProtocolError(f"{value!r:.80} is not a whole number from {least}")
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < LONGEST_S:
        raise ProtocolError(f"{value!r:.80} is not a time")
    return float(value)


def _environment(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ProtocolError("an environment is not an object")
    for name, text in value.items():
        if not _text(name) or "=" in name:
            raise ProtocolError(f"{name!r:.80} is no name of a variable")
        _text(text)
    return value
