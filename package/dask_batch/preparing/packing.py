"""One job to be: a chain of tasks, pickled, with all that its job must know."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from dask.utils import key_split

from dask_batch.backends.slurm.options import gpu_option
from dask_batch.code.pickling import Pickled
from dask_batch.future import BatchFuture
from dask_batch.graph.content import ContentHasher
from dask_batch.graph.keys import Keyed
from dask_batch.inputs import InputFile
from dask_batch.preparing.outside import Outside
from dask_batch.preparing.surroundings import Surroundings
from dask_batch.spec import Call, Step, Task, references

__all__ = ["CALL", "Pack", "PreparedJob", "function_name", "name_of", "ranks_of"]

CALL: Final = "call"
"""The name of the one task of a plain call."""
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """One job to be: all that the hand-over needs, nothing that belongs to the caller."""

    key: str
    """The key under which it publishes."""
    function: str
    """A name for people: in ``squeue``, in messages."""
    names: tuple[Hashable, ...]
    """The tasks that it runs, in order: several where a chain was fused."""
    payload: Pickled
    inputs: frozenset[str]
    """Keys of the results that it loads."""
    resources: Mapping[str, Any]
    """In normal form."""
    header: Mapping[str, Any]
    """What the job must know beside the payload, as JSON data."""
    surroundings: Surroundings
    preload: tuple[str, ...] = ()
    wanted: bool = True
    """Whether a caller waits for its result; the others run only if one of those needs them."""
    unknown: tuple[BatchFuture, ...] = ()
    """Futures of other sessions among its arguments, which the cache need not know of yet."""

    @property
    def repeatable(self) -> bool:
        """Whether it is to be repeated when it fails."""
        policy = self.header.get("retry") or {}
        return bool(policy.get("retries") or policy.get("deaths"))


@dataclass(frozen=True, slots=True)
class Pack:
    """Packs tasks into jobs."""

    outside: Outside
    hasher: ContentHasher
    keyed: Mapping[Hashable, Keyed]
    surroundings: Surroundings
    written: Collection[Hashable] = ()
    """Names of tasks that write, or come after one that does."""

    def job(
        self,
        tasks: Sequence[Task],
        normal: Mapping[str, Any],
        retry: Mapping[str, Any],
        *,
        wanted: bool,
    ) -> PreparedJob:
        """Pickle a chain of tasks, and say what its job needs."""
        members = [self.keyed[task.name] for task in tasks]
        steps = self._steps(tasks)
        function = function_name(tasks[-1])
        payload, referenced = self.outside.dumps(steps, function, self.hasher)
        return PreparedJob(
            key=members[-1].key,
            function=function,
            names=tuple(task.name for task in tasks),
            payload=payload,
            inputs=referenced | {key for step in steps for key in step.inputs.values()},
            resources=normal,
            header={
                "libraries": dict(sorted(_union(member.libraries for member in members))),
                "files": [asdict(file) for file in self._read(tasks)],
                "cpus": normal["threads_per_core"],
                "ranks": ranks_of(normal),
                "error_log_file": _absolute(normal["error_log_file"]),
                "retry": retry,
                "attributes": _attributes(tasks[-1], members[-1], function, normal),
            },
            surroundings=self._surroundings(normal["cwd"]),
            preload=tuple(sorted(_union(member.preload for member in members))),
            wanted=wanted,
            unknown=tuple(self.outside.unknown),
        )

    def _read(self, tasks: Sequence[Task]) -> set[InputFile]:
        """Return the files that tasks read: not what they write, or see after it was written."""
        return _union(self.keyed[t.name].inputs for t in tasks if t.name not in self.written)

    def _surroundings(self, cwd: str | None) -> Surroundings:
        if cwd is None:
            return self.surroundings
        return replace(self.surroundings, working_directory=Path(cwd).absolute())

    def _steps(self, tasks: Sequence[Task]) -> tuple[Step, ...]:
        steps = []
        before: Hashable = _NOTHING
        for task in tasks:
            names = dict.fromkeys(references(task.expression))
            inputs = {name: self.keyed[name].key for name in names if name != before}
            steps.append(Step(task.name, task.expression, inputs))
            before = task.name
        return tuple(steps)


def ranks_of(normal: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how the MPI ranks of a job are to be started; None: it is one plain process."""
    if normal["cores"] == 1:
        return None
    return {
        "count": normal["cores"],
        "cpus": normal["threads_per_core"],
        "gpus": normal["gpus_per_core"] or 0,
        "gpu_option": gpu_option(normal),
        "nodes": normal["num_nodes"],
        "exclusive": bool(normal["exclusive"]),
        "pmi_mode": normal["pmi_mode"],
        "oversubscribe": bool(normal["openmpi_oversubscribe"]),
    }


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(path)


_T = TypeVar("_T")


def _union(sets: Iterable[Iterable[_T]]) -> set[_T]:
    return {item for items in sets for item in items}


def _attributes(
    task: Task, keyed: Keyed, function: str, normal: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a result says about its task."""
    return {
        "kind": "result",
        "function": function,
        "name": "" if task.name == CALL else repr(task.name),
        "ephemeral": keyed.ephemeral,
        "parts": dict(keyed.parts),
        # A template's text would repeat itself in every result.
        "resources": {
            name: value
            for name, value in normal.items()
            if value is not None and name != "submission_template"
        },
    }


def function_name(task: Task) -> str:
    """Return a name for people: the function's, or what Dask calls the layer."""
    expression = task.expression
    if task.name == CALL and isinstance(expression, Call):
        return name_of(expression.function)
    return str(key_split(task.name))


def name_of(function: Any) -> str:
    """Return the name of a callable: of what a partial wraps, of an instance's class."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None) or type(function).__name__
    return str(name).strip("<>")
