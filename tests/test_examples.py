"""Every example runs, as its reader would run it: in an empty folder, twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dask_batch import get_cache_data, status

EXAMPLES = Path(__file__).parents[1] / "examples"
BACKENDS = ["local", pytest.param("slurm", marks=pytest.mark.slurm)]


@pytest.fixture(params=BACKENDS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., str]:
    """Return what runs an example in the test's folder and returns what it printed."""
    environment = dict(os.environ)
    if request.param == "slurm":
        request.getfixturevalue("slurm")
    else:
        # The examples take Slurm where it is: they must not see it.
        environment["PATH"] = _path_without("sbatch")
        environment["DASK_BATCH__BACKEND"] = "local"

    def run_example(name: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    return run_example


def _path_without(program: str) -> str:
    folders = os.environ.get("PATH", "").split(os.pathsep)
    return os.pathsep.join(f for f in folders if shutil.which(program, path=f) is None)


def runs_of(folder: Path) -> list[str]:
    return [each.run for each in status(folder)]


def test_every_example_is_run_here() -> None:
    run_here = {path.name for path in EXAMPLES.glob("*.py")}
    text = Path(__file__).read_text()
    assert {name for name in run_here if f'"{name}"' in text} == run_here


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quickstart.py", "mean "),
        ("delayed_pipeline.py", "mean over 7 days: "),
        ("array_on_slurm.py", "spread "),
        ("dataframe_on_slurm.py", "north"),
        ("xarray_on_slurm.py", "season"),
    ],
)
def test_a_graph_and_the_same_again(
    run: Callable[..., str], tmp_path: Path, name: str, expected: str
) -> None:
    first = run(name)
    assert expected in first
    cache = tmp_path / "dask_batch_cache"
    runs = runs_of(cache)
    assert runs
    second = run(name)
    # The last line of the quickstart is the time it took.
    assert second.splitlines()[0] == first.splitlines()[0]
    assert runs_of(cache) == runs  # nothing was submitted


@pytest.mark.parametrize("run", ["local"], indirect=True)
def test_touching_one_of_twelve_files_runs_its_branch(
    run: Callable[..., str], tmp_path: Path
) -> None:
    before = run("dataframe_on_slurm.py")
    cache = tmp_path / "dask_batch_cache"
    known = {entry["key"] for entry in get_cache_data(cache)}
    path = tmp_path / "measurements" / "07.csv"
    path.write_text(path.read_text() + "0,1000\n")
    assert run("dataframe_on_slurm.py") != before
    new = [e for e in get_cache_data(cache) if e["key"] not in known]
    assert 0 < len(new) < len(known)


def test_handing_over_leaving_and_coming_back(run: Callable[..., str], tmp_path: Path) -> None:
    submitted = run("resume.py", "submit")
    assert "5 jobs on" in submitted
    printed = run("resume.py")
    assert [line.split()[0] for line in printed.splitlines()] == [
        "100.0",
        "200.0",
        "300.0",
        "400.0",
    ]
    assert len(runs_of(tmp_path / "resume_cache")) == 1


def test_calls(run: Callable[..., str]) -> None:
    printed = run("executor.py").splitlines()
    assert printed[:2] == ["the sum: 22", "the largest: 8"]
    assert sorted(line.split()[-1] for line in printed[2:]) == ["0", "2", "4", "6", "8"]
