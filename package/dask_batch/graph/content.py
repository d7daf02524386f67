"""The content of a value: a digest that is equal for equal values, in every process.

Two values have the same digest if a function that is given the one instead of the other does the
same work. Neither pickle bytes (they change with line numbers, file names and the order of sets,
and are blind to an edited function that was pickled by its name) nor ``dask.tokenize`` (an array
and its transpose share a token) have that property, so values are taken apart by type:

* plain values by their bytes; containers by the contents of their members: sets without order,
  dicts in theirs;
* arrays, data frames and their like by what they hold, not by how memory is laid out;
* code of the user's by value: bytecode, constants, and everything it reaches;
* code of libraries by name and version;
* files that are read by name, size and time, or by their content;
* locks, loggers and the like by type and name: they have no content;
* everything else by what it would be pickled from.

What has no stable content (open files, sockets, ``object()``, generators) is no error: it is
noted as a :class:`Problem`, with the path that leads there.

Notes
-----
Digests of code, and of instances of classes outside ``builtins``, depend on Python's minor
version; those of plain builtin values do not. An object of a library's class depends on the
version of the library. A function's name and annotations are not part of its content, and a
class's name is. A module-level dict that a function uses as a memo is part of its content, as are
a function's own attributes: fill it, and the function is another. ``functools.lru_cache`` and
``functools.cached_property`` are understood: what they remember does not count.

What a function finds inside a library by a chain of attributes (``os.environ``, ``np.random``) is
the library's: its name and version count, not its present state.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from dask_batch.code.origin import Granularity
from dask_batch.errors import SerializationError
from dask_batch.graph import shape as shapes
from dask_batch.graph.cycles import Member, component_digests
from dask_batch.graph.handlers import Shaper
from dask_batch.graph.shape import (
    ENCODERS,
    NOTHING,
    Facts,
    Problem,
    ReductionError,
    Shape,
    extend_path,
)
from dask_batch.inputs import InputFile

__all__ = ["Content", "ContentHasher", "Problem"]


@dataclass(frozen=True, slots=True)
class Content:
    """What a value is, as far as keys are concerned.

    Attributes
    ----------
    digest
        32 bytes.
    problems
        Parts that have no stable content: if there are any, the digest is a mark, and a task
        with this value cannot be found again.
    libraries
        Distributions that were reached by reference, with their exact versions.
    inputs
        Files outside, as they were when they were looked at.
    preload
        Library modules that the value needs: two levels for Dask's (``dask.array``), the
        top-level package for others.
    """

    digest: bytes
    problems: tuple[Problem, ...] = ()
    libraries: frozenset[tuple[str, str]] = frozenset()
    inputs: frozenset[InputFile] = frozenset()
    preload: frozenset[str] = frozenset()


_DEEPEST: Final = 100_000
"""Levels of nesting. What goes deeper is no data, but makes new objects whenever it is asked."""


@dataclass(slots=True, eq=False)
class _Node:
    """One object on its way to a digest."""

    value: Any
    shape: Shape
    number: int
    """In the order of visits; ``low`` is the smallest number that is reached from here."""
    low: int
    children: Iterator[Any]
    parts: list[bytes | _Node] = field(default_factory=list)
    """For each child so far its bytes, or its node if it has none yet."""
    facts: Facts = NOTHING
    looped: bool = False
    digest: bytes | None = None


class ContentHasher:
    """Digests values. One hasher serves one hand-over: it takes values to stay as they are.

    Parameters
    ----------
    key_versions
        How much of a library's version counts: ``"minor"``, ``"exact"`` or ``"none"``.
    reference
        Asked for objects that stand for another task (futures, references): the digest that it
        returns is used instead of the object's content. None means: an ordinary object.
    """

    def __init__(
        self,
        *,
        key_versions: Granularity = "minor",
        reference: Callable[[Any], bytes | None] | None = None,
    ) -> None:
        self._reference = reference
        self._shaper = Shaper(key_versions)
        # By id: each entry holds its object, so that no other can take its place in memory.
        self._memo: dict[int, tuple[Any, bytes, Facts]] = {}

    mix = staticmethod(shapes.mix)

    def content(self, obj: Any, where: str = "") -> Content:
        """Return the content of a value.

        Parameters
        ----------
        obj
            Any object.
        where
            What the value is called at the beginning of paths: ``"argument 'x'"``.

        Raises
        ------
        SerializationError
            A method of the user's own (``__reduce__``, ``__dask_tokenize__``, …) raised.
        """
        encoder = ENCODERS.get(type(obj))
        if encoder is not None:
            return Content(shapes.mix("value", encoder(obj)))
        settled = self._settled(obj)
        digest, facts = self._walk(obj, where) if settled is None else settled
        facts = facts.below(where)
        return Content(digest, facts.problems, facts.libraries, facts.inputs, facts.preload)

    def reads(self, function: Any, arguments: Any) -> Content | None:
        """Return the files that a call reads, where only the whole call tells them.

        Dask's readers hold the file system in the function and the path in an argument, where
        each by itself is not yet a file.

        Parameters
        ----------
        function
            The function of the call.
        arguments
            Its literal arguments, in any container.

        Returns
        -------
        Content or None
            To be mixed into the key of the call; None for all calls but those of such readers.
        """
        files = self._shaper.read_by(function, arguments)
        return None if files is None else self.content(files)

    def _settled(self, obj: Any) -> tuple[bytes, Facts] | None:
        """Return what is known of an object without looking into it."""
        known = self._memo.get(id(obj))
        if known is not None:
            return known[1], known[2]
        if self._reference is not None:
            digest = self._reference(obj)
            if digest is not None:
                self._memo[id(obj)] = (obj, digest, NOTHING)
                return digest, NOTHING
        return None

    def _walk(self, root: Any, where: str) -> tuple[bytes, Facts]:
        """Digest an object and all that it consists of: Tarjan's algorithm, without recursion."""
        path: list[_Node] = []
        unsettled: list[_Node] = []
        opened: dict[int, _Node] = {}
        numbers = itertools.count()
        child = root
        while True:
            if child is not None:
                node = self._open(child, next(numbers), path, where)
                if path:
                    path[-1].parts.append(node)
                opened[id(child)] = node
                path.append(node)
                unsettled.append(node)
            node = path[-1]
            child = self._advance(node, opened)
            if child is not None:
                continue
            path.pop()
            if node.low == node.number:
                self._settle(_popped_to(unsettled, node), opened)
            if not path:
                _, digest, facts = self._memo[id(root)]
                return digest, facts
            path[-1].low = min(path[-1].low, node.low)

    def _advance(self, node: _Node, opened: dict[int, _Node]) -> Any:
        """Take a node's children until one has to be visited first; None at the end."""
        parts = node.parts
        for child in node.children:
            encoder = ENCODERS.get(type(child))
            if encoder is not None:
                parts.append(encoder(child))
                continue
            settled = self._settled(child)
            if settled is not None:
                digest, facts = settled
                if facts is not NOTHING:
                    node.facts = node.facts.joined(facts.below(node.shape.labels(len(parts))))
                parts.append(b"#" + digest)
                continue
            known = opened.get(id(child))
            if known is None:
                return child
            node.low = min(node.low, known.number)
            node.looped = node.looped or known is node
            parts.append(known)
        return None

    def _open(self, value: Any, number: int, path: list[_Node], where: str) -> _Node:
        try:
            shape = self._shaper(value) if len(path) < _DEEPEST else _too_deep(value)
        except ReductionError as error:
            raise SerializationError(f"{_path_to(path, where)}: {error}") from error.__cause__
        return _Node(value, shape, number, number, iter(shape.children), facts=shape.facts)

    def _settle(self, component: list[_Node], opened: dict[int, _Node]) -> None:
        """Give a finished node, or the members of a finished cycle, their digests."""
        for node in component:
            _take_facts(node)
        first = component[0]
        if len(component) == 1 and not first.looped:
            parts = [p if isinstance(p, bytes) else b"#" + (p.digest or b"") for p in first.parts]
            digests, facts = [shapes.combine(first.shape, parts)], first.facts
        else:
            digests, facts = component_digests(_members(component)), NOTHING
            for node in component:
                facts = facts.joined(node.facts)
        for node, digest in zip(component, digests, strict=True):
            node.digest, node.facts, node.parts = digest, facts, []
            del opened[id(node.value)]
            self._memo[id(node.value)] = (node.value, digest, facts)


