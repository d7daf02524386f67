"""Journeys between processes: a script dumps, another process without its files loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dask_batch

PACKAGE = Path(dask_batch.__file__).parents[1]

DUMP = """
import pickle
from dask_batch.code import pickling
def dump(obj, name):
    p = pickling.dumps(obj)
    with open({wire!r} + "/" + name, "wb") as f:
        pickle.dump((p.data, [bytes(b) for b in p.buffers]), f)
"""
LOAD = """
import pickle, sys
from dask_batch.code import pickling
def load(name, **options):
    with open({wire!r} + "/" + name, "rb") as f:
        data, buffers = pickle.load(f)
    return pickling.loads(data, buffers, **options)
"""


class Journey:
    """Runs scripts of a client in its directory, and of jobs in another."""

    def __init__(self, directory: Path) -> None:
        self.home, self.node, self.wire = (directory / n for n in ("home", "node", "wire"))
        for place in (self.home, self.node, self.wire):
            place.mkdir()
        self.preludes = {
            self.home: (DUMP + LOAD).format(wire=str(self.wire)),
            self.node: (DUMP + LOAD).format(wire=str(self.wire)),
        }

    def module(self, name: str, source: str, *, on_node: bool = False) -> None:
        path = (self.node if on_node else self.home) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)

    def _run(self, place: Path, script: str, name: str) -> str:
        (place / name).write_text(self.preludes[place] + script)
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, name],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def client(self, script: str) -> str:
        return self._run(self.home, script, "script.py")

    def job(self, script: str) -> str:
        return self._run(self.node, script, "job.py")


@pytest.fixture
def journey(tmp_path):
    return Journey(tmp_path)


HELPER = """
import threading, logging, json as js
counter, SCALE = 0, 3
lock, log = threading.Lock(), logging.getLogger("helper")
def g(x):
    global counter
    with lock: counter += 1
    return js.loads(js.dumps(x * SCALE))
def unreached(): return 1
"""


def test_modules_travel_as_namespaces(journey):
    journey.module("helper.py", HELPER)
    journey.module("pkg/__init__.py", "TOP = 1\n")
    journey.module(
        "pkg/a.py",
        "def f():\n from .b import q\n from . import b as again\n return q + again.q + b()\n"
        "def b(): return 1\n",
    )
    journey.module("pkg/b.py", "q = 3\n")
    journey.client("""
import helper, pkg.a
def main():
    import helper as again
    from pkg import b
    import pkg.a as a
    first = helper.g(2)
    helper.counter = 10
    again.g(1)
    try: helper.unreached2
    except AttributeError as e: message = str(e)
    return first, again.counter, a.f(), b.q, message
dump(main, "main")
""")
    said = journey.job("""
main = load("main", install=True)
print(sorted(n for n in vars(sys.modules["helper"]) if n[0] != "_"), *main())
""")
    names = "['SCALE', 'counter', 'g', 'js', 'lock']"
    assert said.startswith(f"{names} 6 11 7 3 module 'helper' has no attribute")
    assert "travels" in said


def test_a_module_used_whole_travels_whole(journey):
    journey.module("helper.py", HELPER)
    journey.client("""
import helper
def main(name): return getattr(helper, name)()
dump(main, "main")
""")
    assert journey.job("print(load('main', install=True)('unreached'))") == "1"


def test_what_was_dumped_runs_although_the_file_was_edited(journey):
    journey.module("helper.py", "def g(): return 'hashed'\nclass P:\n v = 'hashed'\n")
    journey.module("helper.py", "def g(): return 'edited'\nclass P:\n v = 'edited'\n", on_node=True)
    journey.client("""
import helper
def main():
    import helper as again
    return helper.g(), again.g(), helper.P.v, again.P().v
dump((main, helper.P()), "main")
""")
    said = journey.job("""
import helper
main, p = load("main", install=True)
print(*main(), p.v, type(p) is sys.modules["helper"].P)
""")
    assert said == "hashed hashed hashed hashed hashed True"


CLASSES = """
import abc, collections, dataclasses, enum, typing
class Colour(enum.Enum):
    RED = 1
    CRIMSON = 1
class Planet(enum.Enum):
    EARTH = (1.0, 2.0)
    def __init__(self, mass, radius): self.mass = mass
class Coordinate(bytes, enum.Enum):
    def __new__(cls, value, label):
        made = bytes.__new__(cls, [value])
        made._value_, made.label = value, label
        return made
    PX = (1, "P.X")
class Text(enum.StrEnum):
    A = enum.auto()
class Flags(enum.Flag):
    A = 1
    B = 2
@dataclasses.dataclass
class Point:
    x: int
    tags: list = dataclasses.field(default_factory=list)
    def copy(self): return Point(self.x)
@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    a: int = 4
class Meta(type):
    def __getitem__(cls, key): return key
class Private(metaclass=Meta):
    __slots__ = ("u", "__v")
    def __init__(self): self.__v = 2
    def v(self): return self.__v
class Base(abc.ABC):
    @abc.abstractmethod
    def go(self): ...
class Sub(Base):
    def go(self): return super().__thisclass__ is Sub
Pair = collections.namedtuple("Pair", "a b")
class Typed(typing.NamedTuple):
    a: int
    b: int = 3
class Options(typing.TypedDict):
    a: int
T = typing.TypeVar("T")
class Box(typing.Generic[T]):
    def get(self) -> T: return 7
