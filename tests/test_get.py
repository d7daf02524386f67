"""The contract of Dask's schedulers, on the local queue."""

from __future__ import annotations

import operator
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pytest
from dask.diagnostics import CacheProfiler, Profiler, ProgressBar, ResourceProfiler
from dask.utils_test import GetFunctionTestMixin

from dask_batch import cluster_get
from dask_batch.errors import (
    ConfigurationError,
    GraphError,
    RemoteError,
    ResourceError,
    SerializationError,
    TooManyJobsError,
    UncacheableWarning,
)


@pytest.fixture(autouse=True)
def _local(tmp_path: Path) -> Iterator[None]:
    with dask.config.set({"batch.backend": "local", "batch.cache-directory": tmp_path / "cache"}):
        yield


class TestGet(GetFunctionTestMixin):
    """Dask's own tests of what a scheduler must do, the chain of 10,000 tasks among them."""

    get = staticmethod(cluster_get)


def record(folder: Path, name: str) -> None:
    """Leave a trace of a body that runs; the traces are counted, so each has a name of its own."""
    (folder / f"{name}.{os.getpid()}.{random.SystemRandom().getrandbits(64):x}").touch()


def traces(folder: Path, name: str) -> int:
    return len(list(folder.glob(f"{name}.*")))


def test_every_kind_of_collection_in_one_compute() -> None:
    import dask.array as da
    import dask.bag as db
    import dask.dataframe as dd

    array = da.arange(12, chunks=4).reshape(3, 4).sum(axis=0)
    bag = db.from_sequence(range(10), npartitions=3).map(lambda x: x * 2).sum()
    frame = pd.DataFrame({"a": [1, 2, 1, 2], "b": [1.0, 2.0, 3.0, 4.0]})
    means = dd.from_pandas(frame, npartitions=2).groupby("a").b.mean()
    added = dask.delayed(operator.add)(1, 2)
    computed = dask.compute(array, bag, means, added, [added], scheduler=cluster_get)
    np.testing.assert_array_equal(computed[0], np.arange(12).reshape(3, 4).sum(axis=0))
    assert computed[1] == 90
    assert computed[2].to_dict() == {1: 2.0, 2: 3.0}
    assert computed[3:] == (3, [3])


def test_a_result_is_found_again_by_its_content(tmp_path: Path) -> None:
    def noted(x: int) -> int:
        record(tmp_path, "noted")
        return x + 1

    def graph() -> object:  # with other random keys each time
        return dask.delayed(sum)([dask.delayed(noted)(i) for i in range(3)])

    assert dask.compute(graph(), scheduler=cluster_get) == (6,)
    assert dask.compute(graph(), scheduler=cluster_get) == (6,)
    assert traces(tmp_path, "noted") == 3


def test_cache_false_runs_each_time_and_what_is_upstream_does_not(tmp_path: Path) -> None:
    def upstream() -> int:
        record(tmp_path, "upstream")
        return 1

    def downstream(x: int) -> int:
        record(tmp_path, "downstream")
        return x + 1

    def graph() -> object:
        below = dask.delayed(upstream)()
        with dask.annotate(cache=False):
            return dask.delayed(downstream)(below)

    for _ in range(2):
        assert dask.compute(graph(), scheduler=cluster_get) == (2,)
    assert (traces(tmp_path, "upstream"), traces(tmp_path, "downstream")) == (1, 2)


@pytest.mark.parametrize("where", ["annotation", "compute"])
def test_a_version_enters_the_key(tmp_path: Path, where: str) -> None:
    def noted() -> int:
        record(tmp_path, "noted")
        return 1

    for version in ("1", "1", "2"):
        if where == "annotation":
            with dask.annotate(version=version):
                lazy = dask.delayed(noted)()
            dask.compute(lazy, scheduler=cluster_get)
        else:
            resources = {"version": version}
            dask.compute(dask.delayed(noted)(), scheduler=cluster_get, resource_dict=resources)
    assert traces(tmp_path, "noted") == 2


