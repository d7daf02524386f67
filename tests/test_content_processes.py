"""The same content in other processes: hash seeds, directories, names and lines of scripts."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from dask_batch.graph.content import ContentHasher

SCRIPT = '''
import collections, dataclasses, enum, functools, json, operator, pathlib, re, sys, datetime
import logging, threading
import numpy as np, pandas as pd
from dask_batch.graph.content import ContentHasher

LIMIT = 3
LOCK = threading.Lock()

def callee(x):
    return x + 1

def calls(x):
    """Doc."""
    with LOCK:
        return callee(x) + LIMIT

def alone(x): return x * 2
def recursive(n): return n and recursive(n - 1)
def in_set(x): return x in {"red", "green", "blue", "black"}
def in_numpy(x): return np.linalg.svd(np.asarray(x))
def with_default(x, names=frozenset({"a", "b", "c"})): return x in names
def closure(k):
    def inner(x): return x + k
    return inner
def imports(x):
    import json as j, operator as o
    return j.dumps(o.add(x, 1))

class Base:
    """Doc."""
    registry = {"a", "b", "c"}
    def method(self): return type(self).registry
class Derived(Base):
    def __init__(self): self.tags = {"x", "y", "z"}
    def method(self): return super().method()
@dataclasses.dataclass
class Data:
    a: int = 1
    b: frozenset = frozenset({"p", "q", "r"})
class Colour(enum.Enum):
    RED = 1
    BLUE = 2
class Slotted:
    __slots__ = ("left", "right")
    def __init__(self): self.left, self.right = 1, 2
Point = collections.namedtuple("Point", "x y")

OBJECTS = {
    "function": calls, "plain function": alone, "recursion": recursive, "set literal": in_set,
    "numpy": in_numpy, "default": with_default, "closure": closure(2), "imports": imports,
    "lambda": lambda x: x + 1, "partial": functools.partial(alone, 3),
    "partial of closure": functools.partial(closure(1), 3),
    "class": Derived, "instance": Derived(), "bound method": Derived().method, "dataclass": Data,
    "data": Data(), "enum": Colour, "member": Colour.RED, "slots": Slotted(), "tuple": Point(1, 2),
    "builtin": len, "operator": operator.add, "ufunc": np.add, "library": np.linalg.svd,
    "pandas": pd.DataFrame.groupby, "array": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "objects": np.array(["a", {"b", "c"}], dtype=object),
    "frame": pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), "series": pd.Series([1, 2], name="s"),
    "categories": pd.Categorical(["a", "b"]), "dates": pd.date_range("2020", periods=3, tz="UTC"),
    "day": datetime.date(2020, 1, 1), "path": pathlib.Path("/a"),
    "generator": np.random.default_rng(1),
    "set": {"a", "b", "c"}, "frozenset": frozenset({"a", "b", "c"}), "pattern": re.compile("a"),
    "dict": {"b": {"x", "y"}, "a": 1}, "logger": logging.getLogger("a"), "sum": np.sum,
    "random": np.random.normal, "cyclic": functools.reduce(lambda a, _: [a], range(5), {"s"}),
}
HASHER = ContentHasher()
for name, obj in OBJECTS.items():
    found = HASHER.content(obj, name)
    assert not found.problems, found.problems
print(json.dumps({name: HASHER.content(obj).digest.hex() for name, obj in OBJECTS.items()}))
'''


def _run(path: Path, source: str, seed: str = "0") -> dict[str, str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    ran = subprocess.run(
        [sys.executable, str(path)],
        env=environment,
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, str] = json.loads(ran.stdout)
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return _run(tmp_path_factory.mktemp("base") / "script.py", SCRIPT)


VARIATIONS: dict[str, tuple[str, Callable[[str], str], str, frozenset[str]]] = {
    "same": ("script.py", lambda s: s, "0", frozenset()),
    "other hash seed": ("script.py", lambda s: s, "1", frozenset()),
    "third hash seed": ("script.py", lambda s: s, "12345", frozenset()),
    "moved": ("deep/er/script.py", lambda s: s, "2", frozenset()),
    "renamed": ("other.py", lambda s: s, "3", frozenset()),
    "lines inserted": ("script.py", lambda s: "# one\n\n\n" + s, "4", frozenset()),
    "docstrings edited": ("script.py", lambda s: s.replace("Doc.", "More."), "5", frozenset()),
    "callee edited": (
        "script.py",
        lambda s: s.replace("return x + 1\n\ndef calls", "return x + 2\n\ndef calls"),
        "0",
        frozenset({"function"}),
    ),
    "global edited": (
        "script.py",
        lambda s: s.replace("LIMIT = 3", "LIMIT = 4"),
        "0",
        frozenset({"function"}),
    ),
    "method edited": (
        "script.py",
        lambda s: s.replace("return super().method()", "return super().method() | {1}"),
        "0",
        frozenset({"class", "instance", "bound method"}),
    ),
}


@pytest.mark.parametrize("variation", VARIATIONS.values(), ids=VARIATIONS)
def test_stability(
    variation: tuple[str, Callable[[str], str], str, frozenset[str]],
    base: dict[str, str],
    tmp_path: Path,
) -> None:
    name, edit, seed, others = variation
    edited = edit(SCRIPT)
    found = _run(tmp_path / name, edited, seed)
    assert {key for key in base if found[key] != base[key]} == others


# ---- properties ------------------------------------------------------------------------------

WORKER = """
import base64, pickle, sys
from dask_batch.graph.content import ContentHasher
for line in sys.stdin:
    value = pickle.loads(base64.b64decode(line))
    print(ContentHasher().content(value).digest.hex(), flush=True)
