"""The journeys of users of such executors, on a real Slurm: what they type must do as they expect.

Sums, a template of their own, dependent calls, a refused partition, leaving and coming back, the
audit, and the cleaning of the cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bodies import gated, noted, open_gate, traces
from clients import poll
from dask_batch import SlurmClusterExecutor, get_cache_data, status
from dask_batch.errors import DependencyFailedError
from slurm_cluster import OWN_TEMPLATE

pytestmark = pytest.mark.slurm

QUICK = {"shortest_poll_s": 0.3, "failure_grace_s": 0.5, "output_grace_s": 1.0}


@pytest.fixture
def cache(tmp_path: Path, slurm: Callable[[], list[str]]) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def partition() -> str:
    """The cluster's first partition: tests must not depend on what it is called."""
    argv = ["sinfo", "-h", "-o", "%P"]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    return listed.split()[0].rstrip("*")


def described(job_id: str) -> dict[str, str]:
    """Return what slurmctld knows of a job."""
    argv = ["scontrol", "-o", "show", "job", job_id]
    out = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    return dict(word.split("=", 1) for word in out.split() if "=" in word)


def accounted(job_id: str, field: str) -> str:
    """Return a field of the accounts of an ended job; empty while they lag."""
    argv = ["sacct", "-X", "-n", "-P", "-j", job_id, f"--format={field}"]
    out = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    return out.strip()


def add_funct(a: int, b: int) -> int:
    return a + b


def echo(i: Any) -> Any:
    return i


def calc(values: list[int]) -> int:
    return sum(values)


# ---- sums, and a template word for word --------------------------------------------------------


def test_sums(cache: Path) -> None:
    with SlurmClusterExecutor(cache_directory=str(cache)) as exe:
        future_lst = [exe.submit(sum, [i, i]) for i in range(1, 4)]
        assert [f.result() for f in future_lst] == [2, 4, 6]


def test_a_template_of_ones_own_word_for_word(cache: Path, partition: str) -> None:
    with SlurmClusterExecutor(cache_directory=str(cache)) as exe:
        future = exe.submit(
            sum,
            [4, 4],
            resource_dict={
                "submission_template": OWN_TEMPLATE,
                "run_time_max": 180,  # in seconds
                "partition": partition,
            },
        )
        assert future.result() == 8
        job = described(future.job_id)
        assert job["Partition"] == partition
        assert job["TimeLimit"] == "00:03:00"
        assert job["NumCPUs"] in ("1", "2")  # a core may have two threads


def test_three_parents_must_all_have_succeeded(cache: Path, partition: str, tmp_path: Path) -> None:
    resources = {"submission_template": OWN_TEMPLATE, "partition": partition}
    with SlurmClusterExecutor(cache_directory=cache, resource_dict=resources, **QUICK) as exe:
        parents = [exe.submit(gated, tmp_path, f"parent{i}") for i in range(3)]
        child = exe.submit(noted, tmp_path, "child", parents)
        failing = [
            exe.submit(gated, tmp_path, "fine"),
            exe.submit(_fail_after, tmp_path),
            exe.submit(gated, tmp_path, "fine too"),
        ]
        orphan = exe.submit(noted, tmp_path, "orphan", failing)
        exe._session.engine.flush()
        dependency = described(child.job_id)["Dependency"]
        clauses = dependency.replace("(unfulfilled)", "").split(",")
        # Every clause says "ok", whichever way Slurm writes them down.
        assert all(clause.startswith("afterok:") for clause in clauses), dependency
        ids = {job_id for clause in clauses for job_id in clause.split(":")[1:]}
        assert ids == {parent.job_id for parent in parents}
        open_gate(tmp_path)
        assert child.result(180) == ["parent0", "parent1", "parent2"]
        error = orphan.exception(180)
        assert isinstance(error, DependencyFailedError)
        assert "the weakest" in str(error)
        poll(lambda: accounted(orphan.job_id, "State") != "", 60, "the accounts")
    assert traces(tmp_path)["orphan"] == 0


def _fail_after(folder: Path) -> None:
    gated(folder, "failing")
    raise RuntimeError("the weakest")


def test_dependent_calls_add_to_22(cache: Path) -> None:
    with SlurmClusterExecutor(cache_directory=str(cache)) as exe:
        future: Any = 0
        for i in range(4, 8):
            future = exe.submit(add_funct, i, future)
        assert future.result() == 22


# ---- a refusal ---------------------------------------------------------------------------------


def test_a_refused_partition_tells_what_sbatch_said(cache: Path, slurm: Any) -> None:
    resources = {"partition": "s.cmfe"}
    with SlurmClusterExecutor(cache_directory=cache, resource_dict=resources) as exe:
        f1 = exe.submit(echo, 1)
        other = exe.submit(echo, 2, resource_dict={"partition": None})
        with pytest.raises(subprocess.CalledProcessError) as caught:
            f1.result(60)
        assert f1.exception() is caught.value
        excep = caught.value
        assert "invalid partition specified: s.cmfe" in excep.output
        assert excep.cmd[0] == "sbatch"
        assert excep.returncode == 1
        assert "resource_dict={'partition': ...}" in str(excep)
        script = Path(excep.cmd[-1])
        assert "#SBATCH --partition=s.cmfe" in script.read_text()
        assert str(script) in str(excep)
        # It takes nobody else down, and is not stored: the next time it is submitted again.
        assert other.result(120) == 2
        assert exe.submit(echo, 1, resource_dict={"partition": None}).result(120) == 1
        dependent = exe.submit(echo, [f1])
        assert isinstance(dependent.exception(60), DependencyFailedError)
    poll(lambda: slurm() == [], 60, "the end of the jobs")


# ---- leaving and coming back -------------------------------------------------------------------

