"""Long-lived workers as jobs of Slurm, and as steps of an allocation: the real thing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import worker_bodies as bodies
from clients import poll
from dask_batch import SlurmClusterExecutor
from dask_batch.errors import ConfigurationError, DiedTaskError, SubmissionError, TaskError
from test_workers import client, seen

pytestmark = pytest.mark.slurm

PATIENCE_S = 240.0
"""Long: a cluster may have jobs of others on all of its nodes."""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    folder = tmp_path / "traces"
    folder.mkdir()
    return folder


def jobs(cache: Path) -> list[str]:
    """Return the ids of the workers of a cache that are at Slurm."""
    names = {folder.name for folder in (cache / "logs").glob("workers-*")}
    command = ["squeue", "-h", "-t", "PD,R,S,CG", "-o", "%i %j"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [
        line.split()[0]
        for line in listed.splitlines()
        if line.split()[1].rpartition("-")[0] in names
    ]


@pytest.fixture(autouse=True)
def nothing_left(cache: Path) -> Iterator[None]:
    yield
    poll(lambda: not jobs(cache), PATIENCE_S, "the end of all workers")


def where(*_: Any) -> tuple[str | None, int]:
    return os.environ.get("SLURM_JOB_ID"), os.getpid()


def test_workers_are_jobs_that_keep_their_state(cache: Path, traces: Path) -> None:
    def begin() -> dict[str, list[int]]:
        return {"notes": []}

    def note(word: int, notes: list[int]) -> tuple[str | None, list[int]]:
        notes.append(word)
        return os.environ.get("SLURM_JOB_ID"), notes

    with SlurmClusterExecutor(
        1, cache_directory=cache, block_allocation=True, init_function=begin, restart_limit=1
    ) as exe:
        assert "dask_batch.job.worker" in exe.job_script()
        noted = [exe.submit(note, word).result(PATIENCE_S) for word in range(3)]
        assert [words for _, words in noted] == [[0], [0, 1], [0, 1, 2]]
        assert len({job for job, _ in noted}) == 1
        # It is killed, and there is a new process in the same job.
        exe.submit(bodies.die_once, traces, "once").result(PATIENCE_S)
        assert len(seen(traces, "once")) == 2
        assert exe.submit(note, 7).result(PATIENCE_S) == (noted[0][0], [7])


def test_a_worker_whose_job_is_cancelled_is_replaced_by_another_job(
    cache: Path, traces: Path
) -> None:
    with SlurmClusterExecutor(
        1, cache_directory=cache, block_allocation=True, restart_limit=1
    ) as exe:
        job, _ = exe.submit(where, 1).result(PATIENCE_S)
        subprocess.run(["scancel", str(job)], check=True)
        poll(lambda: jobs(cache) not in ([], [str(job)]), PATIENCE_S, "another job")
        assert exe.submit(where, 2).result(PATIENCE_S)[0] != job


def test_a_refused_worker_fails_all_calls(cache: Path) -> None:
    with SlurmClusterExecutor(
        1,
        cache_directory=cache,
        block_allocation=True,
        resource_dict={"partition": "no-such-partition"},
    ) as exe:
        for _ in range(2):
            with pytest.raises(SubmissionError, match="invalid partition"):
                exe.submit(where).result(PATIENCE_S)


def test_the_users_own_template_starts_workers(cache: Path) -> None:
    template = """\
#!/bin/bash
#SBATCH --output={{ working_directory }}/own.out
export COLOUR={{ colour }}
{{ command }}
"""
    asked = {"submission_template": template, "colour": "green"}
    with SlurmClusterExecutor(
        1, cache_directory=cache, block_allocation=True, resource_dict=asked
    ) as exe:
        assert exe.submit(os.getenv, "COLOUR").result(PATIENCE_S) == "green"


def test_the_number_of_workers_must_be_said(cache: Path) -> None:
    with pytest.raises(ConfigurationError, match="max_workers=, or max_cores="):
        SlurmClusterExecutor(cache_directory=cache, block_allocation=True)


def test_no_worker_outlives_a_client_that_is_killed(
    tmp_path: Path, cache: Path, traces: Path
) -> None:
    """Those that run end, and those that begin later find that nobody is there."""
    options = "resource_dict={'run_time_max': 600}"
    script = client(tmp_path, cache, traces, "SlurmClusterExecutor", options)
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    poll(lambda: len(list(traces.iterdir())) == 2, PATIENCE_S, "both tasks")
    assert len(jobs(cache)) == 2
    process.kill()
    process.wait()
    poll(lambda: not jobs(cache), PATIENCE_S, "the end of all workers")


STEPS = """
import json, os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import worker_bodies as bodies
from dask_batch import SlurmJobExecutor

