"""Where a function finds again what it had."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dask_batch
from dask_batch import checkpoint_directory
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError
from dask_batch.job.surroundings import CHECKPOINT_VARIABLE, JOB_VARIABLE


def test_it_is_public() -> None:
    assert "checkpoint_directory" in dask_batch.__all__


def test_outside_a_job_it_is_the_processs_own() -> None:
    code = """
import os, stat
from dask_batch import checkpoint_directory
path = checkpoint_directory()
assert path == checkpoint_directory() and path.is_dir()
assert stat.S_IMODE(path.stat().st_mode) == 0o700
(path / "state").touch()
pid = os.fork()
if pid == 0:
    assert checkpoint_directory() != path
    raise SystemExit(0)
assert os.waitpid(pid, 0)[1] == 0
assert (path / "state").exists()
print(path)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).exists()


def test_in_a_job_it_is_the_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Cache(tmp_path / "cache").path / "checkpoints" / "ab" / "key"
    monkeypatch.setenv(JOB_VARIABLE, "1")
    monkeypatch.setenv(CHECKPOINT_VARIABLE, str(path))
    assert checkpoint_directory() == path
    assert path.stat().st_mode & 0o777 == 0o700
    (path / "state").touch()
    assert (checkpoint_directory() / "state").exists()
    path.chmod(0o777)
    with pytest.raises(CacheError, match="written by others"):
        checkpoint_directory()


def test_what_a_job_has_started_elsewhere_is_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    monkeypatch.setenv(CHECKPOINT_VARIABLE, str(tmp_path / "key"))
    assert checkpoint_directory() != tmp_path / "key"
    assert os.path.isdir(checkpoint_directory())


def test_its_example_is_true() -> None:
    import doctest

    import dask_batch.checkpoint as module

    assert doctest.testmod(module).failed == 0
