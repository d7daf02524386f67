"""What Dask hands a scheduler, evaluated as tasks, gives what Dask itself gives."""

from __future__ import annotations

import operator
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dask import delayed
from dask.highlevelgraph import HighLevelGraph
from dask.utils_test import GetFunctionTestMixin, add, inc

from dask_batch.errors import GraphError
from dask_batch.graph.dask_spec import ingest, values
from dask_batch.spec import Build, Call, Let
from graph_running import get, ingested, run

pytestmark = pytest.mark.filterwarnings("ignore:Computing mixed collections")


class TestDasksOwnContract(GetFunctionTestMixin):
    get = staticmethod(get)


def array() -> da.Array:
    return da.from_array(np.arange(36.0).reshape(6, 6), chunks=(2, 3))


def bag() -> db.Bag:
    return db.from_sequence(range(10), npartitions=3)


def frame() -> dd.DataFrame:
    rows = pd.DataFrame({"a": np.arange(40) % 7, "b": np.arange(40.0), "c": list("abcd") * 10})
    return dd.from_pandas(rows, npartitions=4)


def total(*values: Any) -> Any:
    return sum(values)


COLLECTIONS = {
    "elementwise": lambda: (array() + 1).T + array().T,
    "matmul": lambda: array().dot(array().T) + 1,
    "svd": lambda: abs(da.linalg.svd(array().rechunk((2, 6)))[1]).round(6),
    "overlap": lambda: array().map_overlap(lambda block: block + 1, depth=1),
    "cumsum": lambda: array().cumsum(axis=0),
    "zero dimensions": lambda: array().sum(),
    "block info": lambda: array().map_blocks(lambda b, block_id=None: b + block_id[1], dtype=float),
    "bag": lambda: bag().map(lambda x: x + 1).filter(lambda x: x % 2),
    "fold": lambda: bag().fold(operator.add),
    "bag of one partition": lambda: db.from_sequence([1], npartitions=1).map(lambda x: x + 1),
    "groupby of a bag through a disk": lambda: (
        bag().groupby(lambda x: x % 3, npartitions=2, shuffle="disk").map(sorted_group)
    ),
    "two groupbys through disks": lambda: (
        bag()
        .groupby(lambda x: x % 3, shuffle="disk")
        .map(lambda group: len(group[1]))
        .groupby(lambda size: size > 3, shuffle="disk")
        .map(sorted_group)
    ),
    "groupby of a bag": lambda: bag().groupby(lambda x: x % 3, shuffle="tasks").map(sorted_group),
    "delayed": lambda: delayed(total)(delayed(total)(1, 2), 3),
    "containers": lambda: delayed(lambda a, b, c: (a, sorted(b), c.x))(
        {"x": delayed(total)(1)}, {delayed(total)(2), delayed(total)(4)}, Point(delayed(inc)(1))
    ),
    "delayed with keywords": lambda: delayed(dict)(a=delayed(inc)(1), b=[2]),
    "delayed of an array": lambda: delayed(np.sum)(array() + 1),
    "array of delayed": lambda: da.from_delayed(delayed(np.ones)(3), (3,), float) + 1,
    "groupby": lambda: frame().groupby("a").b.mean(),
    "shuffle": lambda: frame().shuffle("a"),
    "set_index": lambda: frame().assign(k=frame().b * 37 % 40).set_index("k"),
    "merge": lambda: frame().merge(frame().rename(columns={"b": "d"}), on="a"),
    "apply": lambda: frame().groupby("a").apply(lambda g: g.b.sum(), meta=("x", "f8")),
    "split_out": lambda: frame().groupby("a").b.sum(split_out=2),
    "partitions of a shuffle": lambda: frame().shuffle("a").partitions[1],
    "xarray": lambda: (
        xr.Dataset({"t": (("x", "y"), np.arange(24.0).reshape(4, 6))}).chunk(x=2).mean("y")
    ),
}
Point = namedtuple("Point", "x")


def sorted_group(group: tuple[int, list[int]]) -> tuple[int, list[int]]:
    return group[0], sorted(group[1])


