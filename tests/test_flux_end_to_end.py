"""The journeys of users of Flux, on a real instance: what they type must do as they expect."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest

from bodies import add, fail, gated, kill_myself, noted, open_gate, traces
from clients import SEVENTEEN, Clients, poll
from dask_batch import (
    FluxClusterExecutor,
    SingleNodeExecutor,
    cluster_get,
    get_cache_data,
    status,
)
from dask_batch.backends.flux.backend import open_flux
from dask_batch.backends.flux.bindings import Bindings
from dask_batch.errors import (
    BackendUnavailableError,
    CancelledTaskError,
    ConfigurationError,
    DependencyFailedError,
    DiedTaskError,
    RemoteTraceback,
    ResourceError,
    SubmissionError,
    TimeoutTaskError,
)
from flux_systems import own_instance

pytest_plugins = ["flux_systems"]
pytestmark = [pytest.mark.flux, pytest.mark.usefixtures("flux")]

QUICK = {"failure_grace_s": 0.5, "output_grace_s": 1.0}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def add_funct(a: int, b: int) -> int:
    return a + b


def jobs_of(cache: Path) -> list[str]:
    """Return the names of the jobs of a cache's runs that have not ended."""
    runs = {run.run for run in status(cache)}
    return [row.name for row in Bindings().active() if any(run in row.name for run in runs)]


# ---- what one types ----------------------------------------------------------------------------


def test_dependent_adds(cache: Path) -> None:
    with FluxClusterExecutor(cache_directory=cache) as exe:
        future: Any = 0
        for i in range(4, 8):
            future = exe.submit(add_funct, i, future)
        assert future.result() == 22


def get_available_gpus() -> list[str]:
    return os.environ["CUDA_VISIBLE_DEVICES"].split(",")


def gpus_at(folder: Path, name: str) -> list[str]:
    gated(folder, name)
    return get_available_gpus()


def test_gpus_of_ones_own(cache: Path, tmp_path: Path) -> None:
    with FluxClusterExecutor(cache_directory=cache, resource_dict={"gpus_per_core": 1}) as exe:
        futures = [exe.submit(gpus_at, tmp_path, f"gpu{i}") for i in range(2)]
        poll(lambda: len(traces(tmp_path)) == 2, 60, "two at a time")
        open_gate(tmp_path)
        assert sorted(future.result() for future in futures) == [["0"], ["1"]]
        both = exe.submit(get_available_gpus, resource_dict={"gpus_per_core": 2})
        assert both.result() == ["0", "1"]


def test_a_graph_of_dask(cache: Path) -> None:
    import dask.array as da

    x = da.arange(1000, chunks=100)
    options = {"scheduler": cluster_get, "backend": "flux", "cache_directory": cache}
    assert dask.compute((x + x).sum(), **options) == (999000,)
    jobs = {entry["queue_id"] for entry in get_cache_data(cache)}
    assert all(job_id.startswith("f") for job_id in jobs)
    found = Bindings().rows(jobs)
    assert {row.job_id for row in found} == jobs  # what is on record is what the instance knows
    assert dask.compute((x + x).sum(), **options) == (999000,)
    assert {entry["queue_id"] for entry in get_cache_data(cache)} == jobs


def test_flux_is_chosen_where_there_is_an_instance(cache: Path, caplog: Any) -> None:
    value = dask.compute(dask.delayed(add)(1, 2), scheduler=cluster_get, cache_directory=cache)
    assert value == (3,)
    (run,) = status(cache)
    assert run.backend.startswith("flux@")


def test_the_same_key_here_and_there(cache: Path, tmp_path: Path) -> None:
    with SingleNodeExecutor(cache_directory=cache) as exe:
        here = exe.submit(noted, tmp_path, "once", 42)
        assert here.result() == 42
    with FluxClusterExecutor(cache_directory=cache) as exe:
        there = exe.submit(noted, tmp_path, "once", 42)
        assert (there.result(), there.key) == (42, here.key)
    assert traces(tmp_path) == {"once": 1}


