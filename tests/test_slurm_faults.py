"""Everything that can go wrong with Slurm, on the fake one, through the whole engine."""

from __future__ import annotations

import itertools
import subprocess
from collections import Counter

import dask
import pytest

import bodies
from clients import Clients, poll
from dask_batch import SlurmClusterExecutor, cluster_get
from dask_batch.backends.base import Job, JobState
from dask_batch.backends.command import client_environment
from dask_batch.backends.slurm.backend import SlurmBackend
from dask_batch.configuration.resources import for_dask_task
from dask_batch.errors import (
    DependencyFailedError,
    DiedTaskError,
    NodeFailureTaskError,
    PreemptedTaskError,
    SubmissionError,
    TimeoutTaskError,
)
from dask_batch.following import ghosts
from dask_batch.following.entries import Pace
from dask_batch.testing import FakeSlurm

PACE = {
    "shortest_poll_s": 0.2,
    "longest_poll_s": 0.5,
    "failure_grace_s": 1.0,
    "output_grace_s": 5.0,
    "input_grace_s": 5.0,
}
PATIENCE_S = 120.0
ONCE = Counter({f"leaf{i}": 1 for i in range(6)} | {f"pair{i}": 1 for i in range(3)} | {"end": 1})


@pytest.fixture
def fake(tmp_path, monkeypatch, request):
    """Yield a fake Slurm with the settings that a test is marked with."""
    settings = getattr(request, "param", {})
    with FakeSlurm(tmp_path / "fake", requeue_wait_s=0.2, **settings) as fake:
        monkeypatch.setenv("PATH", fake.environment()["PATH"])
        yield fake


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "traces"
    folder.mkdir()
    return folder


def ten(folder):
    """Return a graph of ten tasks, three deep, and what it computes."""
    noted = dask.delayed(bodies.noted)
    leaves = [noted(folder, f"leaf{i}", i) for i in range(6)]
    pairs = [noted(folder, f"pair{i}", [leaves[2 * i], leaves[2 * i + 1]]) for i in range(3)]
    return noted(folder, "end", pairs), [[0, 1], [2, 3], [4, 5]]


def compute(tmp_path, *graphs, **options):
    options = {"backend": "slurm", "cache_directory": tmp_path / "cache", **PACE, **options}
    return dask.compute(*graphs, scheduler=cluster_get, **options)


@pytest.fixture
def hurried(monkeypatch):
    """Let what is waited for for half a minute and more be waited for for a second."""
    monkeypatch.setattr(Pace, "grace_s", lambda pace, state: 1.0)
    monkeypatch.setattr(ghosts, "_STUCK", dict.fromkeys(ghosts._STUCK, 1.0))
    for name in ("GATHER", "RARELY"):
        monkeypatch.setattr(ghosts, f"_{name}_S", 1.0)


@pytest.fixture
def executor(tmp_path, fake):
    with SlurmClusterExecutor(cache_directory=tmp_path / "cache", **PACE) as executor:
        yield executor
        executor.shutdown(wait=False, cancel_futures=True)


def under_way(fake, future, folder, name):
    """Wait until a body runs; return its job's id."""
    poll(lambda: bodies.traces(folder)[name] >= 1, PATIENCE_S, f"{name} begins")
    return future.job_id


# ---- commands that fail, lie or say nothing -----------------------------------------------------


@pytest.mark.parametrize("command", ["squeue", "sacct", "scontrol"])
def test_a_command_fails_in_half_of_all_calls(fake, tmp_path, folder, command):
    graph, expected = ten(folder)
    fake.fail(command, share=0.5, seed=2)
    assert compute(tmp_path, graph) == (expected,)
    assert bodies.traces(folder) == ONCE


@pytest.mark.parametrize("fake", [{"min_job_age_s": 0.5}], indirect=True)
@pytest.mark.parametrize("command", ["squeue", "sacct"])
def test_a_death_is_told_although_a_command_fails_in_half_of_all_calls(
    fake, tmp_path, folder, command
):
    fake.fail(command, share=0.5, seed=2)
    dead = dask.delayed(bodies.kill_myself)(9)
    with pytest.raises(DiedTaskError):
        compute(tmp_path, dead)


