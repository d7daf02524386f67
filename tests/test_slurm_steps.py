"""Tasks as steps of an allocation of a real Slurm: what runs, what is kept to, what is told."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from allocation_agent import Allocation, until
from dask_batch import SlurmClusterExecutor, SlurmJobExecutor
from dask_batch.errors import BackendUnavailableError
from local_harness import alive

CPUS, GPUS = 3, 2


@pytest.fixture(scope="module")
def allocation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Allocation]:
    folder = tmp_path_factory.mktemp("allocation")
    there = Allocation(folder, f"--ntasks={CPUS}", f"--gres=gpu:{GPUS}", "--nodes=1", "--mem=2400M")
    yield there
    there.end()


def most_at_once(spans: list[dict[str, Any]]) -> int:
    """Return how many of some spans of time overlap, at most."""
    edges = sorted([(s["began"], 1) for s in spans] + [(s["ended"], -1) for s in spans])
    now = most = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


def quote(value: Any) -> str:
    return f"'{json.dumps(value)}'"


# ---- what runs ---------------------------------------------------------------------------------


@pytest.mark.slurm
def test_sums_are_steps_in_the_accounts_and_no_jobs(allocation: Allocation, tmp_path: Path) -> None:
    told = allocation.run("sums", tmp_path).result()
    assert told["values"] == [0, 2, 4, 6]
    assert all(job_id.startswith("slurm-step-") for job_id in told["ids"])

    def steps() -> set[str]:
        done = {name for name, state in allocation.steps().items() if state == "COMPLETED"}
        return {name for name in done if name.startswith("sum-")}

    until(lambda: len(steps()) == 4, "four steps in the accounts")
    argv = ["sacct", "-X", "-n", "-P", "--format=JobName%80"]
    jobs = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    assert not steps() & set(jobs.split())


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("caps", "each", "most"),
    [
        ({}, {}, CPUS),
        ({"max_workers": 2}, {}, 2),
        ({"max_cores": 2}, {"threads_per_core": 2}, 1),
        ({}, {"memory_max": 1}, 2),
    ],
)
def test_never_more_at_a_time_than_there_is_or_than_is_allowed(
    allocation: Allocation, tmp_path: Path, caps: Any, each: Any, most: int
) -> None:
    spans = allocation.run("many", tmp_path, quote(caps), quote(each)).result()
    assert most_at_once(spans) == most
    assert {span["OMP_NUM_THREADS"] for span in spans} == {str(each.get("threads_per_core", 1))}


@pytest.mark.slurm
def test_each_task_sees_its_own_devices_and_no_others(
    allocation: Allocation, tmp_path: Path
) -> None:
    told = allocation.run("devices", tmp_path).result()
    assert {span["CUDA_VISIBLE_DEVICES"] for span in told["gpu"]} == {"0", "1"}
    assert {span["CUDA_VISIBLE_DEVICES"] for span in told["cpu"]} <= {"", "NoDevFiles"}
    for device in ("0", "1"):
        mine = [span for span in told["gpu"] if span["CUDA_VISIBLE_DEVICES"] == device]
        assert most_at_once(mine) == 1


@pytest.mark.slurm
def test_dependent_calls_and_a_graph(allocation: Allocation, tmp_path: Path) -> None:
    told = allocation.run("dependent", tmp_path).result()
    assert told["sum"] == 22
    assert "DependencyFailedError" in told["broken"]
    assert "the weakest" in told["broken"]
    assert allocation.run("graph", tmp_path).result() == [10]


@pytest.mark.slurm
@pytest.mark.mpi
@pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="there is no mpi4py")
def test_steps_of_several_ranks_run_side_by_side(tmp_path: Path) -> None:
    there = Allocation(tmp_path, "--ntasks=4", "--nodes=1", "--mem=2400M")
    try:
        told = there.run("ranks", tmp_path).result()
        # Without PMIx Open MPI starts them itself, by daemons that are all called alike.
        has_pmix = "pmix" in subprocess.getoutput("srun --mpi=list")
        names = ["ranked-"] * 2 if has_pmix else ["orted"]
        until(lambda: [name[:7] for name in there.steps()] == names, "their steps' names")
    finally:
        there.end()
    assert told == [[[0, 2], [1, 2]]] * 2


@pytest.mark.slurm
@pytest.mark.mpi
@pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="there is no mpi4py")
def test_one_process_may_use_mpi_by_itself(allocation: Allocation, tmp_path: Path) -> None:
    value, error = allocation.run("alone", tmp_path).result()
    assert value == [0, 1]
    assert "pmi_mode='pmix' as a rule lets it" in error


@pytest.mark.slurm
def test_of_a_heterogeneous_job_the_first_component_is_used(tmp_path: Path) -> None:
    there = Allocation(tmp_path, "--ntasks=2", ":", "--ntasks=1")
    try:
        assert most_at_once(there.run("many", tmp_path).result()) == 2
    finally:
        there.end()


@pytest.mark.slurm
@pytest.mark.mpi
@pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="there is no mpi4py")
def test_the_librarys_own_program_may_start_ranks_in_an_allocation(tmp_path: Path) -> None:
    there = Allocation(tmp_path, "--ntasks=4", "--nodes=1", "--mem=2400M")
    try:
        ranks = there.run("by_mpiexec", tmp_path).result()
    finally:
        there.end()
    assert ranks == [[0, 2], [1, 2]]


@pytest.mark.slurm
def test_a_client_in_a_step_shares_its_cpus_with_its_own_steps(
    allocation: Allocation, tmp_path: Path
) -> None:
    prefix = "srun --exact --ntasks=1 --cpus-per-task=2 --mem=0 --gres=none"
    spans = allocation.run("many", tmp_path, prefix=prefix).result()
    assert most_at_once(spans) == 2
    told = allocation.run("too_large", tmp_path, prefix=prefix).result()
    assert "itself in a step cannot be given GPUs" in told["gpus_per_core"]


@pytest.mark.slurm
def test_a_job_of_the_cluster_opens_steps_in_its_own_allocation(tmp_path: Path, slurm: Any) -> None:
    # The function as the documentation has it: four steps, and one CPU for all.
    with SlurmClusterExecutor(cache_directory=tmp_path / "cache", shortest_poll_s=0.3) as outer:
        future = outer.submit(parallel_workflow, 4, resource_dict={"cores": 1, "run_time_max": 300})
        assert future.result(240) == [0, 2, 4, 6]
    argv = ["sacct", "-n", "-P", "-j", future.job_id, "--format=JobID,State"]

    def rows() -> list[str]:
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.split()

    steps = {f"{future.job_id}.{number}|COMPLETED" for number in range(4)}
    until(lambda: steps <= set(rows()), "the steps in the accounts")


def parallel_workflow(n: int) -> list[int]:
    with SlurmJobExecutor(max_workers=n) as inner:
        futures = [inner.submit(sum, [i, i], resource_dict={"cores": 1}) for i in range(n)]
        return [f.result() for f in futures]


# ---- what is told ------------------------------------------------------------------------------


@pytest.mark.slurm
def test_ends_are_told_apart(allocation: Allocation, tmp_path: Path) -> None:
    told = allocation.run("verdicts", tmp_path).result()
    assert told["exception"][0] == "LookupError"
    assert told["killed"][0] == "DiedTaskError"
    assert "signal 9" in told["killed"][1]
    assert told["timeout"][0] == "TimeoutTaskError"
    assert "run_time_max = 2 s" in told["timeout"][1]
    assert told["memory"][0] == "OutOfMemoryTaskError"
    assert "srun could not run its step" in told["refused"][1]
    assert "Requested node configuration is not available" in told["refused"][1]


@pytest.mark.slurm
def test_what_the_allocation_cannot_give_is_refused_at_once(
    allocation: Allocation, tmp_path: Path
) -> None:
    told = allocation.run("too_large", tmp_path).result()
    assert f"its largest node has {CPUS}" in told["threads_per_core"]
    assert f"the allocation has {GPUS}" in told["gpus_per_core"]
    assert "GB on a node" in told["memory_max"]
    assert "no partition to choose; leave it out" in told["partition"]
    assert "--ntasks cannot be given here" in told["slurm_cmd_args"]
    assert not list(tmp_path.glob("never.*"))


def test_outside_an_allocation_it_says_where_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_JOBID", raising=False)
    with pytest.raises(BackendUnavailableError, match=r"SLURM_JOB_ID is not set.*sbatch") as caught:
        SlurmJobExecutor()
    assert "SlurmClusterExecutor" in str(caught.value)


# ---- results, kept or not ----------------------------------------------------------------------


@pytest.mark.slurm
def test_with_a_cache_directory_what_ran_once_is_found(
    allocation: Allocation, tmp_path: Path
) -> None:
    for _ in range(2):
        assert allocation.run("kept", tmp_path).result() == [0, 1]
    assert len(list(tmp_path.glob("kept.*"))) == 2


@pytest.mark.slurm
def test_without_one_every_call_runs_and_nothing_is_left(
    allocation: Allocation, tmp_path: Path
) -> None:
    values, unread, runs, *there = allocation.run("not_kept", tmp_path).result()
    assert (values, unread) == ([7, 7, 7], 1000)
    assert runs == {"same": 3, "unread": 1}
    assert there == [True, False, False]


# ---- the end -----------------------------------------------------------------------------------


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("wait", "cancel", "running", "waiting", "runs"),
    [
        ("wait", "keep", "done", "done", {"running": 1, "running-ended": 1, "waiting": 1}),
        ("wait", "cancel", "done", "cancelled", {"running": 1, "running-ended": 1}),
        ("leave", "cancel", "cancelled", "cancelled", {"running": 1}),
        ("leave", "keep", "open", "open", {"running": 1, "running-ended": 1, "waiting": 1}),
    ],
)
def test_the_shutdown_table(
    allocation: Allocation,
    tmp_path: Path,
    wait: str,
    cancel: str,
    running: str,
    waiting: str,
    runs: dict[str, int],
) -> None:
    told = allocation.run("table", tmp_path, wait, cancel).result()
    assert (told["running"], told["waiting"]) == (running, waiting)
    until(lambda: not alive(told["pid"]), "the end of what ran")
    # What was left running is waited for at the end of the client, as by the standard library.
    kinds = Counter(path.stem for path in tmp_path.glob("*.*") if path.suffix != ".pid")
    assert {name: kinds[name] for name in runs} == runs
    assert kinds["waiting"] == runs.get("waiting", 0)


@pytest.mark.slurm
def test_a_script_that_just_ends_waits_for_its_jobs(allocation: Allocation, tmp_path: Path) -> None:
    assert allocation.run("ends_without_shutdown", tmp_path).result() is None
    assert len(list(tmp_path.glob("last.*"))) == 1


@pytest.mark.slurm
def test_a_killed_client_leaves_no_step_and_no_process(
    allocation: Allocation, tmp_path: Path
) -> None:
    client = allocation.run("killed", tmp_path)
    pids = [tmp_path / f"sleeper{i}.pid" for i in range(2)]
    until(lambda: all(pid.exists() and pid.read_text() for pid in pids), "two steps at work")
    assert len(allocation.running_steps()) == 2
    client.kill()
    until(lambda: not any(alive(int(pid.read_text())) for pid in pids), "the end of processes")
    until(lambda: allocation.running_steps() == [], "the end of steps")


@pytest.mark.slurm
def test_an_interrupted_graph_is_ended(allocation: Allocation, tmp_path: Path) -> None:
    client = allocation.run("interrupted", tmp_path)
    pids = [tmp_path / f"sleeper{i}.pid" for i in range(2)]
    until(lambda: all(pid.exists() and pid.read_text() for pid in pids), "two steps at work")
    client.kill(signal.SIGINT)
    assert client.wait() != 0
    assert "what was under way is ended" in client.errors
    until(lambda: not any(alive(int(pid.read_text())) for pid in pids), "the end of processes")


@pytest.mark.slurm
def test_executors_of_one_process_wait_for_each_other(
    allocation: Allocation, tmp_path: Path
) -> None:
    assert allocation.run("two_executors", tmp_path).result() == [True]
    assert len(list((tmp_path / "cache" / "attempts").rglob("*.start"))) == 2


@pytest.mark.slurm
def test_what_was_killed_is_repeated_and_what_waits_for_it_waits_on(
    allocation: Allocation, tmp_path: Path
) -> None:
    assert allocation.run("repeated", tmp_path).result() == 12
    assert len(list(tmp_path.glob("tried.*"))) == 2


@pytest.mark.slurm
def test_a_later_client_takes_over_what_a_killed_one_left(
    allocation: Allocation, tmp_path: Path
) -> None:
    client = allocation.run("chain", tmp_path)
    until(lambda: list(tmp_path.glob("second.?*?????")), "the second body")
    client.kill()
    pid = int((tmp_path / "second.pid").read_text())
    until(lambda: not alive(pid), "the end of the second body")
    (tmp_path / "open").touch()
    assert allocation.run("chain", tmp_path).result() == ["second"]
    runs = Counter(path.stem for path in tmp_path.glob("*.*") if path.suffix != ".pid")
    assert (runs["first"], runs["third"]) == (1, 1)
    assert runs["second-ended"] == 1


@pytest.mark.slurm
def test_a_client_that_waits_for_another_takes_over_when_that_is_killed(
    allocation: Allocation, tmp_path: Path
) -> None:
    client = allocation.run("chain", tmp_path)
    until(lambda: list(tmp_path.glob("second.?*?????")), "the second body")
    other = allocation.run("chain", tmp_path)
    until(lambda: "handed over" in other.said, "the other client")
    assert len(allocation.running_steps()) == 1  # it waits, and starts nothing of its own
    client.kill()
    pid = int((tmp_path / "second.pid").read_text())
    until(lambda: not alive(pid), "the end of the second body")
    (tmp_path / "open").touch()
    assert other.result() == ["second"]
    runs = Counter(path.stem for path in tmp_path.glob("*.*") if path.suffix != ".pid")
    assert (runs["first"], runs["second-ended"], runs["third"]) == (1, 1, 1)


@pytest.mark.slurm
def test_a_client_elsewhere_waits_for_the_results_of_one_that_lives(
    allocation: Allocation, tmp_path: Path
) -> None:
    client = allocation.run("chain", tmp_path)
    until(lambda: list(tmp_path.glob("second.?*?????")), "the second body")
    other = allocation.run("chain", tmp_path)
    until(lambda: "handed over" in other.said, "the other client")
    (tmp_path / "open").touch()
    assert client.result() == other.result() == ["second"]
    runs = Counter(path.stem for path in tmp_path.glob("*.*") if path.suffix != ".pid")
    assert (runs["first"], runs["second"], runs["third"]) == (1, 1, 1)


if os.environ.get("SLURM_STEP_ID"):
    pytest.skip("this is itself a step", allow_module_level=True)