def test_a_place_and_a_script(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "here {x}").mkdir()
    asked = {
        "cwd": str(tmp_path / "here {x}"),
        "job_name": "a name/of mine",
        "job_script_prologue": ["export FROM_PROLOGUE='a b'"],
        "run_time_max": 60,
    }
    with FluxClusterExecutor(cache_directory=cache, resource_dict=asked) as exe:
        assert exe.submit(os.getcwd).result() == asked["cwd"]
        variable = exe.submit(os.getenv, "FROM_PROLOGUE")
        assert variable.result() == "a b"
        (row,) = Bindings().rows([variable.job_id])
        assert row.name.startswith("a_name_of_mine-")
        script = exe.job_script({"priority": 4})
    for line in ("export FROM_PROLOGUE='a b'", "# flux: run_time_s = 60", "# flux: urgency = 20"):
        assert line in script


def test_options_that_mean_nothing_here(cache: Path) -> None:
    with pytest.raises(ConfigurationError, match="max_workers=2: on a cluster"):
        FluxClusterExecutor(2, cache_directory=cache)
    with pytest.raises(ConfigurationError, match=r"flux_uri.*use FluxClusterExecutor"):
        SingleNodeExecutor(cache_directory=cache, flux_uri="local:///none")
    with (
        FluxClusterExecutor(cache_directory=cache) as exe,
        pytest.raises(ResourceError, match="'qos' = 'a'"),
    ):
        exe.submit(add, 1, 2, resource_dict={"qos": "a"})


def sums_of_jobs(folder: str, count: int) -> list[int]:
    with FluxClusterExecutor(cache_directory=folder) as inner:
        futures = [inner.submit(sum, [i, i]) for i in range(count)]
        return [future.result() for future in futures]


def test_a_job_that_hands_over_jobs(cache: Path, tmp_path: Path) -> None:
    with FluxClusterExecutor(cache_directory=cache) as outer:
        assert outer.submit(sums_of_jobs, str(tmp_path / "inner"), 3).result(120) == [0, 2, 4]
    inner, outer_jobs = (
        {e["queue_id"] for e in get_cache_data(c)} for c in (tmp_path / "inner", cache)
    )
    assert len(inner) == 3
    assert not inner & outer_jobs


def nested_sums(n: int) -> tuple[list[int], str]:
    """Hand calls to whatever instance this job is in, and say which that is."""
    from dask_batch import FluxJobExecutor

    with FluxJobExecutor() as inner:
        futures = [inner.submit(sum, [i, i]) for i in range(n)]
        return [future.result() for future in futures], os.environ["FLUX_URI"]


def test_jobs_that_fill_an_instance_and_have_one_each(cache: Path) -> None:
    """All CPUs are taken by calls that hand in calls of their own: those wait for no others."""
    with FluxClusterExecutor(cache_directory=cache, flux_executor_nesting=True) as exe:
        futures = [exe.submit(nested_sums, n) for n in range(1, 10)]
        told = [future.result(240) for future in futures]
    assert [values for values, _ in told] == [[2 * i for i in range(n)] for n in range(1, 10)]
    assert len({uri for _, uri in told} | {os.environ["FLUX_URI"]}) == 10


def test_leaving_and_coming_back_and_what_was_allocated(cache: Path) -> None:
    exe = FluxClusterExecutor(cache_directory=cache, resource_dict={"threads_per_core": 3})
    left = [exe.submit(sum, [i, i]) for i in range(1, 4)]
    exe.shutdown(wait=False, cancel_futures=False)
    with FluxClusterExecutor(cache_directory=cache) as exe:
        assert [exe.submit(sum, [i, i]).result(60) for i in range(1, 4)] == [2, 4, 6]
    assert [future.result(60) for future in left] == [2, 4, 6]
    for entry in get_cache_data(cache):
        argv = ["flux", "jobs", "-no", "{ncores} {status}", entry["queue_id"]]
        told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert told.split() == ["3", "COMPLETED"]