@pytest.mark.parametrize("how", ["truncate", "garble", "reorder"])
@pytest.mark.parametrize("command", ["squeue", "sacct"])
def test_spoilt_answers_change_no_verdict(fake, tmp_path, folder, command, how):
    graph, expected = ten(folder)
    broken = dask.delayed(bodies.fail)("on purpose")
    fake.truncate(command, 150) if how == "truncate" else getattr(fake, how)(command)
    assert compute(tmp_path, graph) == (expected,)
    assert bodies.traces(folder) == ONCE
    with pytest.raises(LookupError, match="on purpose"):
        compute(tmp_path, dask.delayed(bodies.noted)(folder, "below", broken))
    assert bodies.traces(folder)["below"] == 0


@pytest.mark.parametrize("fake", [{"min_job_age_s": 0.2}], indirect=True)
def test_accounts_that_lag_are_waited_for(fake, tmp_path, folder):
    fake.lag(sacct_s=4.0)
    graph, expected = ten(folder)
    assert compute(tmp_path, graph) == (expected,)
    with pytest.raises(DiedTaskError):
        compute(tmp_path, dask.delayed(bodies.kill_myself)(9))
    assert bodies.traces(folder) == ONCE


@pytest.mark.parametrize("fake", [{"accounting": False}], indirect=True)
def test_there_are_no_accounts(fake, tmp_path, folder):
    graph, expected = ten(folder)
    assert compute(tmp_path, graph) == (expected,)
    with pytest.raises(DiedTaskError):
        compute(tmp_path, dask.delayed(bodies.kill_myself)(9))
    assert bodies.traces(folder) == ONCE
    assert len(fake.calls("sacct")) <= 2  # once by each engine, and then no more


def test_squeue_hangs(fake, tmp_path, folder, monkeypatch):
    monkeypatch.setattr("dask_batch.backends.slurm.commands.QUERY_TIMEOUT_S", 0.5)
    fake.hang("squeue", 1000)
    graph, expected = ten(folder)
    assert compute(tmp_path, graph) == (expected,)
    with pytest.raises(LookupError):
        compute(tmp_path, dask.delayed(bodies.fail)("x"))
    assert bodies.traces(folder) == ONCE


def test_a_word_that_nobody_knows_is_no_verdict(fake, folder, executor):
    future = executor.submit(bodies.gated, folder, "body")
    job_id = under_way(fake, future, folder, "body")
    fake.say(job_id, "A_WORD_OF_THE_FUTURE")
    asked = len(fake.calls("squeue"))
    poll(lambda: len(fake.calls("squeue")) > asked + 3, PATIENCE_S, "several questions")
    assert not future.done()
    bodies.open_gate(folder)
    assert future.result(PATIENCE_S) == "body"


# ---- submissions ------------------------------------------------------------------------------


def test_slurm_is_temporarily_unable(fake, tmp_path, folder):
    fake.temporarily_unable(20)
    graph, expected = ten(folder)
    assert compute(tmp_path, graph) == (expected,)
    assert bodies.traces(folder) == ONCE


def test_an_answer_of_sbatch_is_lost(fake, tmp_path, folder, monkeypatch):
    fake.refuse("sbatch", "Batch job submission failed: Socket timed out on send/recv", times=2)
    graph, expected = ten(folder)
    assert compute(tmp_path, graph) == (expected,)
    assert bodies.traces(folder) == ONCE
    assert len(fake.names()) == len(set(fake.names().values()))


SIXTY = """
def graph():
    task = dask.delayed(body)
    leaves = [task(f"leaf{i}") for i in range(44)]
    groups = [task(f"group{i}", *leaves[3 * i : 3 * i + 3]) for i in range(15)]
    return task("end", *groups)

if __name__ == "__main__":
    with dask.config.set({"batch.shortest-poll": "0.5s", "batch.longest-poll": "1s"}):
        compute(graph())
"""
EACH_OF_SIXTY = Counter([f"leaf{i}" for i in range(44)] + [f"group{i}" for i in range(15)])
EACH_OF_SIXTY["end"] = 1


