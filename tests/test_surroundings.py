"""What a job finds around it is what the client had, but for what must be alike in all jobs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dask_batch.configuration.config import resolve
from dask_batch.errors import ConfigurationError
from dask_batch.preparing.surroundings import Surroundings


@pytest.mark.parametrize("said", [{}, {"PYTHONHASHSEED": "random"}])
def test_strings_hash_alike_in_all_jobs(said: dict[str, str]) -> None:
    environment = Surroundings.current(said).environment
    argv = [sys.executable, "-c", "print(hash('a'))"]
    runs: list[Any] = [
        subprocess.run(argv, env={**environment}, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout


def test_a_working_directory_that_has_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigurationError, match=r"working directory.*os\.chdir"):
        Surroundings.current({})
    with pytest.raises(ConfigurationError, match=r"'cache' is relative.*os\.chdir"):
        resolve(backend="local", cache_directory="cache")


def test_results_of_clients_with_other_seeds_meet() -> None:
    environments = [Surroundings.current({"PYTHONHASHSEED": s}).environment for s in ("1", "7")]
    assert environments[0] == environments[1]


def test_the_callers_environment_is_left_alone() -> None:
    said: dict[str, str] = {}
    Surroundings.current(said)
    assert said == {}


def test_a_job_does_not_pass_on_what_makes_it_a_job() -> None:
    own = {"DASK_BATCH_JOB_ID": "7", "DASK_BATCH_BACKEND": "slurm", "DASK_BATCH_CHECKPOINTS": "/c"}
    taken = Surroundings.current({**own, "MINE": "1"}).environment
    assert taken.items() >= {"MINE": "1"}.items()
    assert not own.keys() & taken.keys()