# ---- failures ----------------------------------------------------------------------------------


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def test_what_went_wrong_is_told(cache: Path, tmp_path: Path) -> None:
    with FluxClusterExecutor(cache_directory=cache, **QUICK) as exe:
        own = exe.submit(fail, "of mine")
        child = exe.submit(add, own, 1)
        killed = exe.submit(kill_myself, int(signal.SIGKILL))
        late = exe.submit(sleep, 600, resource_dict={"run_time_max": 2})
        ended = exe.submit(gated, tmp_path, "ended")
        refused = exe.submit(add, 3, 4, resource_dict={"partition": "nosuchqueue"})

        error = own.exception(60)
        assert type(error) is LookupError
        assert isinstance(error.__cause__, RemoteTraceback)
        error = child.exception(60)
        assert isinstance(error, DependencyFailedError)
        assert error.root == own.key
        error = killed.exception(60)
        assert isinstance(error, DiedTaskError)
        assert "signal 9" in str(error)
        assert error.job_id == killed.job_id
        error = refused.exception(60)
        assert isinstance(error, SubmissionError)
        assert "'nosuchqueue' is not a valid queue" in str(error.output)

        poll(lambda: traces(tmp_path)["ended"] == 1, 60, "the job that is to be cancelled")
        subprocess.run(["flux", "cancel", ended.job_id], check=True)
        error = ended.exception(60)
        assert isinstance(error, CancelledTaskError)
        error = late.exception(60)
        assert isinstance(error, TimeoutTaskError)