def test_sixty_tasks_where_a_user_may_have_ten_jobs(fake, tmp_path):
    fake.limit(max_submit=10)
    clients = Clients(tmp_path, "slurm", SIXTY)
    assert clients.run().startswith("end(group0(leaf0(),")
    assert clients.bodies() == EACH_OF_SIXTY


def test_sixty_tasks_where_a_user_may_have_ten_jobs_and_nobody_is_there(fake, tmp_path):
    fake.limit(max_submit=10, name="AssocMaxSubmitJobLimit")
    clients = Clients(tmp_path, "slurm", SIXTY)
    client = clients.start()
    poll(lambda: len(clients.bodies()) >= 3, PATIENCE_S, "the first tasks")
    client.kill()
    client.communicate()
    poll(lambda: clients.bodies()["end"] == 1, 240, "the last task")
    assert clients.run().startswith("end(group0(leaf0(),")
    assert clients.bodies() == EACH_OF_SIXTY


# ---- jobs that are forgotten, lost, or run twice ------------------------------------------------


def forget_all(fake):
    for job_id, state in fake.states().items():
        if state not in ("PENDING", "RUNNING", "COMPLETING"):
            fake.purge(job_id)


def test_a_finished_parent_that_was_purged_does_not_run_again(fake, tmp_path, folder):
    noted = dask.delayed(bodies.noted)
    parent = noted(folder, "parent", 5)
    assert compute(tmp_path, parent) == (5,)
    forget_all(fake)
    assert compute(tmp_path, noted(folder, "child", parent)) == (5,)
    assert bodies.traces(folder) == Counter(parent=1, child=1)


def test_a_failed_parent_that_was_purged_runs_again_and_nothing_without_it(fake, tmp_path, folder):
    broken = dask.delayed(bodies.fail)("broken")
    child = dask.delayed(bodies.noted)(folder, "child", broken)
    for _ in range(2):
        with pytest.raises(LookupError, match="broken"):
            compute(tmp_path, child)
        forget_all(fake)
    assert bodies.traces(folder)["child"] == 0


def test_a_parent_that_dies_and_is_purged_while_its_child_is_submitted(fake, folder, executor):
    parent = executor.submit(bodies.gated, folder, "parent")
    job_id = under_way(fake, parent, folder, "parent")
    fake.kill(job_id)
    poll(lambda: fake.states()[job_id] == "FAILED", PATIENCE_S, "its death")
    fake.purge(job_id)
    child = executor.submit(bodies.noted, folder, "child", parent)
    with pytest.raises(DiedTaskError):
        parent.result(PATIENCE_S)
    with pytest.raises((DependencyFailedError, DiedTaskError)):
        child.result(PATIENCE_S)
    assert bodies.traces(folder)["child"] == 0


@pytest.mark.parametrize("accounting", [True, False])
def test_a_job_is_lost_and_its_id_given_out_again(
    tmp_path, folder, monkeypatch, hurried, accounting
):
    with FakeSlurm(tmp_path / "fake", accounting=accounting) as fake:
        monkeypatch.setenv("PATH", fake.environment()["PATH"])
        with SlurmClusterExecutor(cache_directory=tmp_path / "cache", **PACE) as executor:
            first = executor.submit(bodies.gated, folder, "first")
            job_id = under_way(fake, first, folder, "first")
            fake.lose(job_id)
            second = executor.submit(bodies.gated, folder, "second")
            assert under_way(fake, second, folder, "second") == job_id
            bodies.open_gate(folder)
            assert second.result(PATIENCE_S) == "second"
            assert first.result(PATIENCE_S) == "first"
    assert bodies.traces(folder) == Counter(
        {"first": 2, "first-ended": 1, "second": 1, "second-ended": 1}
    )


