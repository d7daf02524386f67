"""A controller comes back with jobs that have ended: what waits for them, or for room, runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import bodies
from clients import poll
from dask_batch import SlurmClusterExecutor
from dask_batch.following import ghosts
from dask_batch.testing import FakeSlurm

PACE = {
    "shortest_poll_s": 0.2,
    "longest_poll_s": 0.5,
    "failure_grace_s": 1.0,
    "output_grace_s": 5.0,
    "input_grace_s": 5.0,
}
PATIENCE_S = 120.0


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ghosts, "_GATHER_S", 0.2)
    monkeypatch.setattr(ghosts, "_RARELY_S", 0.4)
    monkeypatch.setattr(ghosts, "_STUCK", dict.fromkeys(ghosts._STUCK, 1.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "traces"
    folder.mkdir()
    return folder


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    with FakeSlurm(tmp_path / "fake", cpus=2, requeue_wait_s=0.2) as fake:
        monkeypatch.setenv("PATH", fake.environment()["PATH"])
        yield fake


def executor(tmp_path: Path) -> SlurmClusterExecutor:
    return SlurmClusterExecutor(cache_directory=tmp_path / "cache", **PACE)


GONE = """
import os, sys
from pathlib import Path
import bodies
from dask_batch import SlurmClusterExecutor

cache, folder = map(Path, sys.argv[1:])
executor = SlurmClusterExecutor(cache_directory=cache)
parent = executor.submit(bodies.gated, folder, "parent")
child = executor.submit(bodies.noted, folder, "child", parent)
executor.submit(bodies.noted, folder, "below", child)
executor.shutdown(wait=False)
print(parent.job_id, flush=True)
os._exit(0)
"""


def test_a_client_that_comes_later_frees_what_waits(
    tmp_path: Path, fake: FakeSlurm, folder: Path
) -> None:
    argv = [sys.executable, "-c", GONE, str(tmp_path / "cache"), str(folder)]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    first = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    job_id = first.stdout.strip()
    poll(lambda: bodies.traces(folder)["parent"] == 1, PATIENCE_S, "the parent begins")
    fake.haunt(job_id)
    bodies.open_gate(folder)
    poll(lambda: list((tmp_path / "cache").glob("results/*/*.h5")), PATIENCE_S, "the result")
    assert fake.states()[job_id] == "RUNNING"
    with executor(tmp_path) as second:
        again = second.submit(bodies.gated, folder, "parent")
        child = second.submit(bodies.noted, folder, "child", again)
        below = second.submit(bodies.noted, folder, "below", child)
        assert below.result(PATIENCE_S) == "parent"
    assert fake.states()[job_id] == "CANCELLED"
    expected = {"parent": 1, "parent-ended": 1, "child": 1, "below": 1}
    assert bodies.traces(folder) == Counter(expected)


def test_jobs_that_nothing_waits_for_give_their_room_back(
    tmp_path: Path, fake: FakeSlurm, folder: Path
) -> None:
    with executor(tmp_path) as first:
        done = [first.submit(bodies.noted, folder, f"done{i}", i) for i in range(2)]
        assert [future.result(PATIENCE_S) for future in done] == [0, 1]
        old = [future.job_id for future in done]
    for job_id in old:
        assert job_id is not None
        poll(lambda job_id=job_id: fake.states()[job_id] == "COMPLETED", PATIENCE_S, "the end")
        fake.haunt(job_id)
    with executor(tmp_path) as second:
        assert second.submit(bodies.noted, folder, "hungry", 3).result(PATIENCE_S) == 3
    assert {fake.states()[job_id] for job_id in old if job_id} == {"CANCELLED"}
    assert bodies.traces(folder) == Counter({"done0": 1, "done1": 1, "hungry": 1})