def test_refresh_runs_again_and_publishes_anew(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("1")

    def read() -> str:
        return Path(counter).read_text()

    lazy = dask.delayed(read)()
    assert dask.compute(lazy, scheduler=cluster_get) == ("1",)
    counter.write_text("2")
    assert dask.compute(lazy, scheduler=cluster_get) == ("1",)
    assert dask.compute(lazy, scheduler=cluster_get, refresh=True) == ("2",)
    assert dask.compute(lazy, scheduler=cluster_get) == ("2",)


def test_an_exception_comes_back_as_it_was_and_is_not_reused(tmp_path: Path) -> None:
    def upstream() -> int:
        record(tmp_path, "upstream")
        return 0

    def divide(x: int) -> float:
        record(tmp_path, "divide")
        return 1 / x

    lazy = dask.delayed(divide)(dask.delayed(upstream)())
    for _ in range(2):
        with pytest.raises(ZeroDivisionError) as caught:
            dask.compute(lazy, scheduler=cluster_get)
        assert "in divide" in str(caught.value.__cause__)
    assert (traces(tmp_path, "upstream"), traces(tmp_path, "divide")) == (1, 2)


def test_the_exception_of_a_parent_is_what_is_raised() -> None:
    def fail() -> None:
        raise LookupError("the cause")

    lazy = dask.delayed(str)(dask.delayed(str)(dask.delayed(fail)()))
    with pytest.raises(LookupError, match="the cause"):
        dask.compute(lazy, scheduler=cluster_get)


@pytest.mark.parametrize("order", [SystemExit(0), KeyboardInterrupt()])
def test_a_task_does_not_end_the_client_nor_does_anybody_stop_waiting(
    order: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def leave() -> None:
        raise order

    with pytest.raises(RemoteError) as told:
        dask.compute(dask.delayed(leave)(), scheduler=cluster_get)
    assert type(told.value.__cause__) is type(order)
    assert "no longer waiting" not in caplog.text


def test_samples_are_told_apart_and_keep_their_dependents() -> None:
    def sample() -> float:
        return random.SystemRandom().random()

    def pair(value: float, i: int) -> tuple[float, int]:
        return value, i

    lazy = [dask.delayed(pair)(dask.delayed(sample)(), i) for i in range(5)]
    every = dask.compute(*lazy, scheduler=cluster_get)
    assert len({value for value, _ in every}) == 5
    assert dask.compute(lazy[3], scheduler=cluster_get) == (every[3],)


def test_the_name_batch_is_a_scheduler() -> None:
    assert dask.compute(dask.delayed(operator.add)(1, 1), scheduler="batch") == (2,)
    with dask.config.set(scheduler="batch"):
        assert dask.delayed(operator.add)(1, 2).compute() == 3


def test_inside_a_job_dask_computes_by_itself(tmp_path: Path) -> None:
    def nested() -> tuple[int, str]:
        import dask
        import dask.array as da

        scheduler = dask.config.get("scheduler")
        return int(da.ones(4, chunks=2).sum().compute()), scheduler

    environment = {**os.environ, "DASK_SCHEDULER": "batch"}
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import dask_batch, dask, sys

            def nested():
                import dask
                import dask.array as da
                total = int(da.ones(4, chunks=2).sum().compute())
                explicit = int(da.ones(4, chunks=2).sum().compute(scheduler="batch"))
                return total, explicit

            if __name__ == "__main__":
                print(dask.delayed(nested)().compute())
                print(sum(len(run.job_ids) for run in dask_batch.status()))
            """
        )
    )
    environment["DASK_BATCH__BACKEND"] = "local"
    done = subprocess.run(
        [sys.executable, script], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["(4, 4)", "1"], done.stderr


def test_callbacks_of_dask_are_called_for_each_node(capsys: pytest.CaptureFixture[str]) -> None:
    import dask.array as da

    x = (da.arange(40, chunks=10) + 1).sum()
    with (
        ProgressBar(dt=0.01),
        Profiler() as profiler,
        CacheProfiler() as cache_profiler,
        ResourceProfiler(dt=0.01) as resource_profiler,
    ):
        assert x.compute(scheduler=cluster_get) == 820
    assert "100%" in capsys.readouterr().out
    assert len(profiler.results) >= 5
    assert cache_profiler.results
    assert resource_profiler.results
    nodes = {task.key for task in profiler.results}
    with Profiler() as profiler:  # what is cached counts as finished at once
        assert x.compute(scheduler=cluster_get) == 820
    assert {task.key for task in profiler.results} == nodes


# ---- bad input: an error that names the culprit, before anything is submitted ------------------


def test_a_cycle_is_named() -> None:
    with pytest.raises(GraphError, match=r"cycle.*'a'.*'b'"):
        cluster_get({"a": (abs, "b"), "b": (abs, "a")}, "a")


def test_an_argument_that_cannot_be_pickled_is_named_with_its_path() -> None:
    refused = pytest.raises(SerializationError, match=r"settings.*\[0\]")
    with open(os.devnull) as file, refused, pytest.warns(UncacheableWarning):
        dask.compute(dask.delayed(str)({"settings": [file]}), scheduler=cluster_get)


def test_an_unknown_resource_is_named_with_those_that_are_known() -> None:
    with dask.annotate(resources={"memroy_max": 4}):
        lazy = dask.delayed(abs)(-1)
    with pytest.raises(ResourceError, match=r"memroy_max.*Did you mean 'memory_max'"):
        dask.compute(lazy, scheduler=cluster_get)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"resource_dct.*Did you mean 'resource_dict'"):
        dask.compute(dask.delayed(abs)(-1), scheduler=cluster_get, resource_dct={})


def test_more_than_the_machine_has_is_refused() -> None:
    with pytest.raises(ResourceError, match="memory_max"):
        dask.compute(
            dask.delayed(abs)(-1), scheduler=cluster_get, resource_dict={"memory_max": 1e6}
        )


def test_too_many_jobs_are_counted_by_function() -> None:
    lazy = [dask.delayed(abs)(i) for i in range(5)]
    with pytest.raises(TooManyJobsError, match=r"5 jobs.*max_jobs=3.*5 abs"):
        dask.compute(*lazy, scheduler=cluster_get, max_jobs=3)


def test_a_backend_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"sulrm.*Did you mean 'slurm'"):
        dask.compute(dask.delayed(abs)(-1), scheduler=cluster_get, backend="sulrm")
