"""What scripts for executorlib find here: names, parameters, resources, and what they do."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

import dask_batch
import dask_batch.api
from bodies import add, fail, gated, noted, open_gate, traces
from clients import poll
from dask_batch import BaseExecutor, SingleNodeExecutor, get_cache_data
from dask_batch.api import (
    ExecutorlibSocketError,
    TestClusterExecutor,
    cancel_items_in_queue,
    cloudpickle_register,
)
from dask_batch.cache.store import Cache
from dask_batch.configuration.resources import KNOWN
from dask_batch.errors import ConfigurationError, ResourceError

ROOT = [
    "get_cache_data",
    "get_cache_data_queue",
    "get_future_from_cache",
    "get_item_from_future",
    "split_future",
    "terminate_task_in_cache",
    "terminate_tasks_in_cache",
    "BaseExecutor",
    "FluxClusterExecutor",
    "FluxJobExecutor",
    "SingleNodeExecutor",
    "SlurmClusterExecutor",
    "SlurmJobExecutor",
]
KEYS = [
    "cores",
    "threads_per_core",
    "gpus_per_core",
    "cwd",
    "cache_key",
    "cache_directory",
    "num_nodes",
    "exclusive",
    "error_log_file",
    "run_time_max",
    "priority",
    "slurm_cmd_args",
    "submission_template",
    "partition",
    "memory_max",
    "job_name",
    "openmpi_oversubscribe",
    "pmi_mode",
]
SOCKETS = [
    "SocketInterface",
    "MpiExecSpawner",
    "SubprocessSpawner",
    "get_command_path",
    "interface_bootup",
    "interface_connect",
    "interface_receive",
    "interface_send",
    "interface_shutdown",
]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def exe(cache: Path) -> Iterator[SingleNodeExecutor]:
    with SingleNodeExecutor(cache_directory=cache) as exe:
        yield exe


# ---- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROOT)
def test_the_root_has_the_name(name: str) -> None:
    assert callable(getattr(dask_batch, name))
    assert name in dask_batch.__all__
    assert name in dir(dask_batch)


def test_the_helpers_are_in_a_module_of_their_own_as_well() -> None:
    from dask_batch import compat

    assert {getattr(compat, name) for name in compat.__all__} == {
        getattr(dask_batch, name) for name in compat.__all__
    }
    assert set(compat.__all__) == set(ROOT)
    assert compat.api is dask_batch.api
    with pytest.raises(AttributeError, match="SocketInterface"):
        _ = compat.SocketInterface


@pytest.mark.parametrize("name", SOCKETS)
def test_what_is_about_sockets_is_refused_with_what_to_use(name: str) -> None:
    with pytest.raises(ImportError, match=f"{name}: "):
        exec(f"from dask_batch.api import {name}")


def test_a_job_that_imports_the_package_pays_for_none_of_it() -> None:
    script = (
        "import sys, dask_batch\n"
        "print(any(name.startswith('dask_batch.compat') for name in sys.modules))\n"
    )
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", KEYS)
def test_the_resource_is_known(name: str) -> None:
    assert name in KNOWN


def test_the_executor_for_tests(cache: Path) -> None:
    cloudpickle_register(ind=1)
    with TestClusterExecutor(cache_directory=cache) as exe:
        assert isinstance(exe, BaseExecutor)
        assert isinstance(exe, concurrent.futures.Executor)
        assert exe.submit(add, 1, 2).result(60) == 3
        assert list(exe.map(add, [1, 2], [3, 4], timeout=60, chunksize=2)) == [4, 6]
        with pytest.raises(ExecutorlibSocketError):
            exe.submit(sys.modules["os"]._exit, 3).result(60)
        with pytest.raises(RuntimeError):
            exe.submit(sys.modules["os"]._exit, 4).result(60)
    with pytest.raises(TypeError):
        cloudpickle_register(ind="1")  # type: ignore[arg-type]


# ---- parameters --------------------------------------------------------------------------------


def test_the_callers_dictionaries_are_not_changed(cache: Path) -> None:
    constructor = {"cores": 1, "run_time_max": 60}
    call = {"cache_key": "sum", "cache_directory": str(cache / "x")}
    with SingleNodeExecutor(cache_directory=cache / "y", resource_dict=constructor) as exe:
        assert exe.submit(add, 1, 2, resource_dict=call).result(60) == 3
    assert constructor == {"cores": 1, "run_time_max": 60}
    assert call == {"cache_key": "sum", "cache_directory": str(cache / "x")}


def test_wait_false_leaves_at_once_and_the_job_goes_on(cache: Path, tmp_path: Path) -> None:
    with SingleNodeExecutor(cache_directory=cache, wait=False) as exe:
        future = exe.submit(gated, tmp_path, "body")
    assert not future.done()
    with pytest.raises(RuntimeError, match="after shutdown"):
        exe.submit(add, 1, 2)
    open_gate(tmp_path)
    with SingleNodeExecutor(cache_directory=cache) as exe:
        again = exe.submit(gated, tmp_path, "body")
    assert again.result(0) == "body"
    assert traces(tmp_path)["body"] == 1
    assert future.result(60) == "body"
    with pytest.raises(ConfigurationError, match="wait"):
        SingleNodeExecutor(cache_directory=cache, wait="no")


def test_dependencies_may_be_disabled(cache: Path, tmp_path: Path) -> None:
    with SingleNodeExecutor(cache_directory=cache, disable_dependencies=True) as exe:
        parent = exe.submit(add, 1, 2)
        for call in ((add, parent, 1), (noted, tmp_path, "x", [{"deep": parent}])):
            with pytest.raises(ValueError, match="disable_dependencies"):
                exe.submit(*call).result(60)
        assert exe.submit(add, parent.result(60), 1).result(60) == 4
        with pytest.raises(ConfigurationError, match="disable_dependencies"):
            dask.compute(dask.delayed(noted)(tmp_path, "x", parent), scheduler=exe)
    assert traces(tmp_path)["x"] == 0


def test_the_size_of_calls_is_told(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    array = np.zeros(400_000)
    options: dict[str, Any] = {"cache_directory": cache, "log_obj_size": True}
    with (
        caplog.at_level(logging.WARNING, logger="dask_batch"),
        SingleNodeExecutor(**options) as exe,
    ):
        assert exe.submit(np.sum, array).result(60) == 0
        assert dask.compute(dask.delayed(add)(1, 2), scheduler=exe) == (3,)
    first, second = (record.getMessage() for record in caplog.records[:2])
    said = "the call of sum is "
    assert first.startswith(said)
    assert array.nbytes < int(first[len(said) :].split()[0]) < array.nbytes + 10_000
    assert second.startswith("a graph of 1 tasks is ")


def test_the_refresh_rate_is_about_looks_at_the_store_alone(cache: Path) -> None:
    with SingleNodeExecutor(cache_directory=cache, refresh_rate=0.25) as exe:
        assert exe.submit(add, 1, 2).result(60) == 3
        watch = exe._session.engine._watch
        assert watch.look_s == 0.25
        assert (
            watch.pace.shortest_poll_s
            == SingleNodeExecutor(cache_directory=cache)._session.engine._watch.pace.shortest_poll_s
        )
    with pytest.raises(ConfigurationError, match="refresh_rate"):
        SingleNodeExecutor(cache_directory=cache, refresh_rate=-1)


def test_info_length_and_queue(cache: Path, tmp_path: Path) -> None:
    resources = {"cores": 1, "cwd": str(tmp_path)}
    exe = SingleNodeExecutor(2, cache_directory=cache, resource_dict=resources)
    assert exe.info is not None
    assert exe.info["cwd"] == str(tmp_path)
    assert exe.info["cache_directory"] == str(cache)
    assert (exe.info["max_workers"], exe.max_workers) == (2, 2)
    assert (len(exe), bool(exe)) == (0, True)
    running = exe.submit(gated, tmp_path, "running")
    poll(running.running, 60, "the start")
    waiting = [exe.submit(noted, tmp_path, "waiting", [running, i]) for i in range(3)]
    assert len(exe) == 3
    assert exe.future_queue is not None
    assert exe.future_queue.qsize() == 3
    cancel_items_in_queue(exe.future_queue)
    assert [future.cancelled() for future in waiting] == [True] * 3
    assert not running.done()
    open_gate(tmp_path)
    exe.shutdown()
    assert running.result(0) == "running"
    assert (exe.info, exe.future_queue, len(exe), bool(exe)) == (None, None, 0, True)


def test_map_waits_for_futures_among_its_iterables(exe: SingleNodeExecutor) -> None:
    numbers = exe.submit(list, (1, 2))
    assert list(exe.map(add, numbers, [10, 20], timeout=60)) == [11, 22]
    assert list(exe.map(add, [1], exe.submit(list, (5,)), chunksize=3)) == [6]
    with pytest.raises(ValueError, match="chunksize"):
        exe.map(add, [1], [2], chunksize=0)


def test_map_tells_what_an_iterable_failed_of_and_waits_no_longer_than_it_may(
    exe: SingleNodeExecutor, tmp_path: Path
) -> None:
    with pytest.raises(LookupError, match="no"):
        exe.map(add, exe.submit(fail, "no"), [1])
    never: concurrent.futures.Future[Any] = concurrent.futures.Future()
    with pytest.raises(concurrent.futures.TimeoutError):
        exe.map(add, never, [1], timeout=0.1)
    values = exe.map(gated, [tmp_path], exe.submit(list, ("word",)), timeout=1)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(values)
    open_gate(tmp_path)


def test_items_of_any_queue_are_cancelled() -> None:
    mine: queue.Queue[Any] = queue.Queue()
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    mine.put({"future": future})
    mine.put({"shutdown": True})
    cancel_items_in_queue(mine)
    assert future.cancelled()
    mine.join()  # everything is done


def test_the_number_of_workers_is_fixed_without_workers(cache: Path) -> None:
    exe = SingleNodeExecutor(cache_directory=cache)
    for kind in (NotImplementedError, ConfigurationError):
        with pytest.raises(kind, match="block_allocation"):
            exe.max_workers = 2
    assert exe.max_workers is None
    exe.shutdown()


@pytest.mark.parametrize(
    "options",
    [
        {"flux_executor": object()},
        {"flux_log_files": "yes"},
        {"plot_dependency_graphs": True},
    ],
)
def test_what_has_no_meaning_is_refused_by_name(cache: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        SingleNodeExecutor(cache_directory=cache, **options)
    assert not cache.exists()


def test_a_machine_without_flux_gives_no_job_an_instance_of_it(cache: Path) -> None:
    with (
        SingleNodeExecutor(cache_directory=cache, flux_executor_nesting=True) as exe,
        pytest.raises(ResourceError, match=r"flux_executor_nesting.*no instances of Flux"),
    ):
        exe.submit(add, 1, 2)


# ---- resources ---------------------------------------------------------------------------------


def test_a_call_may_have_a_cache_of_its_own(cache: Path, tmp_path: Path) -> None:
    with SingleNodeExecutor(cache_directory=cache) as exe:
        here = exe.submit(add, 1, 2)
        asked = {"cache_directory": tmp_path / "rather", "cache_key": "there"}
        there = exe.submit(add, here, 10, resource_dict=asked)
        back = exe.submit(add, there, 100)
        failed = exe.submit(fail, "no", resource_dict={"cache_directory": str(tmp_path / "rather")})
        assert (here.result(60), there.result(60), back.result(60)) == (3, 13, 113)
        assert isinstance(failed.exception(60), LookupError)
        with pytest.raises(ResourceError, match="cache_directory"):
            exe.submit(add, 1, 2, resource_dict={"cache_directory": 3})
    assert Cache(tmp_path / "rather").resolve_name("there") == there.key
    # What it needed has been copied over, without what that was called with.
    entries = {entry["key"]: entry for entry in get_cache_data(tmp_path / "rather")}
    assert entries.keys() == {here.key, there.key}
    assert entries[there.key]["args"] == (3, 10)
    assert "args" not in entries[here.key]


def test_among_an_executors_resources_it_is_the_cache_of_all(cache: Path) -> None:
    resources = {"cache_directory": str(cache)}
    with SingleNodeExecutor(resource_dict=resources) as exe:
        assert exe.cache_directory == cache
        assert dask.compute(dask.delayed(add)(1, 2), scheduler=exe) == (3,)
        with (
            pytest.raises(ResourceError, match="cache_directory"),
            dask.annotate(resources={"cache_directory": "elsewhere"}),
        ):
            dask.compute(dask.delayed(add)(1, 3), scheduler=exe)


def test_one_name_for_two_calls_is_an_error_and_not_the_wrong_result(cache: Path) -> None:
    asked = {"cache_key": "same/name"}
    with SingleNodeExecutor(cache_directory=cache) as exe:
        assert exe.submit(add, 1, 2, resource_dict=asked).result(60) == 3
        assert exe.submit(add, 1, 2, resource_dict=asked).result(60) == 3
        assert isinstance(exe.submit(add, 1, 3, resource_dict=asked).exception(60), ValueError)
        for name in ("../out", "/abs", "a//b", ""):
            with pytest.raises(ResourceError, match="cache_key"):
                exe.submit(add, 1, 2, resource_dict={"cache_key": name})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"partion": "x"}, "unknown resource 'partion'.*'partition'"),
        ({"cores": 0}, "'cores': must be at least 1"),
        ({"submission_template": "{{ colour }}", "shade": 1}, "unknown resource 'shade'"),
    ],
)
def test_an_executor_checks_its_resources_when_it_is_made(
    cache: Path, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(ResourceError, match=said):
        SingleNodeExecutor(cache_directory=cache, resource_dict=asked)
    assert not cache.exists()


def test_what_the_template_uses_may_be_asked_for(cache: Path) -> None:
    asked = {"submission_template": "{{ colour }}", "colour": "green", "cores": 4, "ranks": 2}
    SingleNodeExecutor(cache_directory=cache, resource_dict=asked).shutdown()


@pytest.mark.parametrize("mode", ["pmix", "pmi2"])
@pytest.mark.parametrize("block_allocation", [False, True])
def test_a_pmi_mode_without_a_meaning_is_refused(
    cache: Path, mode: str, block_allocation: bool
) -> None:
    with (
        SingleNodeExecutor(
            1, cache_directory=cache, pmi_mode=mode, block_allocation=block_allocation
        ) as exe,
        pytest.raises(ResourceError, match=f"'pmi_mode' = '{mode}'.*'mpiexec'"),
    ):
        exe.submit(add, 1, 2)
    with SingleNodeExecutor(1, cache_directory=cache, pmi_mode="mpiexec") as exe:
        assert exe.submit(add, 1, 2).result(60) == 3


def test_errors_are_appended_to_a_file(cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "error.out"
    with SingleNodeExecutor(cache_directory=cache, resource_dict={"error_log_file": log}) as exe:
        assert exe.submit(fail, "the first").exception(60) is not None
        assert exe.submit(fail, "the second", resource_dict={}).exception(60) is not None
    text = log.read_text()
    assert text.count("function: fail") == 2
    assert text.index("LookupError: the first") < text.index("LookupError: the second")
    assert "args: ['the first']\nkwargs: {}\n" in text


class Mute:
    """Has no words, in one way or another."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __repr__(self) -> str:
        if self.how == "leaves":
            raise SystemExit(3)
        if self.how == "is long":
            return "x" * 10**6
        raise RuntimeError("no words")


