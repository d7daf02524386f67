"""Digests for values that contain each other: functions that call each other, cyclic containers.

Such values form a strongly connected component of the graph of values. Its members get digests
that depend on nothing but the component: neither on where it was entered, nor on the order in
which it was walked.

The component is written down as a walk from one of its members, in which each member is named by
the number of its first visit. That is exact: two components have the same walk only if they are
built alike. The member to begin with is found by colours: each member begins with the digest of
its own bytes and of what it contains outside the component, and takes in the colours of its
neighbours a few times. Where no colour is unique (a ring of equal links), the colours themselves
are the digests, together with how many of each there are.

Notes
-----
Within a component, sharing counts: a list that contains itself differs from a list that contains
a list that contains the first, although both look alike when unrolled. Outside of cycles, an
object that occurs twice and two equal objects are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from dask_batch.graph.shape import Shape, combine, mix

__all__ = ["Member", "component_digests"]

_MOST_ROUNDS = 16


@dataclass(slots=True, eq=False)
class Member:
    """One value of a component.

    ``parts`` holds, for each child, its bytes, or the position of the member that it is.
    """

    shape: Shape
    parts: list[bytes | int] = field(default_factory=list)


_Colours: TypeAlias = list[bytes]


def component_digests(members: Sequence[Member]) -> list[bytes]:
    """Return the digest of each member of a component."""
    colours = _colours(members, _MOST_ROUNDS)
    counts = Counter(colours)
    unique = [colour for colour in colours if counts[colour] == 1]
    if not unique:
        colours = _colours(members, len(members) + 1)
        whole = mix("cycle", *sorted(colours))
        return [mix("link of cycle", whole, colour) for colour in colours]
    whole, numbers = _walk(members, colours.index(min(unique)), colours)
    return [mix("member of cycle", whole, str(numbers[i])) for i in range(len(members))]


def _colours(members: Sequence[Member], most_rounds: int) -> _Colours:
    """Refine colours until they tell no more members apart, or for so many rounds."""
    colours = [b""] * len(members)
    told_apart = 0
    for _ in range(most_rounds):
        colours = [_coloured(member, colours) for member in members]
        kinds = len(set(colours))
        if kinds in (told_apart, len(members)):
            break
        told_apart = kinds
    return colours


def _coloured(member: Member, colours: _Colours) -> bytes:
    parts = [b"*" + colours[p] if isinstance(p, int) else p for p in member.parts]
    return combine(member.shape, parts)


def _walk(members: Sequence[Member], start: int, colours: _Colours) -> tuple[bytes, dict[int, int]]:
    """Write a component down, depth first from one member; return that and the numbers given."""
    numbers = {start: 0}
    written: list[bytes] = []
    todo = [start]
    while todo:
        member = members[todo.pop()]
        parts = _ordered(member, colours)
        row = []
        for part in parts:
            if isinstance(part, int) and part not in numbers:
                numbers[part] = len(numbers)
                todo.append(part)
            row.append(b"*%d" % numbers[part] if isinstance(part, int) else part)
        written.append(mix(member.shape.tag, *member.shape.data, b"children", *row))
    return mix("walk", *written), numbers


def _ordered(member: Member, colours: _Colours) -> Sequence[bytes | int]:
    """Return a member's parts, those of a set in an order that does not depend on the process."""
    if not member.shape.unordered:
        return member.parts
    return sorted(member.parts, key=lambda p: colours[p] if isinstance(p, int) else p)