def begin():
    return {{"step": os.environ["SLURM_STEP_ID"]}}

def named(word, step):
    return os.environ["SLURM_JOB_ID"], step, os.getpid()

if __name__ == "__main__":
    traces = Path({traces!r})
    with SlurmJobExecutor(2, block_allocation=True, init_function=begin, restart_limit=1) as exe:
        first = exe.submit(bodies.meet, traces, "a", "b"), exe.submit(bodies.meet, traces, "b", "a")
        pids = [future.result() for future in first]
        calls = [exe.submit(named, word).result() for word in range(4)]
        exe.submit(bodies.die_once, traces, "once").result()
        print(json.dumps([os.environ["SLURM_JOB_ID"], pids, calls]))
    {last}
"""


def salloc(tmp_path: Path, traces: Path, last: str = "") -> list[str]:
    """Return the command that runs a client in an allocation of two CPUs."""
    script = tmp_path / "steps.py"
    text = STEPS.format(tests=str(Path(__file__).parent), traces=str(traces), last=last)
    script.write_text(textwrap.dedent(text))
    return ["salloc", "-Q", "-N1", "-n1", "-c2", sys.executable, str(script)]


def test_workers_are_steps_of_the_allocation(tmp_path: Path, traces: Path) -> None:
    done = subprocess.run(
        salloc(tmp_path, traces),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    job, pids, calls = json.loads(done.stdout)
    assert len(set(pids)) == 2
    assert {call[0] for call in calls} == {job}
    assert {call[2] for call in calls} <= set(pids)
    assert len(seen(traces, "once")) == 2


def test_no_step_outlives_a_client_that_is_killed(tmp_path: Path, traces: Path) -> None:
    last = (
        "exe = SlurmJobExecutor(2, block_allocation=True); "
        "[f.result() for f in [exe.submit(bodies.slow, traces, w) for w in ('c', 'd')]]"
    )
    process = subprocess.Popen(salloc(tmp_path, traces, last), cwd=tmp_path)
    poll(lambda: bool(seen(traces, "c") and seen(traces, "d")), PATIENCE_S, "both tasks")
    (client_pid,) = _children(process.pid)
    os.kill(client_pid, 9)
    pids = seen(traces, "c") + seen(traces, "d")
    poll(lambda: not any(map(_alive, pids)), PATIENCE_S, "the end of all workers")
    process.wait(timeout=PATIENCE_S)


def _children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children()]


def _alive(pid: int) -> bool:
    from test_workers import gone

    return not gone(pid)


def test_more_workers_than_the_allocation_has_room_for_are_refused(tmp_path: Path) -> None:
    code = "from dask_batch import SlurmJobExecutor; SlurmJobExecutor(3, block_allocation=True)"
    command = ["salloc", "-Q", "-N1", "-n1", "-c2", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert "max_workers=3 with 1 CPUs each: there are 2 CPUs" in done.stderr


def test_a_killed_worker_is_named_with_its_signal(cache: Path) -> None:
    with SlurmClusterExecutor(1, cache_directory=cache, block_allocation=True) as exe:
        deadly, other = exe.submit(bodies.die), exe.submit(where)
        with pytest.raises(DiedTaskError, match=r"(?s)signal 9.*restart_limit=0 is used up"):
            deadly.result(PATIENCE_S)
        with pytest.raises(TaskError, match="no worker is left"):
            other.result(PATIENCE_S)
