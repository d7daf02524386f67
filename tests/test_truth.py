"""Nothing wrong in the cache, and nothing wrong said, whatever changes and however jobs end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest

from bodies import fail, gated, noted, open_gate, traces
from clients import poll
from dask_batch import SingleNodeExecutor, SlurmClusterExecutor, cluster_get, get_cache_data
from dask_batch.errors import (
    CancelledTaskError,
    ChangedSinceSubmissionError,
    DependencyFailedError,
    TimeoutTaskError,
)

QUICK = {"shortest_poll_s": 0.3, "failure_grace_s": 0.5, "output_grace_s": 1.0}
LATER = {"slurm_cmd_args": ["--begin=now+1hour"]}


@pytest.fixture
def exe(tmp_path: Path, slurm: Callable[[], list[str]]) -> Iterator[SlurmClusterExecutor]:
    executor = SlurmClusterExecutor(cache_directory=tmp_path / "cache", **QUICK)
    yield executor
    executor.shutdown(wait=False, cancel_futures=True)


def slurm_says(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout


def accounted(job_id: str, field: str) -> str:
    """Return a field of the accounts of an ended job; wait for them, they lag."""
    argv = ["sacct", "-X", "-n", "-P", "-j", job_id, f"--format=End,{field}"]

    def row() -> list[str]:
        return slurm_says(*argv).strip().split("|")

    poll(lambda: row()[0] not in ("", "Unknown"), 60, "the accounts")
    return row()[1]


# ---- what changes between submission and start -------------------------------------------------

EDITED_CLIENT = """
import json, subprocess, sys
from pathlib import Path

import dask
import dask.dataframe as dd
import helper
from dask_batch import File, SlurmClusterExecutor, get_cache_data

HERE = Path(__file__).parent
LATER = {"slurm_cmd_args": ["--begin=now+1hour"]}

def answer():
    import helper as inside
    return helper.answer(), inside.deeper.answer()

def read(path):
    return Path(path).read_text()

def outcome(future):
    error = future.exception(180)
    return future.result() if error is None else type(error).__name__

if __name__ == "__main__":
    (HERE / "input.txt").write_text("before")
    (HERE / "untouched.txt").write_text("same")
    (HERE / "table.csv").write_text("a,b\\n1,2\\n3,4\\n")
    quick = {"shortest_poll_s": 0.3, "failure_grace_s": 0.5}
    with SlurmClusterExecutor(cache_directory=HERE / "cache", resource_dict=LATER, **quick) as exe:
        frame = dd.read_csv(str(HERE / "table.csv"))
        futures = {
            "helper": exe.submit(answer),
            "touched": exe.submit(read, File(HERE / "input.txt")),
            "untouched": exe.submit(read, File(HERE / "untouched.txt")),
            "table": exe.compute(frame.b.sum()),
        }
        exe._session.engine.flush()
        # All are in the queue, and none has begun.
        for name in ("helper.py", "deeper.py"):
            path = HERE / name
            path.write_text(path.read_text().replace("original", "edited"))
        (HERE / "input.txt").write_text("after!")
        (HERE / "table.csv").write_text("a,b\\n1,20\\n3,40\\n")
        from dask_batch import status
        ids = [i for run in status(HERE / "cache") for i in run.job_ids.values()]
        subprocess.run(
            ["scontrol", "update", "JobId=" + ",".join(ids), "StartTime=now"], check=True
        )
        print(json.dumps({name: outcome(future) for name, future in futures.items()}))
    print(json.dumps([[e["function"], str(e["output"])] for e in get_cache_data(HERE / "cache")]))
