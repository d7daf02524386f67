"""What a value consists of: some bytes of its own, and other values.

Handlers (:mod:`dask_batch.graph.handlers`) turn one object into one :class:`Shape` and never look
deeper; :class:`dask_batch.graph.content.ContentHasher` walks from shape to shape with a stack of
its own. So nesting has no limit, cycles are one place's business, and a handler is a few lines.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from types import EllipsisType, NoneType, NotImplementedType
from typing import Any, Final, TypeAlias

from dask_batch.inputs import InputFile

__all__ = [
    "ENCODERS",
    "NOTHING",
    "Facts",
    "Part",
    "Problem",
    "ReductionError",
    "Shape",
    "attribute_labels",
    "combine",
    "extend_path",
    "mix",
    "unstable",
]

Part: TypeAlias = "bytes | str | memoryview"

_LONGEST_PATH = 400
_MOST_PROBLEMS = 8


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something has no stable content, and where it is."""

    path: str
    """As in ``argument 'config'.handlers[0]`` or ``global 'conn' of load``."""
    reason: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What is worth knowing about a content beside its digest."""

    problems: tuple[Problem, ...] = ()
    libraries: frozenset[tuple[str, str]] = frozenset()
    inputs: frozenset[InputFile] = frozenset()
    preload: frozenset[str] = frozenset()

    def joined(self, other: Facts) -> Facts:
        """Return what both say."""
        if other is self or other is NOTHING:
            return self
        if self is NOTHING:
            return other
        seen = set(self.problems)
        new = tuple(problem for problem in other.problems if problem not in seen)
        return Facts(
            (self.problems + new)[:_MOST_PROBLEMS],
            _union(self.libraries, other.libraries),
            _union(self.inputs, other.inputs),
            _union(self.preload, other.preload),
        )

    def below(self, label: str) -> Facts:
        """Return the same facts, as seen from one step further up."""
        if not self.problems or not label:
            return self
        problems = tuple(Problem(extend_path(label, p.path), p.reason) for p in self.problems)
        return Facts(problems, self.libraries, self.inputs, self.preload)


NOTHING: Final = Facts()


def _union(left: frozenset[Any], right: frozenset[Any]) -> frozenset[Any]:
    return left if right <= left else left | right


def extend_path(label: str, path: str) -> str:
    """Put a step before a path; a path that begins with a name of its own stays as it is."""
    if path and path[0] not in ".[":
        return path
    whole = label + path
    if len(whole) > _LONGEST_PATH:
        half = _LONGEST_PATH // 2
        whole = f"{whole[:half]} … {whole[-half:]}"
    return whole


def _no_label(_: int) -> str:
    return ""


@dataclass(slots=True)
class Shape:
    """One object, taken apart.

    Attributes
    ----------
    tag
        The kind of object; shapes of different tags never have the same digest.
    data
        Bytes and strings that belong to the object itself.
    children
        The other objects that it consists of.
    labels
        What a child is called in a path, by its position (``"[3]"``, ``".name"``,
        ``"global 'x' of f"``).
    unordered
        Whether the order of the children is an accident.
    facts
        What is to be said about the object itself.
    """

    tag: str
    data: tuple[Part, ...] = ()
    children: Sequence[Any] = ()
    labels: Callable[[int], str] = _no_label
    unordered: bool = False
    facts: Facts = NOTHING


class ReductionError(Exception):
    """A method of the user's raised while an object was taken apart; ``__cause__`` says what."""


def unstable(kind: str, reason: str) -> Shape:
    """Return the shape of something that has no stable content."""
    return Shape("unstable", (kind,), facts=Facts((Problem("", reason),)))


def attribute_labels(names: Sequence[str]) -> Callable[[int], str]:
    """Name children as attributes."""
    return lambda position: f".{names[position]}"


def mix(tag: str, *parts: Part) -> bytes:
    """Digest parts: domain separated by a tag, each part prefixed by its length."""
    name = tag.encode()
    out = sha256(struct.pack("<Q", len(name)) + name)
    for part in parts:
        if isinstance(part, str):
            part = part.encode("utf-8", "surrogatepass")
        size = part.nbytes if isinstance(part, memoryview) else len(part)
        out.update(struct.pack("<Q", size))
        out.update(part)
    return out.digest()


def combine(shape: Shape, parts: Sequence[bytes]) -> bytes:
    """Digest a shape, given an encoding or a digest for each of its children."""
    ordered = sorted(parts) if shape.unordered else parts
    pieces = [struct.pack("<Q", len(part)) + part for part in ordered]
    return mix(shape.tag, *shape.data, b"".join(pieces))


# Scalars are put into the digest of what contains them as they are. Each encoding begins with a
# byte of its own, and a child's digest with another, so that neither is taken for the other.


def _float(value: float) -> bytes:
    return b"f" + struct.pack("<d", value) if value == value else b"fnan"


def _complex(value: complex) -> bytes:
    return b"c" + _float(value.real) + b"," + _float(value.imag)


def _int(value: int) -> bytes:
    # Hexadecimal: the decimal conversion of a long integer is quadratic, and refused.
    return b"i%x" % value


ENCODERS: Final[dict[type, Callable[[Any], bytes]]] = {
    NoneType: lambda _: b"N",
    bool: lambda value: b"T" if value else b"F",
    EllipsisType: lambda _: b"E",
    NotImplementedType: lambda _: b"I",
    int: _int,
    float: _float,
    complex: _complex,
    str: lambda value: b"s" + value.encode("utf-8", "surrogatepass"),
    bytes: lambda value: b"b" + value,
}
