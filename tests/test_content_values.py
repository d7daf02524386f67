"""The content of values: equal for equal ones, different for different ones."""

from __future__ import annotations

import array
import collections
import copy
import datetime
import decimal
import enum
import fractions
import functools
import hashlib
import io
import itertools
import operator
import pathlib
import random
import re
import sys
import threading
import time
import types
import uuid
import weakref
import zoneinfo
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dask_batch.graph.content import Content, ContentHasher

pytestmark = pytest.mark.filterwarnings("ignore:the matrix subclass")


def content(obj: Any) -> Content:
    return ContentHasher().content(obj, "argument 'x'")


def digest(obj: Any) -> bytes:
    found = content(obj)
    assert found.problems == ()
    return found.digest


class Text(str):
    pass


class Many(list):
    pass


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b


class Plain:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


Point = collections.namedtuple("Point", "x y")

DIFFERENT: dict[str, tuple[Any, Any]] = {
    "int and bool": (1, True),
    "int and float": (1, 1.0),
    "int and NumPy's": (1, np.int64(1)),
    "float and NumPy's": (1.0, np.float64(1.0)),
    "widths": (np.float32(1), np.float64(1)),
    "zeros": (0.0, -0.0),
    "complex zeros": (complex(0.0, 0.0), complex(0.0, -0.0)),
    "none and zero": (None, 0),
    "none and ellipsis": (None, ...),
    "str and bytes": ("a", b"a"),
    "bytes and bytearray": (b"a", bytearray(b"a")),
    "str and its class": ("a", Text("a")),
    "list and its class": ([1], Many([1])),
    "list and tuple": ([1], (1,)),
    "set and frozenset": ({1}, frozenset({1})),
    "order of a list": ([1, 2], [2, 1]),
    "order of a dict": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "key and value": ({"a": "b"}, {"b": "a"}),
    "grouping": ([[1], 2], [[1, 2]]),
    "grouping of strings": (["a", "bc"], ["ab", "c"]),
    "empty and none": ([], [None]),
    "a digest and what it is of": ([b"#" + digest([1])], [[1]]),
    "surrogates": ("\ud83d\ude00", "\U0001f600"),
    "long integers": (10**5000, 10**5000 + 1),
    "an array and its transpose": (np.arange(9.0).reshape(3, 3), np.arange(9.0).reshape(3, 3).T),
    "object arrays": (
        np.array(["a-b", "c"], dtype=object),
        np.array(["a", "b-c"], dtype=object),
    ),
    "the same bytes": (np.arange(3.0), np.arange(3.0).view("i8")),
    "shapes": (np.zeros((2, 3)), np.zeros((3, 2))),
    "empty shapes": (np.zeros((0, 3)), np.zeros((3, 0))),
    "byte orders": (np.dtype("<f8"), np.dtype(">f8")),
    "metadata of a dtype": (np.dtype("f8"), np.dtype("f8", metadata={"unit": "m"})),
    "fields": (np.dtype([("a", "f8")]), np.dtype([("b", "f8")])),
    "alignment": (np.dtype("i1,f8"), np.dtype("i1,f8", align=True)),
    "units": (np.datetime64("2020-01-01", "D"), np.datetime64("2020-01-01", "s")),
    "array and matrix": (np.eye(2), np.eye(2).view(np.matrix)),
    "array and scalar": (np.array(1.0), np.float64(1.0)),
    "masks": (np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[1, 0])),
    "records": (np.rec.array([(1,)], dtype=[("f0", "i4")]), np.array([(1,)], dtype=[("f0", "i4")])),
    "fixed and free strings": (np.array(["a"]), np.array(["a"], dtype=object)),
    "seeds": (np.random.default_rng(1), np.random.default_rng(2)),
    "bit generators": (
        np.random.Generator(np.random.PCG64(1)),
        np.random.Generator(np.random.MT19937(1)),
    ),
    "seed sequences": (np.random.SeedSequence(1), np.random.SeedSequence(2)),
    "random states": (np.random.RandomState(1), np.random.RandomState(2)),
    "generators of Python": (random.Random(1), random.Random(2)),
    "members": (Colour.RED, Colour.BLUE),
    "member and value": (Colour.RED, 1),
    "named tuple and tuple": (Point(1, 2), (1, 2)),
    "attributes": (Plain(a=1), Plain(a=2)),
    "slots": (Slotted(1, 2), Slotted(2, 1)),
    "paths": (pathlib.Path("/a"), pathlib.Path("/b")),
    "path and string": (pathlib.Path("/a"), "/a"),
    "time zones": (
        datetime.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        datetime.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")),
    ),
    "folds": (datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 1, fold=1)),
    "naive and not": (
        datetime.datetime(2020, 1, 1),
        datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    ),
    "decimals": (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
    "fractions": (fractions.Fraction(1, 2), fractions.Fraction(1, 3)),
    "uuids": (uuid.UUID(int=1), uuid.UUID(int=2)),
    "flags of a pattern": (re.compile("a"), re.compile("a", re.I)),
    "slices": (slice(1, 2), slice(1, 2, 1)),
    "ranges": (range(3), range(4)),
    "partial arguments": (functools.partial(int, base=2), functools.partial(int, base=3)),
    "getters": (operator.itemgetter(1), operator.itemgetter(2)),
    "callers": (operator.methodcaller("a"), operator.methodcaller("b")),
    "bound methods of C": ("a".join, "b".join),
    "bound methods": (Plain(a=1).__init__, Plain(a=2).__init__),
    "ufuncs": (np.add, np.subtract),
    "made ufuncs": (np.frompyfunc(lambda x: x, 1, 1), np.frompyfunc(lambda x: -x, 1, 1)),
    "vectorized": (np.vectorize(lambda x: x), np.vectorize(lambda x: -x)),
    "classes": (int, float),
    "library functions": (np.sum, np.mean),
    "defaults": (collections.defaultdict(int), collections.defaultdict(list)),
    "default and dict": (collections.defaultdict(None, {1: 2}), {1: 2}),
    "ordered and dict": (collections.OrderedDict(a=1), {"a": 1}),
    "counters": (collections.Counter("ab"), collections.Counter("aab")),
    "queues": (collections.deque([1], maxlen=2), collections.deque([1], maxlen=3)),
    "type codes": (array.array("i", [1]), array.array("l", [1])),
    "views": (memoryview(b"a"), memoryview(b"b")),
    "read-only": (types.MappingProxyType({"a": 1}), {"a": 1}),
    "namespaces": (types.SimpleNamespace(a=1), types.SimpleNamespace(a=2)),
    "generics": (list[int], list[str]),
    "exceptions": (ValueError("a"), ValueError("b")),
    "streams": (io.BytesIO(b"a"), io.BytesIO(b"b")),
    "keys and values": ({1: 1}.keys(), {1: 1}.values()),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_different(one: Any, other: Any) -> None:
    assert digest(one) != digest(other)
    assert digest([one]) != digest([other])


COPIED = {name: pair[0] for name, pair in DIFFERENT.items()}
_UNCOPIED = {"views", "read-only", "keys and values", "made ufuncs", "records"}


@pytest.mark.parametrize("name", COPIED)
def test_equal(name: str) -> None:
    value = COPIED[name]
    other = value if name in _UNCOPIED else copy.deepcopy(value)
    assert digest(value) == digest(other)
    assert digest([value, value]) == digest([value, other])


def _strided() -> np.ndarray:
    return np.arange(20.0).reshape(4, 5)[::2, ::-1]


def _padded(filling: int) -> np.ndarray:
    made = np.full(48, filling, dtype="u1").view(np.dtype("i1,f8", align=True))
    made["f0"], made["f1"] = 1, 2
    return made


EQUAL: dict[str, tuple[Any, Any]] = {
    "layout": (np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3))),
    "view": (_strided(), _strided().copy()),
    "read-only": (np.broadcast_to(1.0, (2, 2)), np.ones((2, 2))),
    "padding": (_padded(0), _padded(255)),
    "not a number": (float("nan"), -float("nan")),
    "order of a set": ({"a", "b", "c"}, {"c", "b", "a"}),
    "interned": (["".join(["a", "b"]), "ab"], ["ab", "ab"]),
    "shared": ([[1], [1]], (lambda x: [x, x])([1])),
}


