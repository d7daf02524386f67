"""Long-lived workers as jobs of Flux: batch jobs, and jobs of the enclosing instance."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import worker_bodies as bodies
from clients import poll
from dask_batch import FluxClusterExecutor, FluxJobExecutor
from dask_batch.errors import ConfigurationError
from test_workers import client, gone, seen

pytest_plugins = ["flux_systems"]
pytestmark = [pytest.mark.flux, pytest.mark.usefixtures("flux")]

PATIENCE_S = 120.0
KINDS = [FluxClusterExecutor, FluxJobExecutor]


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    folder = tmp_path / "traces"
    folder.mkdir()
    return folder


def note(word: str, notes: list[str]) -> tuple[str | None, list[str]]:
    notes.append(word)
    return os.environ.get("FLUX_JOB_ID"), list(notes)


def begin() -> dict[str, Any]:
    return {"notes": []}


@pytest.mark.parametrize("kind", KINDS)
def test_workers_are_jobs_that_keep_their_state(kind: type, tmp_path: Path, traces: Path) -> None:
    with kind(
        1,
        cache_directory=tmp_path / "cache",
        block_allocation=True,
        init_function=begin,
        restart_limit=1,
    ) as exe:
        first, second = (exe.submit(note, word).result(PATIENCE_S) for word in "ab")
        assert first[1] + ["b"] == second[1] == ["a", "b"]
        assert first[0] == second[0] is not None
        exe.submit(bodies.die_once, traces, "once").result(PATIENCE_S)
        assert len(seen(traces, "once")) == 2
        assert exe.submit(note, "c").result(PATIENCE_S) == (first[0], ["c"])


@pytest.mark.parametrize("kind", KINDS)
def test_no_worker_outlives_a_client_that_is_killed(
    kind: type, tmp_path: Path, traces: Path
) -> None:
    script = client(tmp_path, tmp_path / "cache", traces, kind.__name__)
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    poll(lambda: len(list(traces.iterdir())) == 2, PATIENCE_S, "both tasks")
    process.kill()
    process.wait()
    for pid in seen(traces, "a") + seen(traces, "b"):
        poll(lambda pid=pid: gone(pid), PATIENCE_S, "the end of a worker")  # type: ignore[misc]


def test_more_workers_than_the_instance_has_room_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="max_workers=10000"):
        FluxJobExecutor(10_000, cache_directory=tmp_path / "cache", block_allocation=True)
    with FluxJobExecutor(1, cache_directory=tmp_path / "cache", block_allocation=True) as exe:
        with pytest.raises(ConfigurationError, match=r"max_workers=10000.*CPUs in all"):
            exe.max_workers = 10_000
        assert exe.max_workers == 1
