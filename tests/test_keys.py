"""The same work has the same key, other work another one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from dask import delayed
from dask._task_spec import Task as Node
from dask._task_spec import TaskRef, convert_legacy_graph, fuse_linear_task_spec

from dask_batch.graph.dask_spec import ingest
from dask_batch.graph.keys import Keys, Referenced, call_key
from dask_batch.graph.ordinals import block_index
from dask_batch.spec import Build, Call, Ref, Task
from graph_running import keyed, wanted_keys


def sample() -> float:
    return float(np.random.default_rng().random())


def plus(*values: Any, **others: Any) -> Any:
    return sum(values) + sum(others.values())


def key_of(expression: Any, *, name: Any = "t", **others: Any) -> str:
    """Return the key of a task in a graph that has two more, ``a`` and ``b``."""
    tasks = {n: Task(n, Call(plus, (n,))) for n in ("a", "b")}
    tasks[name] = Task(name, expression, **others)
    return Keys(nonce="").of(tasks, [name])[name].key


def array() -> da.Array:
    return da.from_array(np.arange(36.0).reshape(6, 6), chunks=(2, 3))


ROW = da.from_array(np.arange(6.0), chunks=3)
ARRAYS = {
    "transposed twice": lambda x: ((x + 1).T * 2).T + ROW,
    "transposed and not": lambda x: (x + 1).T + x.T.rechunk((3, 2)),
    "contracted": lambda x: x.dot(x.T) + 1,
    "broadcast inside": lambda x: (x + (ROW * 2)).sum(axis=0),
    "reduced": lambda x: ((x + 1).T * 2 - 1).T.sum(axis=1),
    "overlapping": lambda x: x.map_overlap(lambda block: block + 1, depth=1),
    "random": lambda x: da.random.default_rng(0).normal(size=(6, 6), chunks=3) + x,
    "no dimension": lambda x: (x + x.sum()) * 2,
}


@pytest.mark.parametrize("name", ARRAYS)
def test_blockwise_fusion_does_not_matter(name: str) -> None:
    collection = ARRAYS[name](array())
    (fused, found), (built, expected) = keyed(collection), keyed(collection, optimize_graph=False)
    assert [found[n].key for n in fused.required] == [expected[n].key for n in built.required]
    # What is still a task of its own after fusion is the task it was before.
    common = found.keys() & expected.keys()
    assert len(common) >= len(fused.required)
    assert {n: found[n].key for n in common} == {n: expected[n].key for n in common}


def test_linear_fusion_does_not_matter() -> None:
    dsk = {"a": (plus, 1), "b": (plus, "a", 2), "c": (plus, "b", 3), "d": (plus, "c", "c")}
    nodes = convert_legacy_graph(dsk)
    plain, fused = ingest(nodes, "d"), ingest(fuse_linear_task_spec(nodes, {"d"}), "d")
    assert len(fused.tasks) < len(plain.tasks)
    keys = [Keys(nonce="").of(g.tasks, g.required)[g.required[0]].key for g in (plain, fused)]
    assert keys[0] == keys[1]


def test_plain_data_in_a_fused_task_is_plain_data() -> None:
    nodes = convert_legacy_graph({"x": [1, 2], "a": (plus, "x"), "b": (plus, "a")})
    fused = {"b": Node.fuse(*nodes.values(), key="b")}
    keys = [
        Keys(nonce="").of(g.tasks, ["b"])["b"].key for g in (ingest(nodes, "b"), ingest(fused, "b"))
    ]
    assert keys[0] == keys[1]


def test_fusion_of_frames_does_not_matter() -> None:
    rows = pd.DataFrame({"a": np.arange(8), "b": np.arange(8.0)})
    frame = dd.from_pandas(rows, npartitions=2)
    expression = (frame.a + 1)[frame.b > 2].optimize(fuse=False)
    fused, plain = expression.optimize(fuse=True), expression
    kept = []
    for one in (fused, plain):
        graph = ingest(one.__dask_graph__(), one.__dask_keys__())
        found = Keys(nonce="").of(graph.tasks, graph.required)
        kept.append([found[name].key for name in graph.required])
    assert kept[0] == kept[1]


def test_names_do_not_matter() -> None:
    def graph(suffix: str) -> Any:
        a = delayed(plus)(1, dask_key_name=f"a{suffix}")
        return delayed(plus)(a, x=[a, 2], dask_key_name=f"b{suffix}")

    assert wanted_keys(graph("")) == wanted_keys(graph("-other"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Call(plus, (1, 2)), Call(plus, (2, 1))),
        (Call(plus, (1,)), Call(plus, (1.0,))),
        (Call(plus, (1,)), Call(plus, ("1",))),
        (Call(plus, (1,)), Call(plus, (), {"x": 1})),
        (Call(plus, (), {"x": 1}), Call(plus, (), {"y": 1})),
        (Call(plus, (Ref("a"),)), Call(plus, (Ref("b"),))),
        (Call(plus, (Ref("a"), Ref("b"))), Call(plus, (Ref("b"), Ref("a")))),
        (Call(plus, ([1],)), Call(plus, ((1,),))),
        (Call(plus, (Build(list, (Ref("a"),)),)), Call(plus, (Build(tuple, (Ref("a"),)),))),
        (Call(plus, (Build(list, (Ref("a"),)),)), Call(plus, (Ref("a"),))),
        (
            Call(plus, (Build(dict, ("x", Ref("a"), "y", Ref("b"))),)),
            Call(plus, (Build(dict, ("x", Ref("b"), "y", Ref("a"))),)),
        ),
        (Call(plus, (Call(plus, (1,)),)), Call(plus, (1,))),
        (Call(plus, (Call(plus, (1,)), 2)), Call(plus, (Call(plus, (1, 2)),))),
        (Call(plus, (None,)), Call(plus, ())),
        (Call(plus, (Build(list, (Build(list, ()), 1)),)), Call(plus, (Build(list, (1,)),))),
    ],
)
def test_other_work_has_another_key(one: Any, other: Any) -> None:
    assert key_of(one) != key_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Call(plus, (Build(list, (1, 2)),)), Call(plus, ([1, 2],))),
        (Call(plus, (Build(dict, ("x", 1)),)), Call(plus, ({"x": 1},))),
        (
            Call(plus, (Build(list, (Build(tuple, (1,)), Ref("a"))),)),
            Call(plus, (Build(list, ((1,), Ref("a"))),)),
        ),
        (
            Call(plus, (Build(set, (Ref("a"), Ref("b"), 1)),)),
            Call(plus, (Build(set, (1, Ref("b"), Ref("a"))),)),
        ),
        (Call(plus, (), {"x": 1, "y": 2}), Call(plus, (), {"y": 2, "x": 1})),
    ],
)
def test_the_same_work_has_the_same_key(one: Any, other: Any) -> None:
    assert key_of(one) == key_of(other)


def test_version_and_block_index_count() -> None:
    call = Call(plus, (1,))
    keys = [
        key_of(call),
        key_of(call, annotations={"version": "2"}),
        key_of(call, annotations={"version": 2}),
        key_of(call, name=("t", 0)),
        key_of(call, name=("t", 1)),
    ]
    assert len(set(keys)) == 5
    assert key_of(call, annotations={"resources": {"cores": 8}, "retries": 3}) == keys[0]
    assert key_of(call, name=("other", 1)) == keys[4]


def test_block_index() -> None:
    assert block_index("x") == ()
    assert block_index(("x", 1, np.int64(2), "s", (3, 4), 5.0)) == (1, 2, 3, 4)


# ---- repetition ------------------------------------------------------------------------------


def test_samples_are_told_apart_and_found_again() -> None:
    first = wanted_keys(*[delayed(sample)() for _ in range(10)])
    again = wanted_keys(*[delayed(sample)() for _ in range(10)])
    assert len(set(first)) == 10
    assert first == again


def test_one_of_the_samples_later_is_the_same_sample() -> None:
    samples = [delayed(sample)() for _ in range(6)]
    every = wanted_keys(*samples)
    assert [wanted_keys(one)[0] for one in samples] == every
    assert wanted_keys(*samples[::-1]) == every[::-1]


def test_a_submitted_call_is_the_first_sample() -> None:
    assert wanted_keys(delayed(plus)(1, x=2)) == [
        call_key(plus, (1,), {"x": 2}, keys=Keys(nonce="other")).key
    ]


def test_a_future_is_what_it_stands_for() -> None:
    class Future:
        pass

    inner = delayed(plus)(1)
    (key,) = wanted_keys(inner)
    (plain,) = wanted_keys(delayed(plus)(inner, [inner], y={"z": inner}))
    future = Future()

    def reference(value: Any) -> Referenced | None:
        return Referenced(key) if value is future else None

    keys = Keys(nonce="", reference=reference)
    assert call_key(plus, (future, [future]), {"y": {"z": future}}, keys=keys).key == plain


SEEDS = """
import hashlib, sys
sys.path[:0] = {path!r}
import numpy as np, dask.array as da, dask.bag as db
from dask import delayed
from graph_running import keyed, wanted_keys
def sample(): return 1
def f(*args): return args
def g(x, y): return x
samples = [delayed(sample)() for _ in range(5)]
nested = [delayed(f)(s, i) for i, s in enumerate(samples)]
sets = [delayed(f)({{delayed(f)('a'), delayed(sample)(), delayed(f)('b'), delayed(sample)()}}, i)
        for i in range(4)]
