"""Dask's callbacks see jobs as they see tasks."""

from __future__ import annotations

import io
from typing import Any

import dask
import pytest
from dask.callbacks import Callback
from dask.diagnostics import CacheProfiler, Profiler, ProgressBar, ResourceProfiler
from dask.utils_test import add, inc

from dask_batch.graph.dask_spec import ingest
from dask_batch.progress import CallbackRun

GRAPH = {"x": 1, "a": (inc, "x"), "b": (inc, "a"), "c": (add, "a", "b")}


class Recorder(Callback):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def _start(self, dsk: Any) -> None:
        self.seen.append(("start", sorted(dsk)))

    def _start_state(self, dsk: Any, state: Any) -> None:
        self.seen.append(("state", len(state["waiting"]), len(state["ready"])))

    def _pretask(self, key: Any, dsk: Any, state: Any) -> None:
        assert key in dsk
        self.seen.append(("pretask", key, sorted(state["running"])))

    def _posttask(self, key: Any, result: Any, dsk: Any, state: Any, worker: Any) -> None:
        self.seen.append(("posttask", key, sorted(state["finished"]), worker))

    def _finish(self, dsk: Any, state: Any, failed: bool) -> None:
        self.seen.append(("finish", failed))


def test_the_order_of_things() -> None:
    with Recorder() as recorder, CallbackRun(ingest(GRAPH, "c")) as run:
        run.tell("finished", ["a"])  # from the cache
        run.tell("started", ["b"])
        run.tell("started", ["b"])
        run.tell("finished", ["b", "c"], worker=17)
        run.tell("finished", ["c", "unknown"])
    assert recorder.seen == [
        ("start", ["a", "b", "c", "x"]),
        ("state", 2, 1),
        ("pretask", "a", ["a"]),
        ("posttask", "a", ["a"], None),
        ("pretask", "b", ["b"]),
        ("posttask", "b", ["a", "b"], 17),
        ("pretask", "c", ["c"]),
        ("posttask", "c", ["a", "b", "c"], 17),
        ("finish", False),
    ]


def test_a_failure_is_told_and_goes_on() -> None:
    graph = ingest(GRAPH, "c")
    with Recorder() as recorder, pytest.raises(ZeroDivisionError), CallbackRun(graph):
        raise ZeroDivisionError
    assert recorder.seen[-1] == ("finish", True)


def test_a_callback_that_fails_at_the_start_leaves_the_others_finished() -> None:
    class Broken(Callback):
        def _start(self, dsk: Any) -> None:
            raise ZeroDivisionError

    with Recorder() as recorder, Broken() as broken:
        with pytest.raises(ZeroDivisionError), CallbackRun(ingest(GRAPH, "c")):
            pass
        assert {recorder._callback, broken._callback} == Callback.active
    assert recorder.seen in ([], [("start", ["a", "b", "c", "x"]), ("finish", True)])


def test_nested_computations_do_not_see_them() -> None:
    with Recorder() as recorder, CallbackRun(ingest(GRAPH, "c")):
        assert dask.delayed(inc)(1).compute(scheduler="sync") == 2
    assert [event[0] for event in recorder.seen] == ["start", "state", "finish"]


def test_without_callbacks_nothing_happens() -> None:
    with CallbackRun(ingest(GRAPH, "c")) as run:
        run.tell("finished", ["a", "b", "c"])


def test_dasks_own_diagnostics() -> None:
    out = io.StringIO()
    bar, profiler, cached = ProgressBar(out=out, dt=0.01), Profiler(), CacheProfiler()
    with bar, profiler, cached, ResourceProfiler(dt=0.01), CallbackRun(ingest(GRAPH, "c")) as run:
        run.tell("started", ["a"])
        run.tell("finished", ["a", "b"])
        run.tell("finished", ["c"])
    assert "100% Completed" in out.getvalue()
    assert [task.key for task in profiler.results] == ["a", "b", "c"]
    assert {entry.key for entry in cached.results} == {"a", "b", "c"}
