"""Tasks as jobs of the Flux instance that the client is in: the thin path, on a real one."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from allocation_agent import TESTS, until
from dask_batch import FluxJobExecutor
from dask_batch.errors import BackendUnavailableError
from local_harness import alive
from test_slurm_steps import most_at_once, quote

needs_flux = [
    pytest.mark.flux,
    pytest.mark.skipif(
        shutil.which("flux") is None,
        reason="there is no Flux here (no flux on PATH): conda install -c conda-forge flux-core",
    ),
]


def start(name: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a client in the instance that these tests are in, or in one of its own."""
    around: Sequence[str] = () if os.environ.get("FLUX_URI") else ("flux", "start")
    words = [word.strip("'") for word in arguments]
    return subprocess.Popen(
        [*around, sys.executable, str(TESTS / "step_clients.py"), name, str(folder), *words],
        env={**os.environ, "STEP_TEST": "flux", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(name: str, folder: Path, *arguments: str) -> Any:
    """Run a client to its end, and return what it printed last."""
    out, err = start(name, folder, *arguments).communicate(timeout=240)
    assert out, err
    return json.loads(out.splitlines()[-1])


class TestInside:
    """What runs in an instance."""

    pytestmark = needs_flux

    def test_sums_run_in_the_instance(self, tmp_path: Path) -> None:
        told = result("sums", tmp_path)
        assert told["values"] == [0, 2, 4, 6]
        assert all(job_id.startswith("flux-step-") for job_id in told["ids"])

    def test_never_more_at_a_time_than_is_allowed(self, tmp_path: Path) -> None:
        spans = result("many", tmp_path, quote({"max_workers": 1}), quote({}))
        assert most_at_once(spans) == 1

    def test_dependent_calls_and_a_graph(self, tmp_path: Path) -> None:
        told = result("dependent", tmp_path)
        assert told["sum"] == 22
        assert "the weakest" in told["broken"]
        assert result("graph", tmp_path) == [10]

    def test_ends_are_told_apart(self, tmp_path: Path) -> None:
        told = result("verdicts", tmp_path)
        assert told["exception"][0] == "LookupError"
        assert told["killed"][0] == "DiedTaskError"
        assert "signal 9" in told["killed"][1]
        assert told["timeout"][0] == "TimeoutTaskError"

    def test_each_task_sees_its_own_devices(self, tmp_path: Path) -> None:
        argv = ["flux", "resource", "list", "-n", "-s", "up", "-o", "{ngpus}"]
        around = [] if os.environ.get("FLUX_URI") else ["flux", "start"]
        count = subprocess.run([*around, *argv], capture_output=True, text=True, check=False)
        if sum(map(int, count.stdout.split())) < 2:
            pytest.skip("the instance has fewer than two GPUs")
        told = result("devices", tmp_path)
        assert {span["CUDA_VISIBLE_DEVICES"] for span in told["gpu"]} == {"0", "1"}
        for device in ("0", "1"):
            mine = [span for span in told["gpu"] if span["CUDA_VISIBLE_DEVICES"] == device]
            assert most_at_once(mine) == 1

    @pytest.mark.mpi
    @pytest.mark.skipif(
        importlib.util.find_spec("mpi4py") is None, reason="there is no mpi4py here"
    )
    def test_jobs_of_several_ranks_run_side_by_side(self, tmp_path: Path) -> None:
        assert result("ranks", tmp_path) == [[[0, 2], [1, 2]]] * 2

    def test_without_a_cache_directory_every_call_runs(self, tmp_path: Path) -> None:
        values, unread, runs, *there = result("not_kept", tmp_path)
        assert (values, unread) == ([7, 7, 7], 1000)
        assert runs == {"same": 3, "unread": 1}
        assert there == [True, False, False]

    @pytest.mark.skipif(not os.environ.get("FLUX_URI"), reason="the instance ends with its client")
    def test_a_killed_client_leaves_no_process(self, tmp_path: Path) -> None:
        client = start("killed", tmp_path)
        pids = [tmp_path / f"sleeper{i}.pid" for i in range(2)]
        until(lambda: all(pid.exists() and pid.read_text() for pid in pids), "two jobs at work")
        client.kill()
        client.wait(10)
        until(lambda: not any(alive(int(pid.read_text())) for pid in pids), "the end of processes")


def test_outside_an_instance_it_says_where_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLUX_URI", raising=False)
    with pytest.raises(BackendUnavailableError, match="FLUX_URI is not set") as caught:
        FluxJobExecutor()
    assert "FluxClusterExecutor" in str(caught.value)
    assert "flux start" in str(caught.value)


def test_an_instance_without_commands_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUX_URI", "local:///no/such/instance")
    monkeypatch.setenv("PATH", "/no/such/folder")
    with pytest.raises(BackendUnavailableError, match="`flux` is not on PATH"):
        FluxJobExecutor()