def test_a_held_job_is_lost_before_it_ran(fake, folder, hurried, executor):
    blocker = [executor.submit(bodies.gated, folder, f"blocker{i}") for i in range(4)]
    for i, future in enumerate(blocker):
        under_way(fake, future, folder, f"blocker{i}")
    waiting = executor.submit(bodies.noted, folder, "waiting", 7)
    poll(lambda: waiting.job_id is not None, PATIENCE_S, "its submission")
    fake.lose(waiting.job_id)
    bodies.open_gate(folder)
    assert waiting.result(PATIENCE_S) == 7
    assert bodies.traces(folder)["waiting"] == 1


@pytest.mark.parametrize("both", [False, True], ids=["the first is killed", "both go on"])
def test_a_job_runs_twice(fake, folder, executor, both):
    future = executor.submit(bodies.gated, folder, "body")
    job_id = under_way(fake, future, folder, "body")
    fake.run_twice(job_id, both=both)
    if not both:
        poll(lambda: bodies.traces(folder)["body"] == 2, PATIENCE_S, "the second run")
    bodies.open_gate(folder)
    assert future.result(PATIENCE_S) == "body"
    assert bodies.traces(folder)["body-ended"] == 1


def test_a_parent_that_ended_is_called_running_for_good(fake, folder, hurried, executor):
    parent = executor.submit(bodies.gated, folder, "parent")
    child = executor.submit(bodies.noted, folder, "child", parent)
    below = executor.submit(bodies.noted, folder, "below", child)
    job_id = under_way(fake, parent, folder, "parent")
    fake.haunt(job_id)
    bodies.open_gate(folder)
    assert parent.result(PATIENCE_S) == "parent"
    assert below.result(PATIENCE_S) == "parent"
    assert fake.states()[job_id] == "CANCELLED"
    assert bodies.traces(folder) == Counter(
        {"parent": 1, "parent-ended": 1, "child": 1, "below": 1}
    )


# ---- nodes, preemption, time -------------------------------------------------------------------


def test_a_job_whose_node_failed_is_requeued_by_slurm(fake, folder, executor):
    future = executor.submit(bodies.gated, folder, "body")
    child = executor.submit(bodies.noted, folder, "child", future)
    job_id = under_way(fake, future, folder, "body")
    fake.node_failure(job_id)
    poll(lambda: bodies.traces(folder)["body"] == 2, PATIENCE_S, "the second run")
    bodies.open_gate(folder)
    assert child.result(PATIENCE_S) == "body"
    assert bodies.traces(folder) == Counter({"body": 2, "body-ended": 1, "child": 1})