@pytest.mark.parametrize(("one", "other"), EQUAL.values(), ids=EQUAL)
def test_alike(one: Any, other: Any) -> None:
    assert digest(one) == digest(other)


def test_mapped_array_is_an_array(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(5.0))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert digest(mapped) == digest(np.arange(5.0))
    assert digest(mapped.view("i8")) != digest(mapped)


def test_long_doubles_without_what_lies_behind_them() -> None:
    clean = np.array([1, 2], dtype="g")
    dirty = clean.copy()
    if np.finfo(np.longdouble).nmant == 63:
        dirty.view("u1").reshape(2, -1)[:, 10:] = 7
    assert digest(clean) == digest(dirty)
    assert digest(clean) != digest(clean + 1)


# ---- what has no content ---------------------------------------------------------------------


def _generator() -> Any:
    yield 1


NOTHING_STABLE: dict[str, Callable[[], Any]] = {
    "object": object,
    "generator": _generator,
    "open file": lambda: open("/dev/null"),  # noqa: SIM115 - open is what it is about
    "frame": lambda: sys._getframe(),
    "coroutine": lambda: _coroutine(),
    "thread": threading.Thread,
}


async def _coroutine() -> None:
    return None


@pytest.mark.parametrize("make", NOTHING_STABLE.values(), ids=NOTHING_STABLE)
def test_problem(make: Callable[[], Any]) -> None:
    value = make()
    found = content({"k": [0, value]})
    assert found.problems
    assert found.problems[0].path.startswith("argument 'x'['k'][1]")
    assert found.problems[0].reason
    if hasattr(value, "close"):
        value.close()


