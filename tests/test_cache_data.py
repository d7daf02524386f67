"""What a cache tells, and the futures of what somebody has handed in before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest

from bodies import add, fail, gated, noted, open_gate, traces
from clients import poll
from dask_batch import (
    SingleNodeExecutor,
    cancel,
    clean,
    get_cache_data,
    get_cache_data_queue,
    get_future_from_cache,
    get_item_from_future,
    status,
    terminate_task_in_cache,
    terminate_tasks_in_cache,
)
from dask_batch.compat.families import asked_family, belongs
from dask_batch.errors import (
    CancelledTaskError,
    ConfigurationError,
    MissingEntryError,
    TaskError,
)
from dask_batch.upkeep.cached import CacheEntry, Unfinished


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def exe(cache: Path) -> Iterator[SingleNodeExecutor]:
    with SingleNodeExecutor(cache_directory=cache) as executor:
        yield executor


def by_function(entries: list[CacheEntry]) -> dict[str, CacheEntry]:
    return {entry["function"]: entry for entry in entries}


# ---- entries -----------------------------------------------------------------------------------


def test_an_entry_has_the_names_that_executorlib_gives(
    exe: SingleNodeExecutor, cache: Path
) -> None:
    parent = exe.submit(add, 1, b=2)
    array = np.arange(300_000.0)  # large enough to be an entry of its own
    assert isinstance(exe.submit(fail, "no").exception(60), LookupError)
    noted_future = exe.submit(noted, cache.parent, "x", value=[array, parent])
    assert noted_future.result(60)[1] == 3
    entries = get_cache_data(str(cache))
    assert len(entries) == 2  # neither the array, nor what has failed
    entry = by_function(entries)["add"]
    assert entry["queue_id"] == parent.job_id
    assert (entry["output"], entry["input_args"], entry["input_kwargs"]) == (3, (1,), {"b": 2})
    assert (entry["args"], entry["kwargs"]) == ((1,), {"b": 2})
    assert "args" in entry
    assert "error" not in entry
    assert entry.get("error") is None
    assert Path(entry["filename"]).is_file()
    assert entry["runtime"] >= 0
    assert entry["resource_dict"] == {"cores": 1, "threads_per_core": 1}
    with pytest.raises(KeyError, match="nonsense"):
        entry["nonsense"]
    folder, name = by_function(entries)["noted"]["input_args"]
    assert (folder, name) == (cache.parent, "x")
    value = by_function(entries)["noted"]["input_kwargs"]["value"]
    assert value[1] == 3
    assert np.array_equal(value[0], array)


def test_values_are_read_when_they_are_asked_for(exe: SingleNodeExecutor, cache: Path) -> None:
    assert exe.submit(add, 1, 2).result(60) == 3
    (entry,) = get_cache_data(cache)
    Path(entry["filename"]).unlink()
    (definitions,) = (cache / "definitions").iterdir()
    definitions.unlink()
    assert "output" in entry
    assert entry["function"] == "add"
    for name in ("output", "args"):
        with pytest.raises(MissingEntryError):
            entry[name]


def test_what_cannot_be_read_is_left_out_and_named(
    exe: SingleNodeExecutor, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    futures = [exe.submit(add, i, 1) for i in range(3)]
    assert [future.result(60) for future in futures] == [1, 2, 3]
    exe.shutdown()
    open_to_all, torn, _ = (cache / "results" / f.key[:2] / f"{f.key}.h5" for f in futures)
    open_to_all.chmod(0o666)
    torn.write_bytes(torn.read_bytes()[:100])
    for look in (get_cache_data, get_cache_data_queue):
        assert [entry["output"] for entry in look(cache) if "output" in entry] == [3]
    for future in futures[:2]:
        assert future.key[:12] in caplog.text
    runs = sorted((cache / "runs").glob("*.json"))
    assert len(status(cache)) == len(runs)
    runs[0].chmod(0o666)
    assert len(status(cache)) == len(runs) - 1
    assert f"run {runs[0].stem} is left out" in caplog.text


def test_entries_make_a_table(exe: SingleNodeExecutor, cache: Path) -> None:
    futures = [exe.submit(add, i, b=i) for i in range(3)]
    assert sum(future.result(60) for future in futures) == 6
    table = pd.DataFrame(get_cache_data(cache))
    assert sorted(table["output"]) == [0, 2, 4]
    assert set(table["queue_id"]) == {future.job_id for future in futures}


def test_tasks_of_graphs_have_no_arguments_of_their_own(
    exe: SingleNodeExecutor, cache: Path
) -> None:
    assert dask.compute(dask.delayed(add)(1, 2), scheduler=exe) == (3,)
    (entry,) = get_cache_data(cache)
    assert "input_args" not in entry
    assert entry["output"] == 3
    assert entry["name"]


def test_a_folder_of_others_is_refused_with_what_to_name(tmp_path: Path) -> None:
    (tmp_path / "sum_o.h5").touch()
    for look in (get_cache_data, get_cache_data_queue, terminate_tasks_in_cache):
        with pytest.raises(MissingEntryError, match=r"not a dask-batch.*executorlib") as caught:
            look(tmp_path)
        assert "cache_directory" in str(caught.value)


def test_arguments_go_with_the_definitions(cache: Path) -> None:
    with SingleNodeExecutor(cache_directory=cache) as exe:
        assert exe.submit(add, 1, 2).result(60) == 3
    for path in (cache / "definitions").iterdir():
        path.unlink()
    (entry,) = get_cache_data(cache)
    assert "input_args" not in entry
    assert dict(entry)["output"] == 3


def test_a_directory_that_is_not_there_holds_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert get_cache_data(tmp_path / "none") == []
    assert str(tmp_path / "none") in caplog.text
    assert get_cache_data_queue(tmp_path / "none") == []
    with pytest.raises(MissingEntryError, match="not a dask-batch cache"):
        get_cache_data(tmp_path)


# ---- how far it is -----------------------------------------------------------------------------


def test_every_task_is_listed_with_its_status(exe: SingleNodeExecutor, cache: Path) -> None:
    folder = cache.parent
    zero = exe.submit(add, 0, 0)
    failed = exe.submit(fail, "because")
    running = exe.submit(gated, folder, "running")
    waiting = exe.submit(noted, folder, "waiting", [running, get_item_from_future(running, 0)])
    assert isinstance(failed.exception(60), LookupError)
    assert zero.result(60) == 0
    poll(running.running, 60, "the start")
    table = by_function(get_cache_data_queue(cache))
    assert {name: entry["status"] for name, entry in table.items()} == {
        "add": "finished",  # though its output is as good as False
        "fail": "aborted",
        "gated": "running",
        "noted": "pending",
    }
    assert str(table["fail"]["error"]) == "because"
    assert "output" not in table["fail"]
    assert table["fail"]["args"] == ("because",)
    assert table["gated"]["queue_id"] == running.job_id
    assert table["noted"]["args"][2] == [Unfinished(running.key), Unfinished(running.key, (0,))]
    assert not Path(table["noted"]["filename"]).exists()
    under_way = by_function(get_cache_data(cache))
    assert under_way.keys() == {"add", "gated", "noted"}
    assert under_way["gated"]["queue_id"] == running.job_id
    assert under_way["noted"]["args"] == table["noted"]["args"]
    for name in ("gated", "noted"):
        assert not {"output", "runtime", "host", "error", "status"} & set(under_way[name])
    only = get_cache_data_queue(str(cache), queue_type="slurm")
    assert {entry["function"] for entry in only} == {"add"}
    open_gate(folder)
    assert waiting.result(60)
    assert all("output" in entry for entry in get_cache_data(cache))
    assert len(get_cache_data(cache)) == 3
    assert {entry["status"] for entry in get_cache_data_queue(cache)} == {"finished", "aborted"}


@pytest.mark.parametrize(
    "options", [{"queue_type": "slrum"}, {"config_directory": "/somewhere"}, {"queue_type": 3}]
)
def test_what_cannot_be_told_is_refused(cache: Path, options: Any) -> None:
    with pytest.raises(ConfigurationError):
        get_cache_data_queue(cache, **options)


# ---- futures by name ---------------------------------------------------------------------------


def test_a_future_by_its_name_and_by_its_key(exe: SingleNodeExecutor, cache: Path) -> None:
    named = exe.submit(add, 1, 2, resource_dict={"cache_key": "some/sum"})
    assert named.result(60) == 3
    found = get_future_from_cache(str(cache), cache_key="some/sum")
    assert found.done()
    assert found.result(0) == 3
    assert (found.key, found.job_id) == (named.key, named.job_id)
    assert found.stderr() == named.stderr()
    assert get_future_from_cache(cache, named.key).result(0) == 3
    # As an argument it is the same task.
    assert exe.submit(add, found, 1).key == exe.submit(add, named, 1).key


def test_a_future_of_what_is_under_way_comes_to_an_end(
    exe: SingleNodeExecutor, cache: Path
) -> None:
    folder = cache.parent
    first = exe.submit(gated, folder, "first")
    exe.submit(noted, folder, "second", first, resource_dict={"cache_key": "second"})
    exe._session.engine.flush()
    script = (
        f"from dask_batch import get_future_from_cache as recall\n"
        f"future = recall({str(cache)!r}, 'second')\n"
        "print(future.done(), flush=True)\n"
        "print(future.result(120))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "False\n"
        open_gate(folder)
        assert client.stdout.read() == "first\n"
    assert traces(folder) == {"first": 1, "first-ended": 1, "second": 1}


def test_what_has_failed_raises_and_what_is_unknown_is_not_found(
    exe: SingleNodeExecutor, cache: Path
) -> None:
    assert exe.submit(fail, "no", resource_dict={"cache_key": "failed"}).exception(60) is not None
    with pytest.raises(LookupError, match="no") as caught:
        get_future_from_cache(cache, "failed")
    assert caught.value.__cause__ is not None
    for name in ("unknown", "0" * 64):
        with pytest.raises(FileNotFoundError, match=name):
            get_future_from_cache(cache, name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        get_future_from_cache(cache / "nowhere", "x")
    with pytest.raises(ValueError, match=r"cache_key='\.\./x'"):
        get_future_from_cache(cache, "../x")
    with pytest.raises(TypeError, match="cache_key"):
        get_future_from_cache(cache, 3)  # type: ignore[arg-type]


# ---- an end ------------------------------------------------------------------------------------


def test_one_task_is_terminated_and_then_all(exe: SingleNodeExecutor, cache: Path) -> None:
    folder = cache.parent
    finished = exe.submit(add, 1, 2)
    assert finished.result(60) == 3
    one = exe.submit(gated, folder, "one", resource_dict={"cache_key": "the one"})
    other = exe.submit(gated, folder, "other")
    poll(lambda: one.running() and other.running(), 60, "the start")
    terminate_task_in_cache(str(cache), cache_key="the one")
    assert isinstance(one.exception(60), CancelledTaskError)
    assert not other.done()
    terminate_tasks_in_cache(cache, backend="slurm")  # none of its jobs are here
    assert not other.done()
    options = {"backend": "local", "pysqa_config_directory": str(folder)}
    terminate_tasks_in_cache(cache_directory=str(cache), **options)
    assert isinstance(other.exception(60), CancelledTaskError)
    assert get_future_from_cache(cache, finished.key).result(0) == 3
    # It may be computed again.
    open_gate(folder)
    assert exe.submit(gated, folder, "one").result(60) == "one"


def test_what_cannot_be_terminated_is_said(exe: SingleNodeExecutor, cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match="unknown"):
        terminate_task_in_cache(cache, "unknown")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        terminate_tasks_in_cache(cache / "nowhere")
    with pytest.raises(ConfigurationError, match="sgl"):
        terminate_tasks_in_cache(cache, backend="sgl")
    with pytest.raises(ConfigurationError, match="pysqa_config_directory"):
        terminate_tasks_in_cache(cache, pysqa_config_directory="/somewhere")


def test_what_was_cleaned_away_is_not_found(cache: Path) -> None:
    with SingleNodeExecutor(cache_directory=cache) as exe:
        named = exe.submit(add, 1, 2, resource_dict={"cache_key": "sum"})
        assert named.result(60) == 3
    clean(cache, keep=0, keys=named.key)
    with pytest.raises(FileNotFoundError):
        get_future_from_cache(cache, named.key)


# ---- jobs that live with their client ----------------------------------------------------------


STAGES = """
import sys
from dask_batch import get_cache_data, get_cache_data_queue, status
for entry in get_cache_data_queue(sys.argv[1]):
    print(entry["function"], entry["status"], flush=True)
