"""The executors: what the standard library promises of one, and what ours add."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import pickle
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import dask
import pytest

import dask_batch
from bodies import add, gated, noted, open_gate, traces
from clients import poll
from dask_batch import SingleNodeExecutor, SlurmClusterExecutor, cluster_get
from dask_batch.backends.local import local_jobs
from dask_batch.errors import CancelledTaskError, ConfigurationError, ResourceError, TemplateError

EXECUTORS = [
    pytest.param(SingleNodeExecutor, id="local"),
    pytest.param(SlurmClusterExecutor, id="slurm", marks=pytest.mark.slurm),
]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def exe(cache: Path) -> Iterator[SingleNodeExecutor]:
    with SingleNodeExecutor(cache_directory=cache) as executor:
        yield executor


# ---- the standard library's contract -----------------------------------------------------------


@pytest.mark.parametrize("kind", EXECUTORS)
def test_calls_in_sequence_add_up(kind: type, cache: Path) -> None:
    with kind(cache_directory=cache) as executor:
        future = 0
        for i in range(4, 8):
            future = executor.submit(add, i, future)
        assert future.result() == 22


def test_map_keeps_the_order_and_raises_where_the_failure_is(exe: SingleNodeExecutor) -> None:
    assert list(exe.map(add, range(5), range(5))) == [0, 2, 4, 6, 8]
    results = exe.map(functools.partial(divmod, 6), [3, 0, 2])
    assert next(results) == (2, 0)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_wait_as_completed_and_asyncio(exe: SingleNodeExecutor) -> None:
    futures = [exe.submit(add, i, i) for i in range(4)]
    done, pending = concurrent.futures.wait(futures, timeout=60)
    assert (done, pending) == (set(futures), set())
    again = [exe.submit(add, i, i) for i in range(4)]
    completed = concurrent.futures.as_completed(again, timeout=60)
    assert sorted(future.result() for future in completed) == [0, 2, 4, 6]

    async def awaited() -> int:
        return await asyncio.wrap_future(exe.submit(add, 20, 1))

    assert asyncio.run(awaited()) == 21


def test_result_with_a_timeout_leaves_the_future_as_it_is(
    exe: SingleNodeExecutor, tmp_path: Path
) -> None:
    future = exe.submit(gated, tmp_path, "slow")
    with pytest.raises(TimeoutError):
        future.result(timeout=0.05)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0.05)
    poll(future.running, 60, "the start")
    assert not future.done()
    assert not future.cancel()
    open_gate(tmp_path)
    assert future.result(60) == "slow"
    assert future.exception() is None


def test_submit_wants_a_callable(exe: SingleNodeExecutor) -> None:
    with pytest.raises(TypeError, match="3 is not callable"):
        exe.submit(3)


@pytest.mark.parametrize("cancel", [False, True])
@pytest.mark.parametrize("wait", [False, True])
def test_nothing_is_taken_after_shutdown(cache: Path, wait: bool, cancel: bool) -> None:
    executor = SingleNodeExecutor(cache_directory=cache)
    executor.shutdown(wait=wait, cancel_futures=cancel)
    for refused in (
        lambda: executor.submit(add, 1, 1),
        lambda: executor.compute(dask.delayed(add)(1, 1)),
        lambda: dask.compute(dask.delayed(add)(1, 1), scheduler=executor),
    ):
        with pytest.raises(RuntimeError, match="after shutdown"):
            refused()
    executor.shutdown()


def test_max_workers_must_be_positive(cache: Path) -> None:
    for number in (0, -1):
        with pytest.raises(ValueError, match="max_workers"):
            SingleNodeExecutor(number, cache_directory=cache)


@pytest.mark.parametrize("number", ["2", "./cache", Path("cache"), 1.5, True])
def test_max_workers_that_are_no_number_are_refused_by_name(number: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_workers must be a whole number") as caught:
        SingleNodeExecutor(number)
    if isinstance(number, (str, Path)):
        assert "cache_directory=" in str(caught.value)


def test_the_first_parameters_have_the_positions_of_executorlib(cache: Path) -> None:
    with SingleNodeExecutor(2, str(cache), 3, {"cwd": str(cache.parent)}) as executor:
        assert executor.info is not None
        said = ("max_workers", "cache_directory", "max_cores", "cwd")
        assert [executor.info[name] for name in said] == [2, str(cache), 3, str(cache.parent)]
        assert executor.max_workers == 2
    assert executor.max_workers is None


def test_an_executor_does_not_travel(exe: SingleNodeExecutor) -> None:
    with pytest.raises(TypeError, match="create one inside the function"):
        pickle.dumps(exe)


# ---- cancelling --------------------------------------------------------------------------------


def test_what_waits_can_be_cancelled_and_never_runs(cache: Path, tmp_path: Path) -> None:
    with SingleNodeExecutor(1, cache_directory=cache) as executor:
        blocker = executor.submit(gated, tmp_path, "blocker")
        poll(blocker.running, 60, "the start")
        waiting = executor.submit(noted, tmp_path, "waiting")
        assert waiting.cancel()
        assert waiting.cancelled()
        with pytest.raises(CancelledError):
            waiting.result()
        assert next(concurrent.futures.as_completed([waiting], timeout=30)) is waiting
        after = executor.submit(noted, tmp_path, "after")
        open_gate(tmp_path)
        after.result(60)
    assert traces(tmp_path)["waiting"] == 0


def test_equal_calls_are_one_task_with_a_future_each(cache: Path, tmp_path: Path) -> None:
    with SingleNodeExecutor(1, cache_directory=cache) as executor:
        blocker = executor.submit(gated, tmp_path, "blocker")
        poll(blocker.running, 60, "the start")
        one, other = (executor.submit(noted, tmp_path, "shared", 5) for _ in range(2))
        assert one is not other
        assert one.key == other.key
        assert one.cancel()
        assert not other.cancelled()
        open_gate(tmp_path)
        assert other.result(60) == 5
        assert one.cancelled()
        assert executor.submit(noted, tmp_path, "shared", 5).result(60) == 5
    assert traces(tmp_path)["shared"] == 1


def test_a_cancelled_parent_that_a_child_needs_runs_for_the_child(
    cache: Path, tmp_path: Path
) -> None:
    with SingleNodeExecutor(1, cache_directory=cache) as executor:
        blocker = executor.submit(gated, tmp_path, "blocker")
        poll(blocker.running, 60, "the start")
        parent = executor.submit(noted, tmp_path, "parent", 1)
        child = executor.submit(add, parent, 1)
        assert parent.cancel()
        open_gate(tmp_path)
        assert child.result(60) == 2
    assert traces(tmp_path)["parent"] == 1


# ---- shutdown, row by row ----------------------------------------------------------------------


@pytest.fixture
def three(cache: Path, tmp_path: Path) -> Iterator[tuple]:
    """An executor with a call that runs, one that waits for its turn, and one that depends."""
    executor = SingleNodeExecutor(1, cache_directory=cache)
    running = executor.submit(gated, tmp_path, "running")
    poll(running.running, 60, "the start")
    waiting = executor.submit(noted, tmp_path, "waiting", 2)
    dependent = executor.submit(add, waiting, 1)
    yield executor, running, waiting, dependent
    open_gate(tmp_path)
    executor.shutdown(cancel_futures=True)


def test_leaving_with_waits_for_all(cache: Path, tmp_path: Path) -> None:
    with SingleNodeExecutor(cache_directory=cache) as executor:
        futures = [executor.submit(noted, tmp_path, f"n{i}", i) for i in range(3)]
    assert [future.done() for future in futures] == [True] * 3
    assert [future.result() for future in futures] == [0, 1, 2]


def test_shutdown_true_true_cancels_what_waits_and_waits_for_the_rest(
    three: tuple, tmp_path: Path
) -> None:
    executor, running, waiting, dependent = three
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        shutdown = pool.submit(executor.shutdown, wait=True, cancel_futures=True)
        poll(dependent.cancelled, 60, "the cancelling")
        assert waiting.cancelled()
        assert not shutdown.done()
        open_gate(tmp_path)
        shutdown.result(60)
    assert running.result() == "running"
    assert traces(tmp_path)["waiting"] == 0


def test_shutdown_false_true_cancels_what_runs_too(three: tuple, tmp_path: Path) -> None:
    executor, running, waiting, dependent = three
    executor.shutdown(wait=False, cancel_futures=True)
    assert [f.cancelled() for f in (running, waiting, dependent)] == [True] * 3
    poll(lambda: not local_jobs(), 60, "the end of the jobs")
    assert traces(tmp_path) == {"running": 1}


def test_shutdown_false_true_leaves_what_another_client_waits_for(
    three: tuple, tmp_path: Path
) -> None:
    executor, running, _, _ = three
    with SingleNodeExecutor(cache_directory=executor.cache_directory) as other:
        same = other.submit(gated, tmp_path, "running")
        other.submit(add, 1, 1).result(60)  # so the other's hand-over is over
        executor.shutdown(wait=False, cancel_futures=True)
        assert running.cancelled()
        open_gate(tmp_path)
        assert same.result(60) == "running"


def test_shutdown_false_false_hands_over_and_lets_go(three: tuple, tmp_path: Path) -> None:
    executor, running, waiting, dependent = three
    executor.shutdown(wait=False)
    (run, *_) = dask_batch.status(executor.cache_directory)
    assert not any(future.done() for future in (running, waiting, dependent))
    open_gate(tmp_path)
    assert dependent.result(60) == 3
    assert (running.result(60), waiting.result(60)) == ("running", 2)
    assert run.job_ids


# ---- Dask --------------------------------------------------------------------------------------


def test_an_executor_is_a_dask_scheduler(exe: SingleNodeExecutor) -> None:
    lazy = dask.delayed(add)(1, dask.delayed(add)(2, 3))
    assert dask.compute(lazy, scheduler=exe) == (6,)
    assert lazy.compute(scheduler=exe.get) == 6
    assert dask.compute(lazy, scheduler=cluster_get, executor=exe) == (6,)
    with exe.as_default() as same:
        assert same is exe
        assert lazy.compute() == 6
    assert dask.config.get("scheduler", None) is None


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_an_executor_is_a_pool_for_schedulers_of_dasks_own(
    exe: SingleNodeExecutor, scheduler: str
) -> None:
    lazy = dask.delayed(add)(1, dask.delayed(add)(2, 3))
    with dask.config.set(pool=exe):
        assert lazy.compute(scheduler=scheduler) == 6


def test_compute_returns_futures_at_once(exe: SingleNodeExecutor, tmp_path: Path) -> None:
    import dask.array as da

    slow = dask.delayed(gated)(tmp_path, "slow")
    future = exe.compute(slow)
    assert not future.done()
    array, slow_again = exe.compute(da.arange(6, chunks=2).sum(), slow)
    assert array.result(60) == 15
    assert not slow_again.done()
    open_gate(tmp_path)
    assert future.result(60) == slow_again.result(60) == "slow"
    assert traces(tmp_path)["slow"] == 1
    # What a collection came to may be an argument.
    assert exe.submit(add, array, 1).result(60) == 16


def test_compute_wants_collections(exe: SingleNodeExecutor) -> None:
    with pytest.raises(ConfigurationError, match="Dask collections"):
        exe.compute(3)


# ---- what ours add -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXECUTORS)
def test_a_future_tells_its_job_and_its_logs(kind: type, cache: Path, tmp_path: Path) -> None:
    def talk() -> None:
        import sys

        print("said")
        print("complained", file=sys.stderr)

    with kind(cache_directory=cache) as executor:
        future = executor.submit(talk)
        assert future.result(120) is None
        assert future.job_id
        poll(lambda: future.stdout() == "said\n", 30, "stdout")
        assert "complained\n" in future.stderr()
        (entry,) = executor.get_cache_data()
    assert entry["queue_id"] == future.job_id
    assert entry["key"] == future.key
    assert entry["function"] == "talk"
    assert (entry["output"], entry["runtime"] >= 0) == (None, True)
    assert Path(entry["filename"]).is_file()


def test_status_counts_and_cancel_ends(cache: Path, tmp_path: Path) -> None:
    executor = SingleNodeExecutor(1, cache_directory=cache)
    running = executor.submit(gated, tmp_path, "running")
    poll(running.running, 60, "the start")
    waiting = executor.submit(add, running, "")
    executor._session.engine.flush()
    first, second = dask_batch.status(cache)
    assert (first.running, second.waiting) == (1, 1)
    assert first.backend == "local"
    assert dask_batch.cancel(cache) == 2
    with pytest.raises(CancelledTaskError):
        running.result(60)
    with pytest.raises(Exception, match="cancel"):
        waiting.result(60)
    assert [run.failed for run in dask_batch.status(cache)] == [1, 1]
    # What was cancelled is free to be computed again.
    open_gate(tmp_path)
    assert executor.submit(gated, tmp_path, "running").result(60) == "running"
    executor.shutdown()
    with pytest.raises(ConfigurationError, match="no run 'none'"):
        dask_batch.cancel(cache, run="none")


@pytest.mark.parametrize("kind", EXECUTORS)
def test_the_script_can_be_looked_at(kind: type, cache: Path) -> None:
    with kind(cache_directory=cache, resource_dict={"run_time_max": 90}) as executor:
        script = executor.job_script({"job_script_prologue": ["module load python"]})
        assert script.startswith("#!/")
        assert "\nmodule load python\n" in script
        assert "dask_batch.job" in script
        if kind is SlurmClusterExecutor:
            assert "#SBATCH --time=2\n" in script
        error, said = (
            (TemplateError, "nowhere")
            if kind is SlurmClusterExecutor
            else (ResourceError, "no templates")
        )
        with pytest.raises(error, match=said):
            executor.job_script({"submission_template": "#!/bin/sh\n{{ nowhere }}\n{{ command }}"})
    assert dask_batch.status(cache) == []


@pytest.mark.parametrize("kind", EXECUTORS)
def test_an_unknown_resource_raises_at_submit(kind: type, cache: Path) -> None:
    mine = {"memroy_max": 1}
    with kind(cache_directory=cache) as executor:
        with pytest.raises(ResourceError, match=r"memroy_max.*Did you mean 'memory_max'"):
            executor.submit(add, 1, 1, resource_dict=mine)
        with pytest.raises(ResourceError, match=r"cores=2 and ranks=4"):
            executor.submit(add, 1, 1, resource_dict={"cores": 2, "ranks": 4})
        with pytest.raises(ResourceError, match="memory_max"):
            executor.submit(add, 1, 1, resource_dict={"memory_max": 1e6})
    assert mine == {"memroy_max": 1}
    assert dask_batch.status(cache) == []
    assert traces(cache / "results") == {}


def test_a_calls_resources_prevail_over_the_executors(cache: Path) -> None:
    def threads() -> str:
        import os

        return os.environ["OMP_NUM_THREADS"]

    default = {"threads_per_core": 2}
    with SingleNodeExecutor(cache_directory=cache, resource_dict=default) as executor:
        assert executor.submit(threads).result(60) == "2"
        one = executor.submit(threads, resource_dict={"threads_per_core": 1, "cache": False})
        assert one.result(60) == "1"
    assert default == {"threads_per_core": 2}


def test_cache_false_and_version_and_refresh_at_submit(
    exe: SingleNodeExecutor, tmp_path: Path
) -> None:
    def run(**resources: object) -> None:
        exe.submit(noted, tmp_path, "body", resource_dict=resources).result(60)

    for resources, runs in (
        ({}, 1),
        ({}, 1),
        ({"cache": False}, 2),
        ({"cache": False}, 3),
        ({"version": "2"}, 4),
        ({"version": "2"}, 4),
        ({"refresh": True}, 5),
        ({}, 5),
    ):
        run(**resources)
        assert traces(tmp_path)["body"] == runs, resources


def test_a_cache_key_names_an_entry_and_guards_it(exe: SingleNodeExecutor) -> None:
    named = {"cache_key": "first/sum"}
    assert exe.submit(add, 1, 2, resource_dict=named).result(60) == 3
    assert exe.submit(add, 1, 2, resource_dict=named).result(60) == 3
    error = exe.submit(add, 5, 5, resource_dict=named).exception(60)
    assert isinstance(error, ConfigurationError)
    assert "cache_key='first/sum'" in str(error)
    with pytest.raises(ResourceError, match="cache_key"):
        exe.submit(add, 1, 2, resource_dict={"cache_key": "../outside"})


def test_two_executors_share_what_is_running(cache: Path, tmp_path: Path) -> None:
    with (
        SingleNodeExecutor(cache_directory=cache) as one,
        SingleNodeExecutor(cache_directory=cache) as other,
    ):
        futures = [executor.submit(gated, tmp_path, "shared") for executor in (one, other)]
        poll(lambda: traces(tmp_path)["shared"] > 0, 60, "the start")
        open_gate(tmp_path)
        assert [future.result(60) for future in futures] == ["shared"] * 2
    assert traces(tmp_path)["shared"] == 1