"""


@pytest.mark.slurm
def test_what_changes_in_the_queue_never_makes_a_wrong_entry(
    tmp_path: Path, slurm: Callable[[], list[str]]
) -> None:
    for name in ("deeper", "helper"):
        text = "import deeper\n" if name == "helper" else ""
        (tmp_path / f"{name}.py").write_text(
            f"{text}\ndef answer():\n    return 'original {name}'\n"
        )
    (tmp_path / "client.py").write_text(EDITED_CLIENT)
    argv = [sys.executable, "-B", "client.py"]
    done = subprocess.run(
        argv, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    outcomes, entries = map(json.loads, done.stdout.splitlines())
    assert outcomes == {
        # What was hashed has run, on code that nobody can see any more.
        "helper": ["original helper", "original deeper"],
        "touched": "ChangedSinceSubmissionError",
        "untouched": "same",
        "table": "ChangedSinceSubmissionError",
    }
    assert sorted(entries) == [
        ["answer", "('original helper', 'original deeper')"],
        ["read", "same"],
    ]


@pytest.mark.slurm
def test_a_file_that_is_touched_while_a_task_reads_it_leaves_no_entry(
    exe: SlurmClusterExecutor, tmp_path: Path
) -> None:
    from dask_batch import File

    path = tmp_path / "input.txt"
    path.write_text("before")

    def read(file: File, folder: Path) -> str:
        text = Path(file).read_text()
        gated(folder, "reading")
        return text

    future = exe.submit(read, File(path), tmp_path)
    poll(lambda: traces(tmp_path)["reading"] == 1, 120, "the start")
    path.write_text("after that")
    open_gate(tmp_path)
    error = future.exception(120)
    assert isinstance(error, ChangedSinceSubmissionError)
    assert str(path) in str(error)
    assert exe.get_cache_data() == []


# ---- resources at the Dask door ----------------------------------------------------------------


@pytest.mark.slurm
def test_four_cores_of_a_task_are_one_call_with_four_cpus(
    tmp_path: Path, slurm: Callable[[], list[str]]
) -> None:
    def heavy(folder: Path) -> dict[str, Any]:
        import os

        noted(folder, "heavy")
        return {
            "omp": os.environ["OMP_NUM_THREADS"],
            "cpus": os.environ["SLURM_CPUS_PER_TASK"],
            "dask": dask.config.get("num_workers", None),
        }

    with dask.annotate(resources={"cores": 4}):
        lazy = dask.delayed(heavy)(tmp_path)
    cache = tmp_path / "cache"
    (seen,) = dask.compute(lazy, scheduler=cluster_get, backend="slurm", cache_directory=cache)
    assert seen["omp"] == "4"
    assert seen["cpus"] == "4"
    assert traces(tmp_path)["heavy"] == 1
    (entry,) = get_cache_data(cache)
    assert accounted(entry["queue_id"], "AllocCPUS") == "4"


@pytest.mark.slurm
def test_a_nested_compute_submits_nothing(tmp_path: Path, slurm: Callable[[], list[str]]) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import dask, dask_batch

            def nested():
                import dask
                import dask.array as da
                return int(da.ones(8, chunks=2).sum().compute()), dask.config.get("scheduler")

            if __name__ == "__main__":
                print(dask.delayed(nested)().compute())
                (run,) = dask_batch.status()
                print(run.backend, len(run.job_ids))
            """
        )
    )
    environment = {**os.environ, "DASK_SCHEDULER": "batch", "DASK_BATCH__BACKEND": "slurm"}
    done = subprocess.run(
        [sys.executable, script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.stdout.splitlines() == ["(8, 'synchronous')", "slurm 1"], done.stderr
    # Nor did anything else reach the queue: no other job was submitted from the test's folder.
    argv = ["sacct", "-X", "-n", "-P", "-S", "now-1hours", "--format=JobID,WorkDir"]

    def rows() -> list[str]:
        return [row for row in slurm_says(*argv).splitlines() if str(tmp_path) in row]

    poll(lambda: bool(rows()), 60, "the accounting, which lags")
    assert len(rows()) == 1


# ---- how jobs end ------------------------------------------------------------------------------


@pytest.mark.slurm
def test_what_is_cancelled_from_outside_says_so(exe: SlurmClusterExecutor, tmp_path: Path) -> None:
    pending = exe.submit(noted, tmp_path, "pending", resource_dict=LATER)
    child = exe.submit(noted, tmp_path, "child", pending)
    running = exe.submit(gated, tmp_path, "running")
    poll(lambda: traces(tmp_path)["running"] == 1, 120, "the start")
    exe._session.engine.flush()
    slurm_says("scancel", str(pending.job_id), str(running.job_id))
    for future in (pending, running):
        error = future.exception(120)
        assert isinstance(error, CancelledTaskError), error
        assert error.job_id == future.job_id
        assert error.state.startswith("CANCELLED")
    error = child.exception(120)
    assert isinstance(error, DependencyFailedError)
    assert error.root == pending.key
    assert "noted" in str(error)
    assert traces(tmp_path) == {"running": 1}
    # It may be computed again, and then it is.
    open_gate(tmp_path)
    assert exe.submit(gated, tmp_path, "running").result(120) == "running"


@pytest.mark.slurm
def test_a_failing_task_fails_its_job_and_those_that_wait_for_it(
    exe: SlurmClusterExecutor, tmp_path: Path
) -> None:
    parent = exe.submit(fail, "on purpose")
    child = exe.submit(noted, tmp_path, "child", parent)
    assert isinstance(parent.exception(120), LookupError)
    assert isinstance(child.exception(120), DependencyFailedError)
    assert accounted(str(parent.job_id), "State,ExitCode").startswith("FAILED")
    assert accounted(str(parent.job_id), "ExitCode") == "1:0"
    poll(
        lambda: accounted(str(child.job_id), "State").startswith("CANCELLED"), 60, "the child's end"
    )
    assert not traces(tmp_path)
    fine = exe.submit(noted, tmp_path, "fine")
    assert fine.result(120) is None
    assert accounted(str(fine.job_id), "ExitCode") == "0:0"


@pytest.mark.slurm
def test_a_time_limit_ends_a_job_with_a_verdict_of_its_own(
    exe: SlurmClusterExecutor, tmp_path: Path
) -> None:
    limited = exe.submit(gated, tmp_path, "limited", resource_dict={"run_time_max": 300})
    poll(lambda: traces(tmp_path)["limited"] == 1, 120, "the start")
    # Slurm counts limits in minutes; moved while the job runs, one is reached sooner.
    slurm_says("scontrol", "update", f"JobId={limited.job_id}", "EndTime=now+1")
    error = limited.exception(180)
    assert isinstance(error, TimeoutTaskError), error
    assert "run_time_max" in str(error)


# ---- a job imports what it needs ---------------------------------------------------------------

CLIENTS_OWN = (
    "networkx",
    "jinja2",
    "dask.array",
    "dask.dataframe",
    "pandas",
    "dask_batch.engine.engine",
    "dask_batch.session",
    "dask_batch.executor",
    "dask_batch.executors",
    "dask_batch.get",
    "dask_batch.graph",
    "dask_batch.configuration.resources",
    "dask_batch.configuration.config",
    "dask_batch.following.watch",
)


def loaded() -> list[str]:
    import sys

    return sorted(sys.modules)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(SingleNodeExecutor, id="local"),
        pytest.param(SlurmClusterExecutor, id="slurm", marks=pytest.mark.slurm),
    ],
)
@pytest.mark.parametrize("door", ["submit", "compute"])
def test_a_job_imports_nothing_of_the_client(kind: type, door: str, tmp_path: Path) -> None:
    with kind(cache_directory=tmp_path / "cache") as exe:
        future = exe.submit(loaded) if door == "submit" else exe.compute(dask.delayed(loaded)())
        modules = future.result(120)
    assert "dask_batch.job.run" in modules
    # What starts a local worker is the queue's own, and there before the job.
    backends = (
        "dask_batch.backends." if kind is SlurmClusterExecutor else "dask_batch.backends.slurm"
    )
    unneeded = [
        name
        for name in modules
        if name in CLIENTS_OWN or name.startswith(("dask_batch.graph.", backends))
    ]
    assert unneeded == []