def _take_facts(node: _Node) -> None:
    """Join to a node's facts those of the children that were visited from it."""
    for position, part in enumerate(node.parts):
        if isinstance(part, bytes) or part.digest is None or part.facts is NOTHING:
            continue
        node.facts = node.facts.joined(part.facts.below(node.shape.labels(position)))


def _too_deep(value: Any) -> Shape:
    name = type(value).__qualname__
    return shapes.unstable("abyss", f"a {name} lies more than {_DEEPEST} levels deep")


def _popped_to(unsettled: list[_Node], node: _Node) -> list[_Node]:
    """Take the nodes off a stack, down to one of them."""
    component = []
    while True:
        component.append(unsettled.pop())
        if component[-1] is node:
            return component[::-1]


def _members(component: list[_Node]) -> list[Member]:
    positions = {id(node): position for position, node in enumerate(component)}
    members = []
    for node in component:
        member = Member(node.shape)
        for part in node.parts:
            if isinstance(part, bytes):
                member.parts.append(part)
            elif part.digest is None:
                member.parts.append(positions[id(part)])
            else:
                member.parts.append(b"#" + part.digest)
        members.append(member)
    return members


def _path_to(path: list[_Node], where: str) -> str:
    """Say where the object is that the last node of a path is about to visit."""
    place = ""
    for above, node in enumerate(reversed(path)):
        # All but the last have the next node of the path among their parts already.
        place = extend_path(node.shape.labels(len(node.parts) - (above > 0)), place)
    return extend_path(where, place) or "the value"