PLACELESS: dict[str, Callable[[], Any]] = {
    "lock": threading.Lock,
    "reentrant lock": threading.RLock,
    "condition": threading.Condition,
    "event": threading.Event,
    "semaphore": threading.BoundedSemaphore,
    "local": threading.local,
    "cache": weakref.WeakValueDictionary,
}


@pytest.mark.parametrize("make", PLACELESS.values(), ids=PLACELESS)
def test_placeless(make: Callable[[], Any]) -> None:
    assert digest(Plain(a=make())) == digest(Plain(a=make()))


def test_each_occurrence_names_its_own_path() -> None:
    hasher = ContentHasher()
    shared = Plain(conn=object())
    for name in ("x", "y"):
        found = hasher.content({"c": shared}, f"argument {name!r}")
        assert [p.path for p in found.problems] == [f"argument {name!r}['c'].conn"]


def test_facts_survive_the_memory() -> None:
    hasher = ContentHasher()
    first = hasher.content([np.sum])
    again = hasher.content({"a": [np.sum]})
    assert first.preload == again.preload == {"numpy"}
    assert first.libraries == again.libraries != frozenset()


def test_references() -> None:
    class Future:
        pass

    future = Future()
    known = hashlib.sha256(b"it").digest()
    hasher = ContentHasher(reference=lambda obj: known if obj is future else None)
    assert hasher.content(future).digest == known
    assert hasher.content([future]).digest != hasher.content([Future()]).digest
    assert (
        hasher.content([future]).digest
        == ContentHasher(reference=lambda obj: known if isinstance(obj, Future) else None)
        .content([Future()])
        .digest
    )


class AttributeDict(dict):
    __getattr__ = dict.__getitem__


class Hostile:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    __hash__ = object.__hash__


class HostileType(type):
    def __eq__(cls, other: object) -> bool:
        raise RuntimeError("eq")

    __hash__ = type.__hash__


class OfHostileType(metaclass=HostileType):
    pass