def comparable(value: Any) -> Any:
    """Bring a value into a form in which equality is equality; rows of a shuffle have no order."""
    if isinstance(value, pd.DataFrame):
        return value.sort_values(list(value.columns)).to_dict("list")
    if isinstance(value, pd.Series):
        return value.sort_index().to_dict()
    if isinstance(value, xr.Dataset):
        return {name: variable.values.tolist() for name, variable in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("optimize", [True, False], ids=["optimized", "as built"])
@pytest.mark.parametrize("name", COLLECTIONS)
def test_collections_compute_as_they_do_elsewhere(name: str, optimize: bool) -> None:
    collection = COLLECTIONS[name]()
    (ours,) = dask.compute(collection, scheduler=get, optimize_graph=optimize)
    (theirs,) = dask.compute(collection, scheduler="sync", optimize_graph=optimize)
    assert comparable(ours) == comparable(theirs)


def test_mixtures() -> None:
    mixture = array().sum(), delayed(total)(3), bag().sum(), frame().shuffle("a").b.sum(), array()
    ours = dask.compute(*mixture, scheduler=get)
    theirs = dask.compute(*mixture, scheduler="sync")
    assert list(map(comparable, ours)) == list(map(comparable, theirs))


def test_a_mixture_shuffles_with_a_job_for_each_partition() -> None:
    graph = ingested(array().sum(), frame().shuffle("a"))
    functions = [getattr(t.expression, "function", None) for t in graph.tasks.values()]
    modules = {getattr(f, "__module__", "") for f in functions}
    assert not any(m and m.startswith("partd") for m in modules)


@pytest.mark.parametrize("name", ["shuffle", "merge", "partitions of a shuffle"])
def test_shuffles_between_live_workers_become_tasks(name: str) -> None:
    pytest.importorskip("distributed")  # some versions of Dask look for it before they build one
    (theirs,) = dask.compute(COLLECTIONS[name](), scheduler="sync")
    with dask.config.set({"dataframe.shuffle.method": "p2p"}):
        (ours,) = dask.compute(COLLECTIONS[name](), scheduler=get)
    if name == "partitions of a shuffle":  # the methods do not agree on what is in a partition
        assert set(comparable(ours)) == set(comparable(theirs))
    else:
        assert comparable(ours) == comparable(theirs)


@pytest.mark.parametrize("fused", [False, True])
def test_a_shuffle_on_disk_may_have_been_optimised_before(fused: bool) -> None:
    merged = frame().merge(frame().rename(columns={"b": "d"}), on="a", shuffle_method="disk")
    shuffled = merged.optimize(fuse=fused)
    columns = ["a", "b", "d"]
    ours, theirs = (
        dask.compute(shuffled[columns], scheduler=how)[0].sort_values(columns).reset_index()
        for how in (get, "sync")
    )
    pd.testing.assert_frame_equal(ours[columns], theirs[columns])


def test_a_shuffle_on_disk_keeps_the_index_whatever_it_is_told() -> None:
    shuffled = frame().shuffle("a", shuffle_method="disk", ignore_index=True)
    ours, theirs = dask.compute(shuffled, scheduler=get)[0], shuffled.compute(scheduler="sync")
    pd.testing.assert_frame_equal(ours.sort_index(), theirs.sort_index())


def read(part: int, columns: list[str] | None = None) -> pd.DataFrame:
    return pd.DataFrame({"a": [part], "b": [1]})[columns or ["a", "b"]]


def test_a_graph_may_be_computed_while_another_one_is_made() -> None:
    with dask.config.set(scheduler=get):
        made = dd.from_map(read, range(2), enforce_metadata=True)[["a"]]
        assert made.compute().a.tolist() == [0, 1]


def test_persist_asks_for_chunks() -> None:
    (kept,) = dask.persist(array() + 1, scheduler=get)
    assert (kept.compute(scheduler="sync") == array().compute(scheduler="sync") + 1).all()


def test_a_bag_that_is_grouped_through_a_disk_has_a_job_for_each_partition() -> None:
    grouped = bag().groupby(lambda x: x % 3, npartitions=2, shuffle="disk")
    for graph in (ingested(grouped), ingested(dask.optimize(grouped)[0])):
        assert len(graph.tasks) == bag().npartitions + 2


def lines(text: str) -> Iterator[str]:
    yield from text.split()


def test_a_generator_runs_where_it_is_read() -> None:
    made = delayed(lines)("a b c")
    assert made.key not in ingested(delayed(list)(made), delayed(sorted)(made)).tasks
    assert dask.compute(delayed(list)(made), delayed(sorted)(made), scheduler=get) == (
        ["a", "b", "c"],
        ["a", "b", "c"],
    )


def test_a_generator_that_is_wanted_stays_a_task() -> None:
    made = delayed(lines)("a b c")
    graph = ingested(made, delayed(list)(made))
    assert made.key in graph.tasks
    assert len(graph.tasks) == 2


@pytest.mark.parametrize("kind", ["bag", "frame"])
def test_a_shuffle_has_no_jobs_that_only_pick_a_share(kind: str) -> None:
    if kind == "bag":
        shuffled = bag().groupby(lambda x: x % 3, shuffle="tasks")
    else:
        shuffled = frame().shuffle("a", shuffle_method="tasks", npartitions=4)
    graph = ingested(shuffled)
    assert not any("split" in str(name) for name in graph.tasks)
    assert len(graph.tasks) < 20


def test_picking_is_a_job_where_it_was_asked_for() -> None:
    pair = delayed(divmod)(7, 2)
    assert len(ingested(pair[0] + pair[1]).tasks) == 4
    graph = {"both": (divmod, 7, 2), "one": (operator.getitem, "both", 1), "sum": (abs, "one")}
    assert set(ingest(graph, ["one", "sum"]).tasks) == {"both", "one", "sum"}
    assert set(ingest(graph, ["sum"]).tasks) == {"both", "sum"}


def test_calls_that_a_bag_takes_its_partitions_from_may_share_its_jobs() -> None:
    made = delayed(lambda: (x for x in "abc"))()
    graph = ingested(db.from_delayed([made]).map(str.upper))
    assert all(task.fusable for task in graph.tasks.values())
    assert not any(task.fusable for task in ingested(delayed(list)(made)).tasks.values())


def test_finalize_runs_in_the_client() -> None:
    graph = ingested(array() + 1, bag().map(inc), delayed(inc)(1))
    assert len(graph.finalizers) == 2
    assert not graph.finalizers.keys() & graph.tasks.keys()
    assert set(graph.required) <= graph.tasks.keys()
    a, b, c = values(graph, run(graph))
    assert a.shape == (6, 6)
    assert list(b) == list(range(1, 11))
    assert c == 2


def test_finalize_in_the_middle_is_a_task() -> None:
    graph = ingested(delayed(np.sum)(array()))
    assert not graph.finalizers
    assert any(str(name).startswith("finalize") for name in graph.tasks)


def test_a_users_finalize_is_a_task() -> None:
    def finalize(x: int) -> int:
        return x

    graph = ingested(delayed(finalize)(1))
    assert not graph.finalizers
    assert len(graph.tasks) == 1


def test_only_delayed_calls_stay_single() -> None:
    assert not any(t.fusable for t in ingested(delayed(inc)(delayed(inc)(1))).tasks.values())
    assert all(t.fusable for t in ingested(array().sum(), bag().sum()).tasks.values())
    assert all(t.fusable for t in ingest({"a": (inc, 1)}, "a").tasks.values())
    from_delayed = ingested(da.from_delayed(delayed(np.ones)(3), (3,), float) + 1)
    assert sorted(t.fusable for t in from_delayed.tasks.values()) == [False, True]


@pytest.mark.parametrize("key", ["x", b"x", 1, 2.5, ("x", 0), ("x", 0, "y")])
def test_keys_of_any_kind(key: Any) -> None:
    assert get({key: (inc, 7)}, key) == 8
    assert get({key: (inc, 7)}, [key, [[key]]]) == (8, ((8,),))


def test_missing_key() -> None:
    with pytest.raises(KeyError, match="'z'"):
        ingest({"x": 1}, ["x", ["z"]])


def test_plain_data_and_aliases_are_no_tasks() -> None:
    graph = ingest({"x": 1, "y": "x", "z": "y", "w": (inc, "z"), "v": "w"}, ["z", "v", "w"])
    assert list(graph.tasks) == ["w"]
    assert graph.tasks["w"].expression == Call(inc, (1,))
    assert graph.wanted == ["z", "w", "w"]
    assert values(graph, {"w": 2}) == (1, 2, 2)


def test_what_is_not_needed_is_left_out() -> None:
    assert list(ingest({"x": (inc, 1), "y": (inc, 2)}, "y").tasks) == ["y"]


@pytest.mark.parametrize(
    ("dsk", "cycle"),
    [
        ({"a": (inc, "b"), "b": (inc, "a")}, "'a' needs 'b' needs 'a'"),
        ({"a": (inc, "b"), "b": (add, 1, "b")}, "'b' needs 'b'"),
        ({"a": (inc, "b"), "b": "c", "c": "b"}, "'b' needs 'c' needs 'b'"),
    ],
)
def test_cycles_are_named(dsk: dict[str, Any], cycle: str) -> None:
    with pytest.raises(GraphError, match=cycle):
        ingest(dsk, "a")


def test_a_dependency_that_is_not_there() -> None:
    from dask._task_spec import Task, TaskRef

    with pytest.raises(GraphError, match="'a' refers to 'b'"):
        ingest({"a": Task("a", inc, TaskRef("b"))}, "a")


def test_not_a_graph() -> None:
    with pytest.raises(GraphError, match="mapping"):
        ingest(7, "a")


def test_our_futures_pass_through() -> None:
    class Future:
        __dask_future__ = True
        key = "x"

    future = Future()
    graph = ingest({"x": future, "y": (inc, "x")}, "y")
    assert graph.tasks["y"].expression.args == (future,)


def test_depth_is_no_matter() -> None:
    dsk: dict[Any, Any] = {i: (inc, i - 1) for i in range(1, 20_000)}
    assert get({0: 0, **dsk}, 19_999) == 19_999


def test_fused_tasks_keep_the_names_of_their_parts() -> None:
    x = da.ones((4, 6), chunks=(2, 3)) + 1
    graph = ingested((x.T * 2).sum(axis=0))
    names = {
        origin.name
        for task in graph.tasks.values()
        if isinstance(task.expression, Let)
        for origin in task.expression.origins
        if origin is not None
    }
    assert {(x.name, i, j) for i in range(2) for j in range(2)} <= names


def test_containers_have_one_form() -> None:
    one, other = delayed(inc)(1), delayed(inc)(2)
    graph = ingested(delayed(total)({one, other}, (one, other)))
    (task,) = [graph.tasks[name] for name in graph.required]
    assert all(isinstance(a, Build) for a in task.expression.args)
    assert [a.kind for a in task.expression.args] == [set, tuple]


def test_high_level_graph() -> None:
    graph = HighLevelGraph({"a": {"x": 1, "y": (inc, "x")}}, {"a": set()})
    assert get(graph, [["y"]]) == ((2,),)
