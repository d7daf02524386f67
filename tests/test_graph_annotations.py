"""What users say of tasks reaches the tasks, whatever Dask's optimisers do in between."""

from __future__ import annotations

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
from dask.utils import key_split
from dask.utils_test import inc

from dask_batch.graph.annotations import merge
from graph_running import ingested


def said(graph: Any, name: str) -> list[Any]:
    return [t.annotations.get(name) for t in graph.tasks.values()]


def test_delayed() -> None:
    with dask.annotate(resources={"cores": 8}, retries=2):
        a = delayed(inc)(1)
    graph = ingested(delayed(inc)(a))
    assert [dict(t.annotations) for t in graph.tasks.values()] == [
        {"resources": {"cores": 8}, "retries": 2},
        {},
    ]


def test_array_parts_of_fused_tasks_count() -> None:
    with dask.annotate(resources={"cores": 4}, retries=2):
        x = da.ones((4, 4), chunks=2)
    with dask.annotate(resources={"cores": 2, "memory_max": 8}, priority=7):
        y = x + 1
    graph = ingested(y)
    assert [dict(t.annotations) for t in graph.tasks.values()] == [
        {"resources": {"cores": 4, "memory_max": 8}, "retries": 2, "priority": 7}
    ] * 4


def test_free_keys_on_arrays() -> None:
    with dask.annotate(cores=4):
        x = da.ones((4, 4), chunks=2)
    found = said(ingested(x.sum()), "cores")
    assert found.count(4) == 4  # Dask does not fuse tasks of which different things were said
    assert found.count(None) == 5


def test_bag() -> None:
    with dask.annotate(resources={"cores": 3}):
        b = db.from_sequence(range(4), npartitions=2).map(inc)
    graph = ingested(b.sum())
    by_name = {key_split(n): t.annotations.get("resources") for n, t in graph.tasks.items()}
    assert {"cores": 3} in by_name.values()
    assert len(graph.tasks) == 3


def test_xarray_and_a_mixture() -> None:
    with dask.annotate(version="2"):
        ds = xr.Dataset({"t": (("x", "y"), np.ones((4, 6)))}).chunk(x=2) + 1
        d = delayed(inc)(1)
    assert said(ingested(ds, d), "version") == ["2", "2", "2"]


def test_callables_are_asked_for_each_key() -> None:
    with dask.annotate(priority=lambda key: key[1]):
        x = da.ones(4, chunks=2)
    assert said(ingested(x), "priority") == [0, 1]


def test_around_compute() -> None:
    with dask.annotate(retries=3):
        a = delayed(inc)(1)
    b = delayed(inc)(a)
    with dask.annotate(retries=1, resources={"cores": 2}):
        graph = ingested(b)
    assert said(graph, "retries") == [3, 1]
    assert said(graph, "resources") == [{"cores": 2}, {"cores": 2}]


@pytest.mark.filterwarnings("ignore:Dask annotations")
def test_rules_by_prefix_lie_between() -> None:
    frame = dd.from_pandas(pd.DataFrame({"a": [1, 2, 3]}), npartitions=2)
    with dask.annotate(resources={"cores": 1, "memory_max": 1}):
        graph = ingested(frame.a.sum(), rules={"sum*": {"cores": 5}, "nothing": {"cores": 9}})
    found = {key_split(n): t.annotations["resources"] for n, t in graph.tasks.items()}
    assert {"cores": 5, "memory_max": 1} in found.values()
    with dask.annotate(resources={"cores": 7}):
        d = delayed(inc)(1)
    graph = ingested(d, rules={"i*": {"cores": 5, "gpus_per_core": 1}})
    assert said(graph, "resources") == [{"cores": 7, "gpus_per_core": 1}]


@pytest.mark.parametrize(
    ("parts", "merged"),
    [
        (({}, {}), {}),
        (({"retries": 1}, {"retries": 3}), {"retries": 3}),
        (({"cache": True}, {"cache": False}), {"cache": False}),
        (({"version": "2"}, {"version": "1"}), {"version": "2"}),
        (
            ({"resources": {"cores": 1, "partition": "a"}}, {"resources": {"cores": 2}}),
            {"resources": {"cores": 2, "partition": "a"}},
        ),
    ],
)
def test_merge(parts: Any, merged: Any) -> None:
    assert merge(*parts) == merged


def test_calls_in_a_list_keep_their_annotations_and_stay_single() -> None:
    call = dask.delayed(abs)
    with dask.annotate(resources={"memory_max": 3}):
        annotated = call(call(1))
    graph = ingested(call([annotated, call(2)]))
    resources = sorted(map(str, said(graph, "resources")))
    assert resources == ["None", "None", "{'memory_max': 3}", "{'memory_max': 3}"]
    assert not any(task.fusable for task in graph.tasks.values())