ACCIDENTS = {
    "node": ("node_failure", NodeFailureTaskError),
    "preemption": ("preempt", PreemptedTaskError),
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_an_accident_is_told_where_nothing_is_repeated(fake, folder, executor, accident):
    method, error = ACCIDENTS[accident]
    future = executor.submit(bodies.gated, folder, "body")
    child = executor.submit(bodies.noted, folder, "child", future)
    job_id = under_way(fake, future, folder, "body")
    getattr(fake, method)(job_id, requeue=False)
    with pytest.raises(error):
        future.result(PATIENCE_S)
    with pytest.raises(DependencyFailedError):
        child.result(PATIENCE_S)
    assert bodies.traces(folder) == Counter({"body": 1})


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_an_accident_is_made_good_where_something_is(fake, folder, executor, accident):
    future = executor.submit(bodies.gated, folder, "body", resource_dict={"retries": 1})
    child = executor.submit(bodies.noted, folder, "child", future)
    job_id = under_way(fake, future, folder, "body")
    getattr(fake, ACCIDENTS[accident][0])(job_id, requeue=False)
    poll(lambda: bodies.traces(folder)["body"] == 2, PATIENCE_S, "the second run")
    bodies.open_gate(folder)
    assert child.result(PATIENCE_S) == "body"
    assert bodies.traces(folder) == Counter({"body": 2, "body-ended": 1, "child": 1})


def test_more_memory_after_too_little(fake, folder, executor):
    asked = {"retries": 1, "memory_max": 0.5}
    future = executor.submit(bodies.gated, folder, "body", resource_dict=asked)
    job_id = under_way(fake, future, folder, "body")
    fake.out_of_memory(job_id)
    poll(lambda: bodies.traces(folder)["body"] == 2, PATIENCE_S, "the second run")
    bodies.open_gate(folder)
    assert future.result(PATIENCE_S) == "body"
    argv = ["scontrol", "-o", "show", "job", future.job_id]
    assert "MinMemoryNode=1024M" in subprocess.run(argv, capture_output=True, text=True).stdout


@pytest.mark.parametrize("fake", [{"minute_s": 4.0}], indirect=True)
def test_a_time_limit(fake, folder, executor):
    asked = {"run_time_max": 60}
    future = executor.submit(bodies.gated, folder, "body", resource_dict=asked)
    with pytest.raises(TimeoutTaskError):
        future.result(PATIENCE_S)


def test_the_controller_is_away_for_a_while(fake, tmp_path, folder, executor):
    future = executor.submit(bodies.gated, folder, "body")
    child = executor.submit(bodies.noted, folder, "child", future)
    under_way(fake, future, folder, "body")
    fake.down()
    asked = len(fake.calls("squeue"))
    bodies.open_gate(folder)
    poll(lambda: len(fake.calls("squeue")) > asked + 1, PATIENCE_S, "questions in vain")
    assert not child.done()
    fake.up()
    assert child.result(PATIENCE_S) == "body"
    assert bodies.traces(folder) == Counter({"body": 1, "body-ended": 1, "child": 1})


# ---- politeness -------------------------------------------------------------------------------


def test_one_question_for_all_jobs_whatever_their_number(fake, tmp_path):
    backend = SlurmBackend(command=lambda job: ["true"])
    jobs = [
        Job(
            name=f"many-{index}",
            definition=tmp_path,
            index=index,
            resources=for_dask_task({}),
            log_directory=tmp_path / "logs",
            environment=client_environment(),
        )
        for index in range(200)
    ]
    ids = {}
    backend.submit(jobs, ids.__setitem__)
    before = Counter(call.command for call in fake.calls())
    answer = backend.status(list(ids.values()))
    assert Counter(call.command for call in fake.calls()) - before == Counter(squeue=1)
    assert {status.state for status in answer.values()} == {JobState.HELD}
    assert len(answer) == 200
    backend.close()


def test_a_client_asks_at_its_pace_however_many_jobs_it_follows(fake, tmp_path, folder):
    pace = {**PACE, "shortest_poll_s": 0.5, "longest_poll_s": 0.5}
    with SlurmClusterExecutor(cache_directory=tmp_path / "cache", **pace) as executor:
        first = executor.submit(bodies.gated, folder, "first")
        others = [executor.submit(bodies.noted, folder, f"n{i}", first) for i in range(200)]
        poll(lambda: all(future.job_id for future in others), PATIENCE_S, "all submissions")
        before = len(fake.calls("squeue"))
        poll(lambda: len(fake.calls("squeue")) >= before + 8, PATIENCE_S, "eight questions")
        times = [call.time for call in fake.calls("squeue")[before:]]
        executor.shutdown(wait=False, cancel_futures=True)
    gaps = sorted(later - earlier for earlier, later in itertools.pairwise(times))
    assert gaps[len(gaps) // 2] >= 0.45
    assert {call.arguments for call in fake.calls("squeue")[before:]} == {
        fake.calls("squeue")[before].arguments
    }


def test_a_refused_worker_is_told_in_slurms_words(fake, tmp_path):
    with SlurmClusterExecutor(
        1,
        cache_directory=tmp_path / "cache",
        block_allocation=True,
        resource_dict={"partition": "nope", "retries": 1},
        **PACE,
    ) as exe:
        calls = [exe.submit(bodies.add, 1, i) for i in range(3)]
        calls.append(exe.submit(bodies.add, calls[0], 1))
        for call in calls[:3]:
            with pytest.raises(SubmissionError, match="invalid partition") as caught:
                call.result(PATIENCE_S)
            assert "invalid partition" in caught.value.output
            assert isinstance(caught.value, subprocess.CalledProcessError)
        with pytest.raises(DependencyFailedError, match="invalid partition"):
            calls[3].result(PATIENCE_S)
