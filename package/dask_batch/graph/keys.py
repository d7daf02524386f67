"""Content keys of tasks: the same work has the same key, other work another one.

A key is the digest of a function, of its arguments, and of the keys of the tasks whose results are
among them. Three things are added: the annotation ``version``, the block index of the task's name
(``("sample", 2, 5)`` is block (2, 5)), and, where tasks of equal content and index have different
names, an ordinal: ``delayed(sample)()`` ten times is ten samples.

Ordinals are given out by a walk, depth first from the wanted tasks in the order asked, arguments
left to right, keyword arguments by name, members of a set by content, so that they depend on
nothing but the graph's structure. Names are not part of any key, but a name keeps its ordinal for
the life of the process: computing one of ten samples later gives the same sample.

A fused task is hashed as the tasks it was made of; its key is that of the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dask_batch.code.origin import Granularity
from dask_batch.graph.content import ContentHasher, Problem
from dask_batch.graph.literals import Literals, Referenced
from dask_batch.graph.merkle import Unit, Walk
from dask_batch.graph.ordinals import Ordinals
from dask_batch.inputs import InputFile
from dask_batch.spec import Call, Task

__all__ = ["Keyed", "Keys", "Referenced", "call_key"]


@dataclass(frozen=True, slots=True)
class Keyed:
    """The key of a task and what was learnt on the way.

    Attributes
    ----------
    key
        64 hex digits.
    ephemeral
        Whether the key is good for this run alone: the task, or one that it descends from, has
        no stable content, is not to be cached, or writes into the world outside.
    problems
        Why the task itself has no stable content, if so.
    libraries
        The distributions, with their versions, that the key rests on.
    inputs
        The files outside that it rests on.
    preload
        Modules that a job should import first.
    parts
        Each part of the key by a label for people, as a digest or in words.
    """

    key: str
    ephemeral: bool = False
    problems: tuple[Problem, ...] = ()
    libraries: frozenset[tuple[str, str]] = frozenset()
    inputs: frozenset[InputFile] = frozenset()
    preload: frozenset[str] = frozenset()
    parts: Mapping[str, str] = field(default_factory=dict)


class Keys:
    """Gives keys to the tasks of one hand-over.

    Parameters
    ----------
    key_versions
        How much of a library's version counts: ``"minor"``, ``"exact"`` or ``"none"``.
    nonce
        What makes the keys of this run its own where they are good for it alone.
    reference
        Tells which result an object in an argument (a future) stands for, if it does.
    """

    def __init__(
        self,
        *,
        key_versions: Granularity = "minor",
        nonce: str,
        reference: Callable[[Any], Referenced | None] | None = None,
    ) -> None:
        self._nonce = nonce
        self._literals = Literals(key_versions, reference)

    @property
    def hasher(self) -> ContentHasher:
        """The hasher behind the keys, which remembers what it has seen."""
        return self._literals.hasher

    def of(
        self, tasks: Mapping[Hashable, Task], wanted: Sequence[Hashable]
    ) -> dict[Hashable, Keyed]:
        """Give a key to every task of a graph.

        Parameters
        ----------
        tasks
            The whole graph, before anything is pruned or fused.
        wanted
            The names of the tasks that are wanted, in the order asked.
        """
        walk = Walk(tasks, self._literals, self._nonce, Ordinals())
        for name in (*wanted, *tasks):
            walk.settle(walk.task(name))
        return {name: _keyed(walk.task(name)) for name in tasks}


def call_key(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    keys: Keys,
    annotations: Mapping[str, Any] | None = None,
) -> Keyed:
    """Give the key of a plain call: that of a delayed call of the same content, repetition 0."""
    task = Task("call", Call(function, args, kwargs), annotations or {})
    return keys.of({task.name: task}, (task.name,))[task.name]


def _keyed(unit: Unit) -> Keyed:
    assert unit.digest is not None  # of() has settled every task
    facts = unit.facts
    return Keyed(
        unit.digest.hex(),
        unit.ephemeral,
        facts.problems,
        facts.libraries,
        facts.inputs,
        facts.preload,
        unit.parts,
    )
