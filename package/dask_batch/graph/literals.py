"""Digests of what stands in a task beside references: literals, and containers with both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dask_batch.code.origin import Granularity
from dask_batch.graph.content import Content, ContentHasher
from dask_batch.graph.shape import NOTHING, Facts

__all__ = ["Hole", "Literals", "Notes", "Referenced"]


@dataclass(frozen=True, slots=True)
class Referenced:
    """What an object in an argument (a future) stands for: the result under a key."""

    key: str
    ephemeral: bool = False


@dataclass(slots=True)
class Notes:
    """What is learnt about a task while its key is computed."""

    facts: Facts = NOTHING
    ephemeral: bool = False

    def add(self, content: Content) -> None:
        """Note what a content rests on."""
        if content.problems or content.libraries or content.inputs or content.preload:
            self.facts = self.facts.joined(
                Facts(content.problems, content.libraries, content.inputs, content.preload)
            )


class Hole:
    """Stands in a container for something whose digest is known."""

    __slots__ = ("digest",)

    def __init__(self, digest: bytes) -> None:
        self.digest = digest


class Literals:
    """Digests values, once each, and notes what they rest on.

    Parameters
    ----------
    key_versions
        How much of a library's version counts.
    reference
        Tells which result an object stands for, if it does.
    """

    def __init__(
        self,
        key_versions: Granularity,
        reference: Callable[[Any], Referenced | None] | None = None,
    ) -> None:
        self._key_versions = key_versions
        self._references = _References(reference)
        self.hasher = ContentHasher(key_versions=key_versions, reference=self._references)
        self._scalars: dict[tuple[type, Any], bytes] = {}

    def digest(self, value: Any, where: str, notes: Notes) -> bytes:
        """Digest a value that is called ``where`` in messages."""
        kind = type(value)
        if kind is int or kind is str or value is None:
            digest = self._scalars.get((kind, value))
            if digest is None:
                digest = self._scalars[kind, value] = self.hasher.content(value).digest
            return digest
        references = self._references
        references.met_ephemeral = False
        content = self.hasher.content(value, where)
        notes.add(content)
        if references.ever_met_ephemeral and not references.met_ephemeral:
            # The hasher remembers whole containers and does not look into them twice.
            afresh = ContentHasher(key_versions=self._key_versions, reference=references)
            afresh.content(value, where)
        notes.ephemeral |= references.met_ephemeral
        return content.digest

    def reads(self, function: Any, arguments: Any, notes: Notes) -> bytes | None:
        """Digest the files that a call of one of Dask's readers opens; None for other calls."""
        content = self.hasher.reads(function, arguments)
        if content is None:
            return None
        notes.add(content)
        return content.digest


class _References:
    """Tells the hasher what stands for a result; and us, whether one of them is ephemeral.

    An object of its own, so that the hasher, which keeps the caller's objects alive, is in no
    reference cycle: they are let go as soon as the keys are known.
    """

    def __init__(self, reference: Callable[[Any], Referenced | None] | None) -> None:
        self._reference = reference
        self.met_ephemeral = False
        self.ever_met_ephemeral = False

    def __call__(self, value: Any) -> bytes | None:
        if type(value) is Hole:
            return value.digest
        found = self._reference(value) if self._reference is not None else None
        if found is None:
            return None
        if found.ephemeral:
            self.met_ephemeral = self.ever_met_ephemeral = True
        return bytes.fromhex(found.key)