@pytest.mark.parametrize("how", ["leaves", "fails", "is long"])
def test_arguments_without_words_do_not_hide_the_error(
    cache: Path, tmp_path: Path, how: str
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise LookupError("the error")

    log = tmp_path / "error.out"
    with SingleNodeExecutor(cache_directory=cache, resource_dict={"error_log_file": log}) as exe:
        array = np.zeros(10**6)
        error = exe.submit(refuse, Mute(how), array, text="y" * 10**6).exception(60)
        assert isinstance(error, LookupError)
    text = log.read_text()
    assert "args: " in text
    assert "LookupError: the error" in text
    assert len(text) < 10_000


def test_a_missing_directory_of_the_error_log_is_told(cache: Path, tmp_path: Path) -> None:
    def leave(code: int) -> None:
        os._exit(code)

    log = tmp_path / "nowhere" / "error.out"
    with SingleNodeExecutor(cache_directory=cache, resource_dict={"error_log_file": log}) as exe:
        error = exe.submit(fail, "because").exception(60)
        gone = exe.submit(leave, 3).exception(60)
    assert isinstance(error, LookupError)
    for told in (error, gone):
        assert told is not None
        (note,) = [note for note in told.__notes__ if "error_log_file" in note]
        assert f"there is no directory {log.parent}" in note


def test_the_working_directory(cache: Path, tmp_path: Path) -> None:
    with SingleNodeExecutor(cache_directory=cache, resource_dict={"cwd": tmp_path}) as exe:
        assert exe.submit(Path.cwd).result(60) == tmp_path


@pytest.mark.parametrize("absolute", [True, False])
def test_a_working_directory_below_the_clients_is_made(
    exe: SingleNodeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absolute: bool
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    folder = here / "strain" / "0_90"
    asked = {"cwd": str(folder if absolute else folder.relative_to(here))}
    assert exe.submit(Path.cwd, resource_dict=asked).result(60) == folder
    shutil.rmtree(here / "strain")
    fresh = {**asked, "cache": False}
    assert exe.submit(Path.cwd, resource_dict=fresh).result(60) == folder
    with dask.annotate(cwd=str(here / "of a graph")):
        lazy = dask.delayed(os.getcwd)()
    assert lazy.compute(scheduler=exe) == str(here / "of a graph")


def test_a_working_directory_elsewhere_must_be_there(
    exe: SingleNodeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "file").touch()
    refused = {"../there": "make it first", "../hereafter": "make it first", "file/x": "be made"}
    for missing, why in refused.items():
        with pytest.raises(ResourceError, match=f"cwd.*{why}"):
            exe.submit(Path.cwd, resource_dict={"cwd": missing})
    assert {path.name for path in tmp_path.iterdir()} == {"here", "cache"}


def test_a_job_of_its_own_is_worker_0(exe: SingleNodeExecutor) -> None:
    def worker(executorlib_worker_id: int) -> int:
        return executorlib_worker_id

    assert exe.submit(worker).result(60) == 0


def test_a_function_that_exits_is_a_job_without_a_result(exe: SingleNodeExecutor) -> None:
    with pytest.raises(ExecutorlibSocketError, match="exit raised SystemExit"):
        exe.submit(sys.exit, 3).result(60)


def test_resources_that_were_meant_for_the_function_are_not_swallowed(
    exe: SingleNodeExecutor,
) -> None:
    def takes(x: int, resource_dict: dict[str, int]) -> dict[str, int]:
        return resource_dict

    with pytest.raises(ConfigurationError, match=r"resource_dict=.*takes needs an argument"):
        exe.submit(takes, 1, resource_dict={})
    given = exe.submit(takes, 1, {"a": 2}, resource_dict={"cores": 1})
    assert given.result(60) == {"a": 2}


def test_where_there_are_no_workers_they_may_look_anywhere_for_their_client(cache: Path) -> None:
    with SingleNodeExecutor(cache_directory=cache, hostname_localhost=True) as exe:
        assert exe.submit(add, 1, 2).result(60) == 3


def test_an_executor_says_that_it_keeps_nothing() -> None:
    with SingleNodeExecutor() as exe:
        assert exe.info is not None
        assert exe.info["cache_directory"] is None


def test_an_executor_is_of_one_backend(cache: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"SingleNodeExecutor is 'local'.*ClusterExecutor"):
        SingleNodeExecutor(cache_directory=cache, backend="slurm")
    with SingleNodeExecutor(cache_directory=cache, backend="local") as exe:
        assert exe.submit(add, 1, 2).result(60) == 3


def test_log_files_of_flux_are_told_to_be_elsewhere(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with SingleNodeExecutor(cache_directory=cache, flux_log_files=True) as exe:
        assert exe.submit(add, 1, 2).result(60) == 3
    assert "no flux_0.out" in caplog.text


def test_the_same_call_again_does_not_hang(cache: Path, tmp_path: Path) -> None:
    with SingleNodeExecutor(cache_directory=cache) as exe:
        for _ in range(3):
            assert exe.submit(noted, tmp_path, "once", 1).result(60) == 1
    assert traces(tmp_path) == {"once": 1}


def test_max_cores_bounds_the_cpus_of_an_executor(cache: Path, tmp_path: Path) -> None:
    with SingleNodeExecutor(max_cores=1, cache_directory=cache) as exe:
        running = exe.submit(gated, tmp_path, "running")
        poll(running.running, 60, "the start")
        waiting = exe.submit(noted, tmp_path, "waiting")
        with SingleNodeExecutor(cache_directory=cache) as other:
            assert other.submit(add, 1, 2).result(60) == 3  # there is room on the machine
        assert not waiting.done()
        assert traces(tmp_path) == {"running": 1}
        with pytest.raises(ResourceError, match="max_cores=1"):
            exe.submit(add, 1, 2, resource_dict={"threads_per_core": 2})
        open_gate(tmp_path)
    assert waiting.done()
    with pytest.raises(ConfigurationError, match="max_cores"):
        SingleNodeExecutor(max_cores=0, cache_directory=cache)
