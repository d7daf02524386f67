"""Round trips within one process: shapes of objects, identity, errors with their paths."""

from __future__ import annotations

import abc
import collections
import concurrent.futures
import dataclasses
import enum
import functools
import logging
import sys
import threading
import typing
import weakref

import numpy as np
import pytest

from dask_batch.code import pickling
from dask_batch.errors import SerializationError


def round_trip(obj, **options):
    pickled = pickling.dumps(obj)
    return pickling.loads(pickled.data, pickled.buffers, **options)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2
    CRIMSON = RED


@dataclasses.dataclass
class Point:
    x: int
    tags: list = dataclasses.field(default_factory=list)

    def moved(self, by=1):
        return Point(self.x + by)

    @classmethod
    def origin(cls):
        return cls(0)

    @staticmethod
    def dimension():
        return 1


class Raises:
    def __reduce__(self):
        raise RuntimeError("will not")


class Named:
    def __reduce__(self):
        return "NAMED"


NAMED = Named()
COUNTER = 0
LOCK = threading.Lock()


def count():
    global COUNTER
    with LOCK:
        COUNTER += 1
    return COUNTER


def even(n):
    return n == 0 or odd(n - 1)


def odd(n):
    return n != 0 and even(n - 1)


def twins():
    n = 0

    def up():
        nonlocal n
        n += 1

    def read():
        return n

    return up, read


@pytest.mark.parametrize(
    "thing",
    [
        len,
        np.sum,
        np.add,
        np.ndarray,
        np.linalg,
        type(None),
        type(len),
        type(lambda: None),
        logging.getLogger("a.b"),
        sys.stdout,
        Colour.RED,
        Colour,
        Point,
        dataclasses.MISSING,
    ],
    ids=repr,
)
def test_is_the_same_object_here(thing):
    assert round_trip(thing) is thing


@pytest.mark.parametrize(
    "thing",
    [
        Point(1, [2]),
        {"a": (1, 2.5, None, b"x", {3}, frozenset({4}))},
        collections.OrderedDict(a=1),
        memoryview(b"abc"),
        list[int],
        int | None,
        range(3),
        slice(1, 2),
        ...,
    ],
    ids=repr,
)
def test_equals_the_original(thing):
    assert round_trip(thing) == thing


def test_large_buffers_go_out_of_band_and_are_not_copied():
    array = np.arange(1000.0)
    pickled = pickling.dumps({"a": array, "same": array})
    assert len(pickled.data) < 500
    (buffer,) = pickled.buffers
    assert np.shares_memory(np.frombuffer(buffer), array)
    loaded = pickling.loads(pickled.data, pickled.buffers)
    assert loaded["a"] is loaded["same"]


def test_functions_of_one_module_share_their_globals():
    first, second = round_trip((even, odd))
    assert first.__globals__ is second.__globals__
    assert first.__globals__["odd"] is second
    assert first(10)


def test_only_what_is_reached_travels():
    names = {n for n in round_trip(count).__globals__ if not n.startswith("__")}
    assert names == {"COUNTER", "LOCK", "count"}


def test_globals_are_separate_after_the_journey():
    far = round_trip(count)
    assert (far(), far(), COUNTER) == (1, 2, 0)


def test_cells_are_shared():
    up, read = round_trip(twins())
    up()
    assert read() == 1


def test_recursive_closures_and_empty_cells():
    def outer():
        def factorial(n):
            return 1 if n < 2 else n * factorial(n - 1)

        def early():
            return late

        found = factorial, early
        if not found:
            late = 1
        return found

    factorial, early = round_trip(outer())
    assert factorial(5) == 120
    with pytest.raises(NameError):
        early()


def test_defaults_annotations_and_attributes():
    def f(a, b=2, *, c: int = 3):
        "Say."
        return a, b, c

    f.note = [1]
    far = round_trip(f)
    assert far(1) == (1, 2, 3)
    assert (far.__doc__, far.note, far.__qualname__) == ("Say.", [1], f.__qualname__)
    assert far.__annotations__ == f.__annotations__


def test_generators_coroutines_and_methods():
    def generate():
        yield from (1, 2)

    async def later():
        return 1

    coroutine = round_trip(later)()
    with pytest.raises(StopIteration) as end:
        coroutine.send(None)
    assert end.value.value == 1
    assert list(round_trip(generate)()) == [1, 2]
    assert round_trip(Point(1).moved)(3) == Point(4)
    assert round_trip(Point.origin)() == Point(0)
    assert round_trip(Point.dimension)() == 1


def test_what_functools_makes():
    @functools.lru_cache(maxsize=5)
    def fibonacci(n):
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    @functools.singledispatch
    def kind(x):
        return "any"

    @kind.register
    def _(x: int):
        return "int"

    @functools.wraps(np.sum)
    def wrapped(x):
        return odd(x)

    assert round_trip(fibonacci)(10) == 55
    assert round_trip(fibonacci).cache_info().maxsize == 5
    assert [round_trip(kind)(x) for x in (1, "")] == ["int", "any"]
    assert round_trip(wrapped)(3)
    assert round_trip(functools.partial(max, 1, key=abs))(-2) == -2


def test_cyclic_objects():
    row = []
    row.append(row)
    assert (far := round_trip(row))[0] is far

    class Node:
        def __init__(self):
            self.me = self
            self.get = lambda: self

    node = Node()
    far = round_trip(node)
    assert far.me is far
    assert far.get() is far
    assert type(far) is Node