def once_in(folder: Path, name: str) -> bool:
    """Tell whether this is asked for the first time."""
    try:
        os.close(os.open(folder / f"{name}.first", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def slow_at_first(folder: Path, name: str) -> str:
    if once_in(folder, name):
        time.sleep(600)
    return name


def pair(a: str, b: str) -> str:
    return f"{a}+{b}"


def test_what_failed_is_repeated_while_its_dependents_wait(cache: Path, tmp_path: Path) -> None:
    limits = {"retries": 1, "run_time_max": 3}
    with FluxClusterExecutor(cache_directory=cache, steward=False, **QUICK) as exe:
        flaky = exe.submit(slow_at_first, tmp_path, "a", resource_dict=limits)
        child = exe.submit(pair, flaky, "b")
        grandchild = exe.submit(pair, child, "c")
        assert grandchild.result(120) == "a+b+c"
        late = exe.submit(pair, child, "d")
        assert late.result(60) == "a+b+d"
    poll(lambda: not jobs_of(cache), 30, "no gate is left")


def test_a_failure_for_good_leaves_nothing_behind(cache: Path) -> None:
    asked = {"retries": 1, "retry_exceptions": True}
    with FluxClusterExecutor(cache_directory=cache, **QUICK) as exe:
        bad = exe.submit(fail, "always", resource_dict=asked)
        child = exe.submit(add, bad, 1)
        assert isinstance(child.exception(120), DependencyFailedError)
        assert type(bad.exception(60)) is LookupError
    poll(lambda: not jobs_of(cache), 60, "nothing is left in the queue")


def test_shutdown_ends_what_runs(cache: Path, tmp_path: Path) -> None:
    exe = FluxClusterExecutor(cache_directory=cache)
    futures = [exe.submit(gated, tmp_path, "one")]
    futures.append(exe.submit(add, futures[0], "x"))
    poll(lambda: traces(tmp_path)["one"] == 1, 60, "the job")
    exe.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    poll(lambda: not jobs_of(cache), 60, "nothing is left in the queue")


@pytest.fixture
def three(cache: Path, tmp_path: Path) -> Iterator[tuple[Any, ...]]:
    """An executor with a call that runs on all CPUs, one that waits for them, one that depends."""
    exe = FluxClusterExecutor(cache_directory=cache)
    cpus = sum(int(word) for word in subprocess.check_output(
        ["flux", "resource", "list", "-s", "all", "-n", "-o", "{ncores}"], text=True
    ).split())  # fmt: skip
    running = exe.submit(gated, tmp_path, "running", resource_dict={"threads_per_core": cpus})
    waiting = exe.submit(noted, tmp_path, "waiting", 2)
    dependent = exe.submit(add, waiting, 1)
    poll(lambda: running.running() and traces(tmp_path)["running"] == 1, 120, "the start")
    yield exe, running, waiting, dependent
    open_gate(tmp_path)
    exe.shutdown(wait=False, cancel_futures=True)


def test_shutdown_cancel_waits_for_what_runs(three: tuple[Any, ...], tmp_path: Path) -> None:
    exe, running, waiting, dependent = three
    open_gate(tmp_path)
    exe.shutdown(wait=True, cancel_futures=True)
    assert running.result() == "running"
    # What began in the moment in which the first one ended is waited for as well.
    assert waiting.cancelled() or waiting.result() == 2
    assert dependent.cancelled() or dependent.result() == 3


def test_shutdown_no_wait_leaves_everything(three: tuple[Any, ...], tmp_path: Path) -> None:
    exe, running, waiting, dependent = three
    exe.shutdown(wait=False, cancel_futures=False)
    assert not any(future.done() for future in (running, waiting, dependent))
    open_gate(tmp_path)
    assert running.result(120) == "running"
    assert dependent.result(120) == 3


def test_shutdown_no_wait_cancel_ends_everything(three: tuple[Any, ...], tmp_path: Path) -> None:
    exe, running, waiting, dependent = three
    exe.shutdown(wait=False, cancel_futures=True)
    assert [f.cancelled() for f in (running, waiting, dependent)] == [True] * 3
    assert traces(tmp_path) == {"running": 1}


# ---- clients that go ---------------------------------------------------------------------------


def test_a_client_that_is_killed_and_one_that_comes_back(tmp_path: Path) -> None:
    clients = Clients(tmp_path, "flux", SEVENTEEN)
    client = clients.start()
    poll(lambda: bool(list(clients.cache.glob("runs/*.settled"))), 60, "the hand-over")
    client.kill()
    client.wait(10)
    said = clients.run()
    assert said.startswith("end(last(both(")
    assert set(clients.bodies().values()) == {1}
    assert sum(clients.bodies().values()) == 17


REPEATS = """
FIRST = Path({folder!r})

def slow_at_first(name, parent):
    try:
        os.close(os.open(FIRST / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return body(name, parent)
    time.sleep(600)

def graph():
    task = dask.delayed(body)
    with dask.annotate(retries=2, resources={{"run_time_max": 6}}):
        root = task("root")
        slow = [dask.delayed(slow_at_first)(f"slow{{i}}", root) for i in range(2)]
        middle = [task(f"middle{{i}}", each) for i, each in enumerate(slow)]
    return task("end", *middle)

if __name__ == "__main__":
    compute(graph())
"""


def test_what_fails_is_repeated_with_nobody_logged_in(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    clients = Clients(tmp_path, "flux", REPEATS.format(folder=str(tmp_path / "first")))
    client = clients.start()
    poll(lambda: bool(list(clients.cache.glob("runs/*.settled"))), 60, "the hand-over")
    client.kill()
    client.wait(10)
    poll(lambda: clients.results() == 6, 120, "the graph, without its client")
    assert clients.run() == "end(middle0(slow0(root())),middle1(slow1(root())))"
    assert set(clients.bodies().values()) == {1}


# ---- instances that end, and others ------------------------------------------------------------


def test_an_instance_that_ends_says_nothing_and_a_later_one_takes_over(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_instance(cpus=2) as first:
        exe = FluxClusterExecutor(cache_directory=cache, flux_uri=first)
        done = exe.submit(add, 1, 2)
        exe.submit(gated, tmp_path, "under-way")
        assert done.result(60) == 3
        poll(lambda: traces(tmp_path)["under-way"] == 1, 60, "the job")
        exe.shutdown(wait=False)
    open_gate(tmp_path)
    with FluxClusterExecutor(cache_directory=cache) as later:
        assert later.submit(add, 1, 2).result(60) == 3
        assert later.submit(gated, tmp_path, "under-way").result(60) == "under-way"
    assert traces(tmp_path)["under-way"] == 2  # the first one went with its instance


def test_jobs_are_asked_about_where_they_were_handed_in(cache: Path, tmp_path: Path) -> None:
    with own_instance(cpus=2) as elsewhere:
        exe = FluxClusterExecutor(cache_directory=cache, flux_uri=elsewhere)
        first = exe.submit(gated, tmp_path, "one")
        poll(lambda: traces(tmp_path)["one"] == 1, 60, "the job")
        exe.shutdown(wait=False)
        with FluxClusterExecutor(cache_directory=cache) as other:
            second = other.submit(gated, tmp_path, "one")
            poll(lambda: status(cache)[0].running == 1, 60, "it is seen to run")
            open_gate(tmp_path)
            assert second.result(60) == first.result(60) == "one"
    assert traces(tmp_path)["one"] == 1


def test_no_instance(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLUX_URI", f"local://{tmp_path}/none")
    with pytest.raises(BackendUnavailableError, match=r"`flux start`.*FLUX_URI"):
        FluxClusterExecutor(cache_directory=tmp_path / "cache")
    with pytest.raises(BackendUnavailableError, match=r"cannot be reached|no Flux instance"):
        open_flux("flux@no-such-host.invalid/none")
