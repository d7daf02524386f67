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
    clean,
    get_cache_data,
    get_cache_data_queue,
    get_future_from_cache,
    get_item_from_future,
    terminate_task_in_cache,
    terminate_tasks_in_cache,
)
from dask_batch.cached import CacheEntry, Unfinished
from dask_batch.errors import CancelledTaskError, ConfigurationError, MissingEntryError


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
    assert len(get_cache_data(cache)) == 1
    only = get_cache_data_queue(str(cache), queue_type="slurm")
    assert {entry["function"] for entry in only} == {"add"}
    open_gate(folder)
    assert waiting.result(60)
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