LEAVING = """
import sys
from pathlib import Path

sys.path.insert(0, {tests!r})
from bodies import noted

from dask_batch import SlurmClusterExecutor

FOLDER = Path({folder!r})

def double(i):
    return sum(noted(FOLDER, f"body{{i}}", [i, i]))

if __name__ == "__main__":
    if sys.argv[1] == "leave":
        exe = SlurmClusterExecutor(cache_directory=FOLDER / "cache")
        future_lst = [exe.submit(double, i) for i in range(1, 4)]
        exe.shutdown(wait=False, cancel_futures=False)
    else:
        with SlurmClusterExecutor(cache_directory=FOLDER / "cache") as exe:
            future_lst = [exe.submit(double, i) for i in range(1, 4)]
            print([f.result() for f in future_lst])
"""


def test_disconnecting_and_reconnecting(cache: Path, tmp_path: Path) -> None:
    script = tmp_path / "script"
    tests = str(Path(__file__).parent)
    script.write_text(LEAVING.format(tests=tests, folder=str(tmp_path)))

    def run(how: str) -> str:
        argv = [sys.executable, str(script), how]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    run("leave")
    runs = len(status(cache))
    assert sum(len(run.job_ids) for run in status(cache)) == 3
    assert run("come back") == "[2, 4, 6]"
    assert run("come back") == "[2, 4, 6]"
    assert traces(tmp_path) == {"body1": 1, "body2": 1, "body3": 1}
    assert len(status(cache)) == runs


# ---- the shutdown table, row by row ------------------------------------------------------------


@pytest.fixture
def three(cache: Path, tmp_path: Path) -> Iterator[tuple[Any, ...]]:
    """An executor with a call that runs, one that waits in the queue, and one that depends."""
    exe = SlurmClusterExecutor(cache_directory=cache, **QUICK)
    running = exe.submit(gated, tmp_path, "running")
    later = {"slurm_cmd_args": ["--begin=now+1hour"]}
    waiting = exe.submit(noted, tmp_path, "waiting", 2, resource_dict=later)
    dependent = exe.submit(add_funct, waiting, 1)
    poll(lambda: running.running() and traces(tmp_path)["running"] == 1, 120, "the start")
    yield exe, running, waiting, dependent
    open_gate(tmp_path)
    exe.shutdown(wait=False, cancel_futures=True)


def test_shutdown_wait_waits(cache: Path, tmp_path: Path) -> None:
    exe = SlurmClusterExecutor(cache_directory=cache)
    futures = [exe.submit(add_funct, i, i) for i in range(2)]
    exe.shutdown(wait=True)
    assert [future.done() for future in futures] == [True, True]
    with pytest.raises(RuntimeError, match="after shutdown"):
        exe.submit(add_funct, 1, 1)


def test_shutdown_cancel_waits_for_what_runs(three: tuple[Any, ...], tmp_path: Path) -> None:
    exe, running, waiting, dependent = three
    open_gate(tmp_path)
    exe.shutdown(wait=True, cancel_futures=True)
    assert (waiting.cancelled(), dependent.cancelled()) == (True, True)
    assert running.result() == "running"
    assert traces(tmp_path) == {"running": 1, "running-ended": 1}


def test_shutdown_no_wait_leaves_everything(
    three: tuple[Any, ...], tmp_path: Path, slurm: Callable[[], list[str]]
) -> None:
    exe, running, waiting, dependent = three
    exe.shutdown(wait=False, cancel_futures=False)
    assert not any(future.done() for future in (running, waiting, dependent))
    jobs = {future.job_id for future in (running, waiting, dependent)}
    assert set(slurm()) == jobs
    subprocess.run(
        ["scontrol", "update", f"JobId={waiting.job_id}", "StartTime=now"], check=True, timeout=60
    )
    open_gate(tmp_path)
    assert dependent.result(120) == 3
    assert running.result(120) == "running"


def test_shutdown_no_wait_cancel_ends_everything(
    three: tuple[Any, ...], tmp_path: Path, slurm: Callable[[], list[str]]
) -> None:
    exe, running, waiting, dependent = three
    exe.shutdown(wait=False, cancel_futures=True)
    assert [f.cancelled() for f in (running, waiting, dependent)] == [True] * 3
    poll(lambda: slurm() == [], 60, "the end of the jobs")
    assert traces(tmp_path) == {"running": 1}


# ---- audit and cleaning ------------------------------------------------------------------------


def test_the_audit_through_the_cache_and_the_accounts(cache: Path) -> None:
    two = {"threads_per_core": 2, "run_time_max": 300}
    with SlurmClusterExecutor(cache_directory=cache) as exe:
        assert exe.submit(calc, [1, 2, 3], resource_dict=two).result() == 6
        assert exe.submit(echo, 1).result() == 1
    audited = 0
    for entry in get_cache_data(cache_directory=str(cache)):
        if "calc" in str(entry["function"]):
            job_id = entry["queue_id"]
            poll(lambda: accounted(str(job_id), "State") == "COMPLETED", 60, "the accounts")  # noqa: B023
            assert accounted(str(job_id), "AllocCPUS") == "2"
            assert entry["resource_dict"]["threads_per_core"] == 2
            assert entry["resource_dict"]["run_time_max"] == 300
            assert entry["runtime"] >= 0
            assert os.path.exists(entry["filename"])
            assert entry["output"] == 6
            audited += 1
    assert audited == 1


def test_cleaning_the_cache_is_removing_its_folder(cache: Path, tmp_path: Path) -> None:
    for runs in (1, 2):
        with SlurmClusterExecutor(cache_directory=cache) as exe:
            assert exe.submit(noted, tmp_path, "body", 3).result() == 3
        assert traces(tmp_path)["body"] == runs
        shutil.rmtree(cache)
    assert not cache.exists()
