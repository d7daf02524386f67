"""A cache for one executor alone: what outlives it, what does not, and who cleans up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest

import dask_batch.private as private_caches
from dask_batch.errors import ConfigurationError
from dask_batch.private import PrivateCache, shared_place


def test_it_is_removed_and_what_futures_stand_for_is_fetched_first(tmp_path: Path) -> None:
    private = PrivateCache(tmp_path)
    private.path.mkdir()
    (private.path / "value").write_text("7")

    class Lazy(Future[str]):
        def result(self, timeout: float | None = None) -> str:
            super().result(timeout)
            if not hasattr(self, "value"):
                self.value = (private.path / "value").read_text()
            return self.value

    done, open_, failed = Lazy(), Lazy(), Lazy()
    done.set_result("")
    failed.set_exception(LookupError())
    private.serve([done, open_, failed])
    private.remove()
    assert list(tmp_path.iterdir()) == []
    assert done.result() == "7"
    private.remove()  # twice does no harm


def test_only_its_owner_may_look_into_it(tmp_path: Path) -> None:
    private = PrivateCache(tmp_path)
    assert private.path.parent.stat().st_mode & 0o777 == 0o700
    private.remove()


def test_what_a_killed_client_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from dask_batch.private import PrivateCache\n"
        "private = PrivateCache(Path(sys.argv[1]))\n"
        "print(private.path.parent, flush=True); time.sleep(60)"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    left = Path(client.stdout.readline().strip())
    living = PrivateCache(tmp_path)
    assert left.exists()  # its owner lives
    client.send_signal(signal.SIGKILL)
    client.wait()
    PrivateCache(tmp_path).remove()
    assert not left.exists()
    assert living.path.parent.exists()
    living.remove()


def test_what_a_client_left_on_another_node_is_removed_once_its_job_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "here")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # this process is in a repetition

    def left(restarts: int, cluster: str = "here") -> Path:
        private = PrivateCache(tmp_path)
        record = private.path.parent / "owner.json"
        owner = json.loads(record.read_text())
        assert owner["place"] == "slurm:here:7:1"
        place = f"slurm:{cluster}:7:{restarts}"
        record.write_text(json.dumps({**owner, "host": "elsewhere", "place": place}))
        kept.append(private)
        return private.path.parent

    kept: list[PrivateCache] = []
    living = left(1)
    unknown = left(0, "there")
    over = left(0)
    PrivateCache(tmp_path).remove()
    assert (living.exists(), unknown.exists(), over.exists()) == (True, True, False)


def test_a_fork_leaves_it_alone(tmp_path: Path) -> None:
    private = PrivateCache(tmp_path)
    child = os.fork()
    if child == 0:
        private.remove()
        os._exit(0)
    os.waitpid(child, 0)
    assert private.path.parent.exists()
    private.remove()


def test_a_place_for_several_nodes_is_one_that_they_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, own = tmp_path / "home", tmp_path / "own"
    home.mkdir()
    own.mkdir()
    # Wherever these tests are: each machine has the second folder for itself.
    monkeypatch.setattr(
        private_caches, "why_not_shared", lambda path: "" if path == home else "its own"
    )
    monkeypatch.chdir(own)
    monkeypatch.setenv("HOME", str(home))
    assert shared_place() == home
    monkeypatch.setenv("HOME", str(own))
    with pytest.raises(ConfigurationError, match="cache_directory=") as caught:
        shared_place()
    assert str(own) in str(caught.value)
