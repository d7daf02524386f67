"""GPUs on the local queue as users ask for them: at both doors, and from within a task."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest

from bodies import PATIENCE_S, open_gate
from clients import poll
from dask_batch import SingleNodeExecutor, cluster_get
from dask_batch.errors import ResourceError
from local_harness import PACKAGE, TESTS

TWO = {"local_gpus": 2}
VARIABLE = "CUDA_VISIBLE_DEVICES"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is not told which devices to use: two are declared."""
    for name in (VARIABLE, "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def exe(tmp_path: Path) -> Iterator[SingleNodeExecutor]:
    with SingleNodeExecutor(cache_directory=tmp_path / "cache", **TWO) as executor:
        yield executor


def get_available_gpus(folder: Path, name: str, others: int) -> list[str]:
    """Return which GPUs this task sees, once as many tasks as that run at the same time."""
    (folder / name).touch()
    deadline = time.monotonic() + PATIENCE_S
    while sum(1 for path in folder.iterdir() if path.suffix == ".here") <= others:
        if time.monotonic() > deadline:
            raise TimeoutError("the others did not come")
        time.sleep(0.01)
    return [device for device in os.environ[VARIABLE].split(",") if device]


def test_two_calls_at_a_time_see_gpus_of_their_own(exe: SingleNodeExecutor, tmp_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two calls at a time need two CPUs")
    resources = {"gpus_per_core": 1}
    calls = [
        exe.submit(get_available_gpus, tmp_path, f"{name}.here", 1, resource_dict=resources)
        for name in ("one", "two")
    ]
    assert sorted(call.result(PATIENCE_S)[0] for call in calls) == ["0", "1"]


def test_tasks_of_a_graph_see_what_they_ask_for(tmp_path: Path) -> None:
    task = dask.delayed(get_available_gpus)
    graph = []
    for number in (0, 1, 2):
        with dask.annotate(resources={"gpus_per_core": number}):
            graph.append(task(tmp_path, f"{number}.here", 0))
    options = {"cache_directory": tmp_path / "cache", "backend": "local", **TWO}
    seen = dask.compute(*graph, scheduler=cluster_get, **options)
    assert [len(devices) for devices in seen] == [0, 1, 2]


def test_more_than_are_declared_are_refused_at_both_doors(exe: SingleNodeExecutor) -> None:
    too_many = r"gpus_per_core.*3 GPUs .* there are 2 .*local-gpus"
    with pytest.raises(ResourceError, match=too_many):
        exe.submit(sum, [1], resource_dict={"gpus_per_core": 3})
    with dask.annotate(resources={"gpus_per_core": 3}):
        task = dask.delayed(sum)([1])
    with pytest.raises(ResourceError, match=too_many):
        dask.compute(task, scheduler=exe)


def use_gpu() -> None:
    if not os.environ[VARIABLE]:
        raise RuntimeError("No CUDA GPUs are available")  # as PyTorch says it


def test_a_task_that_forgot_to_ask_for_a_gpu_is_told_so(exe: SingleNodeExecutor) -> None:
    with pytest.raises(RuntimeError, match="No CUDA GPUs") as caught:
        exe.submit(use_gpu).result(PATIENCE_S)
    assert any("gpus_per_core" in note for note in caught.value.__notes__)
    assert exe.submit(use_gpu, resource_dict={"gpus_per_core": 1}).result(PATIENCE_S) is None


def hand_over(folder: Path) -> tuple[str, list[str], str]:
    """Hand a call over that has GPUs, from a task that has none."""
    mine = os.environ[VARIABLE]
    with SingleNodeExecutor(cache_directory=folder / "inner") as inner:
        resources = {"gpus_per_core": 2}
        call = inner.submit(get_available_gpus, folder, "x.here", 0, resource_dict=resources)
        theirs = call.result()
    return mine, theirs, os.environ[VARIABLE]


def test_what_a_task_hands_over_may_have_gpus_that_the_task_has_not(
    exe: SingleNodeExecutor, tmp_path: Path
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("a task within a task needs two CPUs")
    assert exe.submit(hand_over, tmp_path).result(PATIENCE_S) == ("", ["0", "1"], "")


def refuse_once(folder: Path) -> str:
    """Fail at the first attempt, and tell at the second which GPUs there are."""
    try:
        (folder / "first").touch(exist_ok=False)
    except FileExistsError:
        return os.environ[VARIABLE]
    raise ConnectionError("once")


def test_a_repetition_has_gpus_again(exe: SingleNodeExecutor, tmp_path: Path) -> None:
    resources = {"gpus_per_core": 2, "retries": 1, "retry_exceptions": True}
    again = exe.submit(refuse_once, tmp_path, resource_dict=resources)
    assert again.result(PATIENCE_S) == "0,1"


CLIENT = """
import os
import sys
from pathlib import Path

from bodies import gated
from dask_batch import SingleNodeExecutor

def refuse_once(folder):
    gated(folder, "attempt")
    try:
        (folder / "first").touch(exist_ok=False)
    except FileExistsError:
        (folder / "draft").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        (folder / "draft").rename(folder / "seen")
    else:
        raise ConnectionError("once")

folder = Path(sys.argv[1])
exe = SingleNodeExecutor(cache_directory=folder / "cache", local_gpus=2)
resources = {"gpus_per_core": 2, "retries": 1, "retry_exceptions": True}
exe.submit(refuse_once, folder, resource_dict=resources)
exe.shutdown(wait=False)
"""


def test_a_repetition_without_the_client_has_gpus_again(tmp_path: Path) -> None:
    """It is a steward, a job without GPUs and without the client's options, that asks for them."""
    argv = [sys.executable, "-c", CLIENT, str(tmp_path)]
    path = os.pathsep.join(map(str, (PACKAGE, TESTS)))
    subprocess.run(argv, env={**os.environ, "PYTHONPATH": path}, check=True, timeout=120)
    open_gate(tmp_path)
    poll((tmp_path / "seen").exists, PATIENCE_S, "the second attempt")
    assert (tmp_path / "seen").read_text() == "0,1"
