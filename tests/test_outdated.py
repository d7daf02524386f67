"""Words of a batch system that fell back to the attempt before."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from dask_batch.backends.base import JobState, JobStatus
from dask_batch.cache import attempts
from dask_batch.verdicts.retry import RetryPolicy
from watching import Client, Queue, key_of, prepared


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def client(tmp_path: Path, queue: Queue) -> Client:
    return Client(tmp_path, queue)


def begin(client: Client, generation: int, restart: int) -> None:
    record = {
        "job_id": client.queue.id_of("one"), "restart": restart, "host": "far", "pid": 1,
        "boot_id": "b", "process_started": "1", "time": 0.0,
    }  # fmt: skip
    assert attempts.start(client.cache, key_of("one"), generation, record) is None


def repeat(client: Client, *, known: str = "start") -> str:
    """Let a job die, and run it again; its restarts are known by its start, or by its end."""
    queue = client.queue
    client.run(prepared("one", retry=RetryPolicy(2, exceptions=True)))
    if known == "start":
        begin(client, 0, 0)
    queue.say("one", JobState.FAILED, exit_code=1, restarts=0 if known == "end" else None)
    client.end("one", 0, outcome="died", message="killed")
    client.look(3)
    assert len(queue.reruns) == 1
    assert client.entry("one").standing.generation == 1
    return queue.id_of("one")


@pytest.mark.parametrize("known", ["start", "end"])
def test_a_controller_that_calls_the_attempt_before_running_is_not_believed(
    client: Client, queue: Queue, known: str
) -> None:
    job_id = repeat(client, known=known)
    queue.say("one", JobState.RUNNING, restarts=0)
    client.look(5)
    assert not queue.cancels  # it may still be beginning
    client.entry("one").act_at -= 3600
    client.look(2)
    assert queue.cancels == [[job_id]]
    client.look(3)
    assert len(queue.reruns) == 2
    assert client.entry("one").standing.generation == 1


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.COMPLETED, JobState.TIMEOUT])
def test_the_end_of_the_attempt_before_is_not_that_of_this_one(
    client: Client, queue: Queue, state: JobState
) -> None:
    repeat(client)
    queue.say("one", state, exit_code=1, restarts=0)
    client.look(3)
    assert len(queue.reruns) == 2
    assert client.entry("one").standing.generation == 1
    assert attempts.read_end(client.cache, key_of("one"), 1) is None


def test_one_that_was_put_back_or_has_begun_is_believed(client: Client, queue: Queue) -> None:
    repeat(client)
    queue.say("one", JobState.RUNNING, restarts=1)
    client.look(3)
    assert client.entry("one").course.sure
    begin(client, 1, 1)
    # The books have lost the repetition; the job goes on, and says so itself.
    queue.say("one", JobState.RUNNING, restarts=0)
    client.look(3)
    assert client.entry("one").course.sure
    assert not queue.cancels


def test_a_job_that_two_tasks_are_said_to_have_is_the_one_whose_name_it_bears(
    client: Client, queue: Queue
) -> None:
    """A controller that was killed right after a submission gives its id out again."""
    client.run(prepared("lost"), prepared("other"))
    lost, other = client.entry("lost"), client.entry("other")
    for first, second in ((lost, other), (other, lost)):
        first.standing, kept = _with_id(first, second), first.standing
        job_id = second.standing.job_id or ""
        name = second.standing.job_name
        queue.states[job_id] = JobStatus(job_id, JobState.RUNNING, name=name)
        client.watch.poll(0.0)
        assert first.status is not None
        assert first.status.state is JobState.LOST
        assert second.running
        first.standing = kept


def _with_id(entry, other):
    from dataclasses import replace

    return replace(entry.standing, job_id=other.standing.job_id)


def test_a_job_that_does_not_leave_its_node_is_mentioned_once(
    client: Client, queue: Queue, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.run(prepared("one"))
    queue.say("one", JobState.ENDING, word="COMPLETING")
    with caplog.at_level(logging.WARNING, logger="dask_batch"):
        client.look(3)
        assert not caplog.records
        client.entry("one").state_since -= 3600
        client.look(3)
    assert [queue.id_of("one") in record.getMessage() for record in caplog.records] == [True]