(run,) = [run for run in status(sys.argv[1]) if run.running]
print(len(get_cache_data(sys.argv[1])), run.running, run.waiting, run.unknown, flush=True)
"""
RECALL = """
import sys
from dask_batch import get_future_from_cache
future = get_future_from_cache(sys.argv[1], sys.argv[2])
print(future.done(), flush=True)
print(repr(future.exception(60) or future.result()), flush=True)
"""


def test_tasks_on_workers_are_told_of_in_their_own_process_and_in_others(cache: Path) -> None:
    folder = cache.parent
    with SingleNodeExecutor(1, cache_directory=cache, block_allocation=True) as exe:
        running = exe.submit(gated, folder, "running")
        waiting = exe.submit(noted, folder, "waiting", running)
        poll(running.running, 60, "the start")
        (one,) = [run for run in status(cache) if run.running]
        assert (one.backend, one.unknown) == ("workers", 0)
        table = by_function(get_cache_data_queue(cache))
        assert {name: table[name]["status"] for name in table} == {
            "gated": "running",
            "noted": "pending",
        }
        assert get_cache_data_queue(cache, queue_type="local") == []
        assert len(get_cache_data_queue(cache, queue_type="workers")) == 2
        argv = [sys.executable, "-c", STAGES, str(cache)]
        seen = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
        assert {"gated running", "noted pending"} < set(seen.splitlines())
        assert seen.splitlines()[-1].endswith(" 0")
        mine = get_future_from_cache(cache, waiting.key)
        assert not mine.done()
        argv = [sys.executable, "-c", RECALL, str(cache), waiting.key]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "False\n"
            open_gate(folder)
            assert client.stdout.read() == "'running'\n"
        assert mine.result(60) == "running"
        assert (mine.job_id, mine.stderr()) == (waiting.job_id, waiting.stderr())
        assert traces(folder)["waiting"] == 1


@pytest.mark.parametrize("end", [terminate_tasks_in_cache, cancel])
def test_tasks_on_workers_are_terminated(cache: Path, end: Any) -> None:
    folder = cache.parent
    with SingleNodeExecutor(1, cache_directory=cache, block_allocation=True) as exe:
        running = exe.submit(gated, folder, "running")
        poll(running.running, 60, "the start")
        awaited = get_future_from_cache(cache, running.key)
        terminate_tasks_in_cache(cache, backend="local")  # these are on workers
        assert not running.done()
        end(cache)
        assert isinstance(running.exception(60), CancelledTaskError)
        assert isinstance(awaited.exception(60), CancelledTaskError)
        open_gate(folder)
        assert exe.submit(gated, folder, "running").result(60) == "running"


def test_tasks_on_workers_are_terminated_from_another_process(cache: Path) -> None:
    folder = cache.parent
    with SingleNodeExecutor(1, cache_directory=cache, block_allocation=True) as exe:
        running = exe.submit(gated, folder, "running")
        waiting = exe.submit(noted, folder, "waiting", running)
        poll(running.running, 60, "the start")
        script = "import sys, dask_batch; print(dask_batch.cancel(sys.argv[1]))"
        argv = [sys.executable, "-c", script, str(cache)]
        told = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
        assert told == "2\n"
        assert isinstance(running.exception(60), CancelledTaskError)
        assert waiting.exception(60) is not None
        # The one worker is free for something else, although the gate is shut.
        assert exe.submit(add, 1, 2).result(30) == 3
        assert traces(folder) == {"running": 1}


def test_what_was_waited_for_has_died_with_its_client(cache: Path) -> None:
    folder = cache.parent
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from bodies import gated\n"
        "from dask_batch import SingleNodeExecutor\n"
        "exe = SingleNodeExecutor(1, cache_directory=sys.argv[2], block_allocation=True)\n"
        "print(exe.submit(gated, Path(sys.argv[3]), 'x').key, flush=True)\n"
        "sys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", script, str(Path(__file__).parent), str(cache), str(folder)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        key = client.stdout.readline().strip()
        poll(lambda: traces(folder)["x"], 60, "the start")
        future = get_future_from_cache(cache, key)
        assert not future.done()
        client.kill()
    assert isinstance(future.exception(60), TaskError)
    assert {run.running for run in status(cache)} == {0}
    assert get_cache_data(cache) == []


# ---- batch systems by name ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "asked", "meant"),
    [
        ("flux@host/run/flux/local", "flux", True),
        ("flux@host/run/flux/local", "FLUX", True),
        ("flux@Host/Run", "Flux@Host/Run", True),
        ("flux@host/a", "flux@host/b", False),
        ("slurm", "SLURM", True),
        ("slurm-step", "SLURM", False),
        ("slurm-step", "slurm-step", True),
        ("flux-step", "flux", False),
        ("workers", "local", False),
        ("workers", "workers", True),
    ],
)
def test_jobs_are_chosen_by_the_family_of_their_batch_system(
    cache: Path, backend: str, asked: str, meant: bool
) -> None:
    assert belongs(backend, asked_family(asked)) is meant


def test_names_may_be_in_large_letters(exe: SingleNodeExecutor, cache: Path) -> None:
    running = exe.submit(gated, cache.parent, "one", resource_dict={"cache_key": "one"})
    poll(running.running, 60, "the start")
    assert len(get_cache_data_queue(cache, queue_type="LOCAL")) == 1
    assert get_cache_data_queue(cache, queue_type="SLURM") == []
    terminate_tasks_in_cache(cache, backend="SLURM")
    assert not running.done()
    terminate_tasks_in_cache(cache, backend="LOCAL")
    assert isinstance(running.exception(60), CancelledTaskError)
