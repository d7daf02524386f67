"""Jobs that a controller with an old memory calls running, and that died before they had begun."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dask_batch.backends.base import JobState, JobStatus
from dask_batch.cache import attempts
from dask_batch.errors import CommandError, DiedTaskError
from dask_batch.following import unbegun
from dask_batch.verdicts.retry import RetryPolicy
from watching import Client, Queue, key_of, prepared


class Accounts(Queue):
    """A queue beside which there is an accounting."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, JobStatus] = {}
        self.asked: list[list[str]] = []
        self.silent = False

    def accounts(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        self.asked.append(list(job_ids))
        if self.silent:
            raise CommandError(("sacct",), 1, "", "slurmdbd: connection refused")
        return {job_id: self.rows[job_id] for job_id in job_ids if job_id in self.rows}

    def ended(self, task: str, state: JobState, word: str, **more: object) -> None:
        job_id = self.id_of(task)
        self.rows[job_id] = JobStatus(job_id, state, word, source="sacct", **more)


@pytest.fixture
def queue() -> Accounts:
    return Accounts()


@pytest.fixture
def client(tmp_path: Path, queue: Accounts, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(unbegun, "_AFTER_S", -1.0)
    monkeypatch.setattr(unbegun, "_FIRST_PAUSE_S", 0.0)
    return Client(tmp_path, queue)


def test_a_job_that_died_before_it_had_begun_is_found_by_its_account(
    client: Client, queue: Accounts
) -> None:
    future = client.run(prepared("one"))["one"]
    queue.say("one", JobState.RUNNING, word="RUNNING")
    queue.ended("one", JobState.FAILED, "FAILED", signal=9)
    client.look(5)
    assert queue.cancels == [[queue.id_of("one")]]
    error = future.exception(0)
    assert isinstance(error, DiedTaskError)
    assert "signal 9" in str(error)
    assert "sacct says FAILED" in str(error)


def test_it_is_repeated_as_any_that_died(client: Client, queue: Accounts) -> None:
    future = client.run(prepared("one", retry=RetryPolicy(1)))["one"]
    queue.say("one", JobState.RUNNING)
    queue.ended("one", JobState.FAILED, "FAILED", signal=9)
    client.look(3)
    assert queue.cancels == [[queue.id_of("one")]]
    assert [each[0] for each in queue.reruns] == [queue.id_of("one")]
    assert not future.done()


def test_one_that_was_cancelled_by_mistake_is_handed_in_again(
    client: Client, queue: Accounts
) -> None:
    future = client.run(prepared("one"))["one"]
    queue.say("one", JobState.RUNNING)
    queue.ended("one", JobState.CANCELLED, "CANCELLED by 0")
    client.look(3)
    assert len(queue.reruns) == 1
    assert not future.done()


@pytest.mark.parametrize("account", [None, "RUNNING", "other"])
def test_one_that_begins_slowly_is_left_alone(
    client: Client, queue: Accounts, account: str | None
) -> None:
    client.run(prepared("one"))
    queue.say("one", JobState.RUNNING)
    if account == "RUNNING":
        queue.ended("one", JobState.RUNNING, "RUNNING")
    elif account == "other":
        queue.ended("one", JobState.FAILED, "FAILED", name="somebody-elses")
    client.look(5)
    assert queue.asked
    assert not queue.cancels


def test_one_that_has_begun_is_not_asked_about(client: Client, queue: Accounts) -> None:
    client.run(prepared("one"))
    start = {
        "job_id": queue.id_of("one"), "host": "far", "pid": 1, "boot_id": "b",
        "process_started": "1", "restart": 0, "time": 0.0,
    }  # fmt: skip
    assert attempts.start(client.cache, key_of("one"), 0, start) is None
    queue.say("one", JobState.RUNNING)
    client.look(5)
    assert not queue.asked


def test_an_accounting_that_does_not_answer_is_asked_ever_more_seldom(
    tmp_path: Path, queue: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unbegun, "_AFTER_S", -1.0)
    client = Client(tmp_path, queue)
    client.run(prepared("one"))
    queue.say("one", JobState.RUNNING)
    queue.silent = True
    client.look(5)
    assert len(queue.asked) == 1
    assert not queue.cancels