@pytest.mark.parametrize("make", [lambda: AttributeDict(a=1), Hostile, OfHostileType])
def test_objects_that_answer_nothing(make: Callable[[], Any]) -> None:
    assert digest([make()]) == digest([make()])
    assert digest({make(): make()} if make is Hostile else 0)


# ---- depth, cycles, speed --------------------------------------------------------------------


def _nested(depth: int, kind: Callable[[Any], Any]) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = kind(value)
    return value


@pytest.mark.parametrize(
    "kind", [lambda v: [v], lambda v: (v,), lambda v: {"k": v}, lambda v: Plain(a=v)]
)
def test_depth_has_no_limit(kind: Callable[[Any], Any]) -> None:
    assert digest(_nested(10_000, kind)) != digest(_nested(10_001, kind))


def test_a_problem_far_down_has_a_short_path() -> None:
    (problem,) = content([_nested(5_000, lambda v: [v or object()])]).problems
    assert len(problem.path) < 1_000


def test_cycles_that_are_built_alike() -> None:
    def ring(*labels: int) -> list[Any]:
        nodes: list[list[Any]] = [[label] for label in labels]
        for node, following in zip(nodes, nodes[1:] + nodes[:1], strict=True):
            node.append(following)
        return nodes[0]

    assert digest(ring(1, 2, 3)) == digest(ring(1, 2, 3))
    assert digest(ring(1, 2, 3)) == digest(ring(3, 1, 2)[1])  # from another entry
    different = [
        ring(1, 2, 3),
        ring(1, 3, 2),
        ring(2, 3, 1),
        ring(1, 2),
        ring(1),
        ring(1, 1),
        ring(1, 1, 1),
        ring(1, 2, 1, 2),
        [ring(1)],
        [1, ring(1)],
    ]
    assert len({digest(each) for each in different}) == len(different)


def test_cycles_that_lead_back_to_different_places() -> None:
    def chain(back_to: int) -> list[Any]:
        nodes: list[list[Any]] = [[] for _ in range(4)]
        for node, following in itertools.pairwise(nodes):
            node.append(following)
        nodes[-1].append(nodes[back_to])
        return nodes[0]

    assert len({digest(chain(back_to)) for back_to in range(4)}) == 4


def test_cycles_through_objects_dicts_and_sets() -> None:
    def family(name: str) -> Plain:
        parent = Plain(name=name)
        parent.children = {Plain(parent=parent, i=i) for i in range(5)}  # type: ignore[attr-defined]
        return parent

    assert digest(family("a")) == digest(family("a"))
    assert digest(family("a")) != digest(family("b"))


def test_a_part_of_a_cycle_is_the_same_whichever_came_first() -> None:
    def linked() -> list[Plain]:
        nodes = [Plain(i=i) for i in range(2_000)]
        for node, following in itertools.pairwise(nodes):
            node.next, following.previous = following, node  # type: ignore[attr-defined]
        return nodes

    one, two = linked(), linked()
    hasher = ContentHasher()
    hasher.content(one[0])
    assert hasher.content(one[1_500]).digest == digest(two[1_500])
    assert digest(two[1_500]) != digest(two[1_499])


def test_an_object_that_makes_new_ones_for_ever_ends() -> None:
    class Mirror:
        def __dask_tokenize__(self) -> Any:
            return Mirror()

    assert content(Mirror()).problems


def test_large_arrays_cost_what_sha256_costs() -> None:
    values = np.random.default_rng(0).random(4_000_000)

    def duration(call: Callable[[], Any]) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)

    floor = duration(lambda: hashlib.sha256(values).digest())
    assert duration(lambda: content(values)) < 3 * floor


def test_mix_separates_parts_and_domains() -> None:
    mix = ContentHasher.mix
    assert mix("a", "bc") != mix("ab", "c")
    assert mix("a", "b", "c") != mix("a", "bc")
    assert mix("a", "b") == mix("a", b"b")
    assert len(mix("a")) == 32
