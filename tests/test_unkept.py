"""An executor of this machine without a cache directory: every call runs, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest

from bodies import add, fail, gated, noted, open_gate, traces
from clients import poll
from dask_batch import SingleNodeExecutor, cluster_get
from dask_batch.api import TestClusterExecutor
from dask_batch.backends.local.backend import LocalBackend
from dask_batch.errors import BackendUnavailableError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a directory in which nothing may be left, with temporary files beside it."""
    folder, temporary = tmp_path / "here", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    return folder


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def left(tmp_path: Path) -> list[str]:
    """Return what an executor has left."""
    return [path.name for name in ("here", "temporary") for path in (tmp_path / name).iterdir()]


def test_every_call_runs_and_nothing_is_left(tmp_path: Path) -> None:
    with SingleNodeExecutor() as exe:
        private = exe.cache_directory
        assert private.is_relative_to(tmp_path / "temporary")
        values = [exe.submit(noted, tmp_path, "each", 1).result(60) for _ in range(3)]
        unread = exe.submit(add, 1, 2)
        kept = [
            exe.submit(noted, tmp_path, "once", resource_dict={"cache": True}).result(60)
            for _ in range(2)
        ]
    assert (values, kept, unread.result(0)) == ([1, 1, 1], [None, None], 3)
    assert traces(tmp_path) == {"each": 3, "once": 1}
    assert left(tmp_path) == []
    with SingleNodeExecutor() as exe:
        assert exe.cache_directory != private
        exe.submit(noted, tmp_path, "each", 1).result(60)
    assert traces(tmp_path)["each"] == 4


def test_graphs_run_each_time_and_their_values_outlast_the_folder(tmp_path: Path) -> None:
    graph = dask.delayed(noted)(tmp_path, "task", dask.delayed(add)(1, 2))
    with SingleNodeExecutor(block_allocation=True, max_workers=1) as exe:
        assert dask.compute(graph, scheduler=exe) == (3,)
        future = exe.compute(graph)
    assert future.result(0) == 3
    assert traces(tmp_path) == {"task": 2}
    assert left(tmp_path) == []


def test_a_failure_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SingleNodeExecutor() as exe:
        failed = exe.submit(fail, "no")
    assert isinstance(failed.exception(0), LookupError)
    with pytest.raises(ValueError, match="unknown resource"):
        SingleNodeExecutor(resource_dict={"nonsense": 1})

    def unavailable(*_: Any, **__: Any) -> None:
        raise BackendUnavailableError("not today")

    monkeypatch.setattr(LocalBackend, "__init__", unavailable)
    with pytest.raises(BackendUnavailableError, match="not today"):
        SingleNodeExecutor()
    assert left(tmp_path) == []


@pytest.mark.parametrize("by", ["parameter", "position", "resource", "setting", "resource setting"])
def test_who_names_a_directory_keeps_results(tmp_path: Path, by: str) -> None:
    kept = tmp_path / "kept"
    position: list[Any] = [None, kept] if by == "position" else []
    said: dict[str, Any] = {
        "parameter": {"cache_directory": kept},
        "resource": {"resource_dict": {"cache_directory": kept}},
    }.get(by, {})
    settings = {
        "setting": {"batch.cache-directory": str(kept)},
        "resource setting": {"batch.resource-dict": {"cache_directory": str(kept)}},
    }.get(by, {})
    for _ in range(2):
        with dask.config.set(settings), SingleNodeExecutor(*position, **said) as exe:
            assert exe.cache_directory == kept
            exe.submit(noted, tmp_path, "once").result(60)
    assert traces(tmp_path) == {"once": 1}
    assert left(tmp_path) == []


def test_a_call_that_names_a_directory_is_kept_there(tmp_path: Path) -> None:
    asked = {"cache_directory": tmp_path / "kept"}
    for _ in range(2):
        with SingleNodeExecutor() as exe:
            here = exe.submit(noted, tmp_path, "here", 3)
            there = exe.submit(noted, tmp_path, "there", here, resource_dict=asked)
            again = exe.submit(noted, tmp_path, "alone", resource_dict=asked)
        assert (there.result(0), again.result(0)) == (3, None)
    assert traces(tmp_path)["alone"] == 1
    assert left(tmp_path) == []


def test_the_other_doors_keep_results_in_the_working_directory(here: Path) -> None:
    assert dask.compute(dask.delayed(add)(1, 2), scheduler=cluster_get, backend="local") == (3,)
    with TestClusterExecutor() as exe:
        assert exe.cache_directory == here / "dask_batch_cache"


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from bodies import gated, open_gate
from dask_batch import SingleNodeExecutor

if __name__ == "__main__":
    traces = Path({traces!r})
    exe = SingleNodeExecutor()
    future = exe.submit(gated, traces, "body")
    future.add_done_callback(lambda ended: print(ended.result(), flush=True))
    {end}
    open_gate(traces)
"""


@pytest.mark.parametrize("end", ["pass", "exe.shutdown(wait=False)", "del exe"])
def test_a_script_that_ends_waits_for_its_jobs(tmp_path: Path, here: Path, end: str) -> None:
    script = tmp_path / "script.py"
    tests = str(Path(__file__).parent)
    script.write_text(textwrap.dedent(SCRIPT).format(tests=tests, traces=str(tmp_path), end=end))
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=here,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "body\n"), done.stderr
    assert left(tmp_path) == []


def test_after_a_shutdown_without_waiting_the_folder_stays_for_the_jobs(tmp_path: Path) -> None:
    exe = SingleNodeExecutor(wait=False)
    future = exe.submit(gated, tmp_path, "body")
    exe.shutdown()
    assert exe.cache_directory.exists()
    assert not future.done()
    open_gate(tmp_path)
    assert future.result(60) == "body"
    exe._session.engine.join()
    assert left(tmp_path) == []


LATE = """
import atexit

@atexit.register
def late():
    try:
        executor.submit(abs, -1)
    except RuntimeError as error:
        print(error)

from dask_batch import SingleNodeExecutor

executor = SingleNodeExecutor()
assert executor.submit(abs, -2).result() == 2
"""


def test_what_comes_after_the_last_hand_over_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout == "cannot schedule new futures after interpreter shutdown\n"


KILLED = """
import os, signal, subprocess, sys, time
from pathlib import Path

from dask_batch import SingleNodeExecutor


def lasting(traces):
    child = subprocess.Popen(["sleep", "600"])
    (traces / "pids").write_text(f"{os.getpid()} {child.pid}\\n")
    time.sleep(600)


if __name__ == "__main__":
    SingleNodeExecutor().submit(lasting, Path(sys.argv[1]))
    time.sleep(600)
"""


def test_what_nobody_can_fetch_ends_with_the_client(tmp_path: Path, here: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    client = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        cwd=here,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
    )
    noted_pids = tmp_path / "pids"
    poll(lambda: noted_pids.exists() and noted_pids.read_text().endswith("\n"), 60, "the task")
    client.kill()
    client.wait()
    for pid in map(int, noted_pids.read_text().split()):
        poll(lambda pid=pid: gone(pid), 60, "the end of the task and its child")  # type: ignore[misc]