class Outer:
    class Inner:
        pass
"""


def test_classes_survive(journey):
    journey.client(
        CLASSES
        + """
def main():
    import pickle
    again = lambda x: pickle.loads(pickle.dumps(x))
    assert Colour(1) is Colour.RED is Colour.CRIMSON is again(Colour.RED)
    assert Planet.EARTH.mass == 1.0 and Flags(3) == Flags.A | Flags.B
    assert Coordinate(1) is Coordinate.PX and Coordinate.PX.label == "P.X" and Text.A == "a"
    assert bytes(Coordinate.PX) == bytes([1]) and again(Coordinate.PX) is Coordinate.PX
    assert again(Point(1, [2])) == Point(1, [2]).__class__(1, [2])
    assert dataclasses.fields(Point)[0].default is dataclasses.MISSING
    assert dataclasses.replace(Slotted(), a=5).a == 5 and not hasattr(Slotted(), "__dict__")
    assert Private().v() == 2 and Private["k"] == "k" and not hasattr(Private(), "__dict__")
    assert Sub().go() and isinstance(Sub(), Base)
    try: Base()
    except TypeError: pass
    else: raise AssertionError("an abstract class was instantiated")
    assert again(Pair(1, 2)) == Pair(1, 2) and Typed(1) == (1, 3) and Options(a=1) == {"a": 1}
    assert Box[int]().get() == 7 and issubclass(Box, typing.Generic)
    assert type(again(Outer.Inner())) is Outer.Inner
    return "well"
dump(main, "main")
"""
    )
    assert journey.job("print(load('main', install=True)())") == "well"


def test_class_identity_over_several_loads_and_back_in_two_clients(journey):
    source = (
        CLASSES
        + """
def local():
    @dataclasses.dataclass
    class Local:
        x: int
    return Local
"""
    )
    journey.client(
        source
        + """
def main(p, c, l):
    assert isinstance(p, Point) and c is Colour.RED and Outer
    return [Point(p.x + 1), c, l, type(l)(5), Outer.Inner()]
L = local()
dump(main, "definition")
dump((Point(1), Colour.RED, L(2)), "inputs")
"""
    )
    journey.job("""
main = load("definition", install=True)
result = main(*load("inputs"))
assert type(result[2]) is type(result[3])
dump(result, "result")
assert type(load("result")[2]) is type(result[2])
""")
    check = """
before = dict(sys.modules)
p, c, a, b, inner = load("result")
assert type(p) is Point and c is Colour.RED and p == Point(2) and type(inner) is Outer.Inner
assert type(a) is type(b) and a.x == 2
assert {n: sys.modules[n] for n in before} == before
p2, *_ = load("result")
print("mine")
"""
    assert journey.client(source + check) == "mine"
    assert (
        journey.client(
            source.replace("x: int", "y: int\n    x: int = 0", 1).replace("Point(2)", "p")
            + check.replace("and p == Point(2)", "")
        )
        == "mine"
    )
    stranger = """
first, second = load("result"), load("result")
assert type(first[0]) is type(second[0])
assert first[0] == second[0] and first[2] == second[2] and first[1] is second[1]
print("foreign", first[0].copy())
"""
    assert journey.client(stranger) == "foreign Point(x=2, tags=[])"


def test_results_of_two_runs_have_one_class(journey):
    for run in ("1", "2"):
        journey.client(CLASSES + f"dump(Point({run}), 'result{run}')\n# another run {run}\n")
    said = journey.client("print(type(load('result1')) is type(load('result2')))")
    assert said == "True"


def test_functions_among_inputs_find_the_modules_that_their_bodies_import(journey):
    journey.module("helper.py", HELPER)
    journey.client("""
def call(f): return f(2)
def passed(x):
    import helper
    return helper.g(x)
dump(call, "definition")
dump(passed, "input")
""")
    assert journey.job("print(load('definition', install=True)(load('input')))") == "6"


def test_a_process_pool_in_a_job(journey):
    journey.client("""
def square(x): return x * OFFSET
OFFSET = 3
def main():
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.map(square, [1, 2])
dump(main, "main")
""")
    assert journey.job("print(load('main', install=True)())") == "[3, 6]"


def test_code_of_another_python_says_so(journey):
    journey.client("def main(): return 1\ndump(main, 'main')\n")
    said = journey.job("""
from dask_batch.code import wire
wire.PYTHON = "cpython 9.9"
try: load("main")()
except RuntimeError as refusal: print(refusal)
""")
    assert said.startswith("main was compiled by cpython 3.")


def test_loading_imports_nothing_of_the_client(journey):
    journey.client("import os.path\ndef main(x): return os.path.join(x)\ndump(main, 'main')\n")
    said = journey.job("""
load("main", install=True)
print([m for m in ("networkx", "jinja2", "dask", "cloudpickle", "numpy") if m in sys.modules])
""")
    assert said == "[]"


def test_compiled_functions_of_a_user_module(journey):
    pytest.importorskip("numba")
    journey.module(
        "jit.py",
        "import numba\nK = 3\n@numba.njit\ndef inner(x): return x * K\n"
        "@numba.njit\ndef outer(x): return inner(x) if x < 9 else outer(x - 1)\n",
    )
    journey.client("import jit\ndef main(): return jit.outer(2)\ndump(main, 'main')\n")
    assert journey.job("print(load('main', install=True)())") == "6"