"""


class Worker:
    """A process with another hash seed, which digests what it is given."""

    def __init__(self, seed: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def digest(self, value: Any) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(base64.b64encode(pickle.dumps(value)).decode() + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="module")
def workers() -> Iterator[list[Worker]]:
    started = [Worker(seed) for seed in (1, 2)]
    yield started
    for worker in started:
        worker.close()


def digest(value: Any) -> str:
    return ContentHasher().content(value).digest.hex()


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary()
    | st.dates()
    | st.decimals(allow_nan=False)
    | st.uuids()
)
hashables = st.recursive(
    scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner), max_leaves=5
)
# Pickling turns arrays of foreign byte order into native ones: what arrives is another value.
dtypes = st_numpy.scalar_dtypes().filter(lambda dtype: dtype.isnative)
values = st.recursive(
    hashables | st_numpy.arrays(dtypes, st_numpy.array_shapes(max_dims=2)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(hashables, inner, max_size=4)
        | st.sets(hashables, max_size=4)
    ),
    max_leaves=12,
)
several_processes = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@several_processes
@given(value=values)
def test_every_process_agrees(workers: list[Worker], value: Any) -> None:
    here = digest(value)
    assert [worker.digest(value) for worker in workers] == [here, here]
    assert digest(pickle.loads(pickle.dumps(value))) == here


def spelled(value: Any) -> str:
    """Spell a value out, independently of the hasher: equal only for what must be equal."""
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        return f"{kind}({','.join(map(spelled, value))})"
    if isinstance(value, (set, frozenset)):
        return f"{kind}({','.join(sorted(map(spelled, value)))})"
    if isinstance(value, dict):
        return f"{kind}({','.join(f'{spelled(k)}:{spelled(v)}' for k, v in value.items())})"
    if isinstance(value, np.ndarray):
        return f"{kind}({value.dtype.str},{value.shape},{value.tobytes().hex()})"
    return f"{kind}<{value!r}>"


small = st.recursive(
    st.sampled_from([None, 0, 1, True, 0.0, -0.0, 1.0, "", "a", "1", b"a", b""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["a", "b", 1, None]), inner, max_size=2)
        | st.frozensets(st.sampled_from([0, "a", None]), max_size=2)
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(one=small, other=small)
def test_equal_digests_mean_equal_values(one: Any, other: Any) -> None:
    assert (digest(one) == digest(other)) == (spelled(one) == spelled(other))


@settings(max_examples=100, deadline=None)
@given(value=values, data=st.data())
def test_a_changed_leaf_changes_the_digest(value: Any, data: st.DataObject) -> None:
    other = data.draw(values)
    assume(spelled(other) != spelled(value))
    assert digest([0, {"k": (value,)}]) != digest([0, {"k": (other,)}])


@settings(max_examples=100, deadline=None)
@given(
    array=st_numpy.arrays(
        st_numpy.scalar_dtypes() | st_numpy.nested_dtypes(),
        st_numpy.array_shapes(max_dims=3, max_side=4),
    ),
    data=st.data(),
)
def test_layout_does_not_count(array: Any, data: st.DataObject) -> None:
    axes = data.draw(st.permutations(range(array.ndim)))
    turned = array.transpose(axes)
    scattered = np.zeros([2 * n for n in turned.shape], dtype=turned.dtype)
    view = scattered[tuple(slice(None, None, 2) for _ in turned.shape)]
    view[...] = turned
    assert digest(view) == digest(turned) == digest(turned.copy())
    assert digest(np.asfortranarray(turned)) == digest(turned)


@several_processes
@given(
    constant=st.integers(0, 5),
    strings=st.sets(st.text("abc", min_size=1, max_size=3), min_size=2, max_size=5),
    blank=st.integers(0, 5),
    documented=st.booleans(),
)
def test_functions_by_what_they_do(
    constant: int, strings: set[str], blank: int, documented: bool
) -> None:
    def made(blank: int, documented: bool, strings: list[str], constant: int) -> Any:
        doc = '"""What it does."""' if documented else ""
        source = f"""
        {chr(10) * blank}
        def g(x):
            return x + {constant}
        def f(x):
            {doc}
            return [g(y) for y in x if y in {{{", ".join(map(repr, strings))}}}]
        """
        namespace: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(textwrap.dedent(source), f"file{blank}.py", "exec"), namespace)
        return namespace["f"]

    ordered = sorted(strings)
    here = digest(made(0, False, ordered, constant))
    assert digest(made(blank, documented, ordered[::-1], constant)) == here
    assert digest(made(blank, documented, ordered, constant + 1)) != here
    assert digest(made(blank, documented, [*ordered[1:], "zzzz"], constant)) != here