def test_local_classes_come_back_as_themselves():
    def make():
        @dataclasses.dataclass
        class Local:
            x: int

        return Local

    first, second = make(), make()
    assert type(round_trip(first(1))) is first
    assert round_trip({first: 1, second: 2}) == {first: 1, second: 2}


def test_code_executed_in_a_bare_namespace():
    namespace = {}
    exec("K = 3\ndef f(): return K + g()\ndef g(): return 1", namespace)
    assert round_trip(namespace["f"])() == 4


def test_locks_and_thread_locals_travel_as_fresh_ones():
    held = threading.Lock()
    with held:
        far = round_trip({"lock": held, "r": threading.RLock(), "e": threading.Event()})
    assert not far["lock"].locked()
    local = threading.local()
    local.x = 1
    assert not hasattr(round_trip(local), "x")


def test_singletons_and_typing_objects():
    variable = typing.TypeVar("variable", bound=int)
    number = typing.NewType("number", int)
    first, second = round_trip([variable, variable])
    assert first is second
    assert first.__bound__ is int
    assert round_trip(number)(3) == 3
    assert round_trip(NAMED) is NAMED
    alive = Point(1)
    weak, far = round_trip((weakref.WeakValueDictionary(a=alive), alive))
    assert dict(weak) == {"a": far}


def test_persistent_ids_stand_for_what_is_kept_elsewhere():
    kept = Point(1)
    pickled = pickling.dumps(
        [kept, Point(2)], persistent_id=lambda o: "kept" if o is kept else None
    )
    far = pickling.loads(pickled.data, persistent_load={"kept": kept}.__getitem__)
    assert far[0] is kept
    assert far[1] == Point(2)


def test_a_client_never_touches_sys_modules():
    before = dict(sys.modules)
    round_trip((even, Point(1), count, test_a_client_never_touches_sys_modules))
    assert dict(sys.modules) == before


class Holder:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Slotted:
    __slots__ = ("thing",)

    def __init__(self, thing):
        self.thing = thing


GENERATOR = (i for i in ())


def uses_generator():
    return GENERATOR


def with_default(x=GENERATOR):
    return x


def closing_over():
    inner = {"deep": [GENERATOR]}
    return lambda: inner


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: GENERATOR, "argument 'config'"),
        (lambda: {"a": [1, GENERATOR]}, "argument 'config'['a'][1]"),
        (
            lambda: Holder(handlers=[Holder(stream=GENERATOR)]),
            "argument 'config'.handlers[0].stream",
        ),
        (lambda: Slotted(GENERATOR), "argument 'config'.thing"),
        (lambda: uses_generator, "argument 'config' (its global 'GENERATOR')"),
        (lambda: with_default, "argument 'config' (the default"),
        (lambda: closing_over(), "argument 'config' (its variable 'inner')['deep'][0]"),
        (lambda: functools.partial(max, GENERATOR), "argument 'config'.args[0]"),
        (lambda: Holder(f=GENERATOR).__init__, "argument 'config'.__self__.f"),
    ],
)
def test_errors_have_the_path_to_the_culprit(make, path):
    with pytest.raises(SerializationError) as failure:
        pickling.dumps(make(), where="argument 'config'")
    assert str(failure.value).startswith(path)
    assert "generator" in str(failure.value)
    assert isinstance(failure.value.__cause__, TypeError)


def test_an_open_file_is_refused(tmp_path):
    with (
        open(tmp_path / "file", "w") as stream,
        pytest.raises(SerializationError, match=r"\['log'\] .*open file"),
    ):
        pickling.dumps({"log": stream})


def test_what_is_under_way_is_refused():
    future = concurrent.futures.Future()
    for thing in (future, threading.Thread(), Holder(f=future)):
        with pytest.raises(SerializationError, match="belongs to this process"):
            pickling.dumps(thing)


def test_an_error_of_the_users_is_chained():
    with pytest.raises(SerializationError, match=r"the object\[0\] .*will not") as failure:
        pickling.dumps([Raises()])
    assert type(failure.value.__cause__) is RuntimeError


def test_a_repr_that_fails_does_not_hide_the_culprit():
    class Mute:
        def __repr__(self):
            raise ValueError

    with pytest.raises(SerializationError, match=r"\[a .*Mute\] cannot"):
        pickling.dumps({Mute(): GENERATOR})


def test_nesting_too_deep_is_an_error():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SerializationError, match="nested too deeply"):
        pickling.dumps(deep)


def test_an_abstract_hierarchy_with_keywords_for_subclasses_can_be_made_again():
    from dask_batch.code.classes import class_parts, make_class, set_attributes

    class Base(abc.ABC):
        seen: typing.ClassVar[list] = []

        def __init_subclass__(cls, *, tag, **keywords):
            super().__init_subclass__(**keywords)
            Base.seen.append(tag)

        @abc.abstractmethod
        def go(self): ...

    class Sub(Base, tag="t"):
        def go(self):
            return "went"

    kind, parts, state = class_parts(Sub)
    again = make_class(kind, parts)
    set_attributes(again, state)
    assert again.__bases__ == (Base,)
    assert again().go() == "went"
    assert Base.seen == ["t"]


def test_compiled_functions_travel_by_value():
    numba = pytest.importorskip("numba")
    factor = 3

    @numba.njit
    def scaled(x):
        return x * factor

    assert round_trip(scaled)(2) == 6