x = da.from_array(np.arange(36.).reshape(6, 6), chunks=3)
bag = db.from_sequence(range(10), npartitions=3).map(lambda v: v + 1).filter(lambda v: v % 2)
print(*wanted_keys(*nested), *wanted_keys(*sets), *wanted_keys(da.linalg.svd(x.rechunk((3, 6)))[1]))
print(*wanted_keys(bag.fold(g)), *wanted_keys(x.T + 1, delayed(f)(x)))
"""


def test_keys_do_not_change_with_the_hash_seed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SEEDS.format(path=[str(Path(__file__).parent)]))
    seen = set()
    for seed in "0", "1", "27":
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(script)], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        seen.add(done.stdout)
    assert len(seen) == 1


# ---- what is good for one run alone ----------------------------------------------------------


def test_what_has_no_content_makes_its_descendants_ephemeral() -> None:
    odd = delayed(plus)(object())
    graph, found = keyed(delayed(plus)(delayed(plus)(1), odd))
    by_problem = {bool(k.problems): k for k in found.values() if k.ephemeral}
    assert len(found) == 3
    assert sum(k.ephemeral for k in found.values()) == 2
    assert "argument 0" in by_problem[True].problems[0].path
    _, later = keyed(delayed(plus)(delayed(plus)(1), odd), nonce="later")
    (result,) = graph.required
    assert found[result].key not in {k.key for k in later.values()}
    assert len({k.key for k in found.values()} & {k.key for k in later.values()}) == 1


def test_cache_false() -> None:
    tasks = {
        "a": Task("a", Call(plus, (1,)), {"cache": False}),
        "b": Task("b", Call(plus, (Ref("a"),))),
        "c": Task("c", Call(plus, (1,))),
    }
    one, other = (Keys(nonce=nonce).of(tasks, ["b", "c"]) for nonce in "xy")
    assert [one[n].ephemeral for n in "abc"] == [True, True, False]
    assert [one[n].key == other[n].key for n in "abc"] == [False, False, True]


def test_two_tasks_without_content_are_not_one() -> None:
    found = wanted_keys(delayed(plus)(object()), delayed(plus)(object()))
    assert len(set(found)) == 2


def test_an_ephemeral_future_makes_ephemeral_however_deep() -> None:
    class Future:
        pass

    future = Future()
    keys = Keys(
        nonce="",
        reference=lambda v: Referenced("ab" * 32, v is future) if type(v) is Future else None,
    )
    shared = [[future]]
    assert call_key(plus, (shared,), {}, keys=keys).ephemeral
    assert call_key(plus, ({"x": shared},), {}, keys=keys).ephemeral
    assert not call_key(plus, ([Future()],), {}, keys=keys).ephemeral


# ---- large and deep --------------------------------------------------------------------------


def test_depth_is_no_matter() -> None:
    dsk: dict[Any, Any] = {"x0": (plus, 0)}
    dsk |= {f"x{i}": (plus, f"x{i - 1}") for i in range(1, 20_000)}
    nodes = convert_legacy_graph(dsk)
    keys = []
    for graph in (
        ingest(nodes, "x19999"),
        ingest(fuse_linear_task_spec(nodes, {"x19999"}), "x19999"),
    ):
        keys.append(Keys(nonce="").of(graph.tasks, graph.required)[graph.required[0]].key)
    assert keys[0] == keys[1]


def test_a_literal_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    large = np.zeros(100_000)
    seen = []
    keys = Keys(nonce="", reference=lambda value: seen.append(1) if value is large else None)
    tasks = {("t", i): Task(("t", i), Call(plus, (large, i))) for i in range(20)}
    assert len({k.key for k in keys.of(tasks, list(tasks)).values()}) == 20
    assert len(seen) == 1


def test_parts_say_what_a_key_is_made_of() -> None:
    tasks = {("t", 3): Task(("t", 3), Call(plus, (1,), {"y": 2}), {"version": "1"})}
    (found,) = Keys(nonce="").of(tasks, list(tasks)).values()
    assert list(found.parts) == [
        "version",
        "function",
        "argument 0",
        "argument 'y'",
        "block index",
    ]


def test_bag_and_node_tasks() -> None:
    bag = db.from_sequence(range(4), npartitions=2).map(plus)
    assert wanted_keys(bag) == wanted_keys(bag)
    node = {"a": Node("a", plus, 1), "b": Node("b", plus, TaskRef("a"), y=TaskRef("a"))}
    graph = ingest(node, "b")
    found = Keys(nonce="").of(graph.tasks, graph.required)
    assert found["b"].key != found["a"].key
