"""Runs seen from outside: how far they are, with attempts that are repeated; and an end to them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from dask_batch import get_cache_data_queue, terminate_tasks_in_cache
from dask_batch.backends.base import JobState
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims, Owner, Run
from dask_batch.errors import DamagedEntryError
from dask_batch.upkeep import overview
from dask_batch.upkeep.overview import Overview, RunStatus
from dask_batch.verdicts.retry import RetryPolicy
from watching import Client, Queue, key_of, prepared

TWICE = RetryPolicy(2)


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def client(tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(overview, "open_backend", lambda name: queue)
    return Client(tmp_path, queue)


def seen(client: Client) -> RunStatus:
    """Return how far the one run is, as another process sees it."""
    look = Overview(client.cache)
    (run,) = look.runs()
    return look.status(run)


def counts(found: RunStatus) -> tuple[int, ...]:
    return found.finished, found.failed, found.running, found.waiting, found.unknown


def test_each_job_counts_once_as_what_it_is(client: Client, queue: Queue) -> None:
    client.run(*(prepared(name) for name in ("done", "bad", "runs", "waits", "lost")))
    client.publish("done")
    client.end("bad", 0, outcome="exception")
    queue.say("runs", JobState.RUNNING)
    queue.purged.add(queue.id_of("lost"))
    assert counts(seen(client)) == (1, 1, 1, 1, 1)


def test_what_is_being_repeated_is_neither_failed_nor_unknown(client: Client, queue: Queue) -> None:
    client.run(prepared("flaky", retry=TWICE))
    queue.say("flaky", JobState.TIMEOUT)
    client.end("flaky", 0, outcome="timeout")
    assert counts(seen(client)) == (0, 0, 0, 1, 0)
    claim = client.claims.current(key_of("flaky"))
    assert claim is not None
    client.claims.claim(claim.key, claim.run, after=0)
    # Claimed, and not run yet: the batch system tells of the first attempt.
    assert counts(seen(client)) == (0, 0, 0, 1, 0)
    client.look(2)
    client.entry("flaky").act_at = 0.0
    client.look(2)
    queue.say("flaky", JobState.RUNNING)
    found = seen(client)
    assert counts(found) == (0, 0, 1, 0, 0)
    assert found.repeated == 1
    client.publish("flaky")
    assert counts(seen(client)) == (1, 0, 0, 0, 0)


def test_what_has_used_up_its_retries_has_failed(client: Client, queue: Queue) -> None:
    client.run(prepared("flaky", retry=RetryPolicy(1)))
    for _ in range(2):
        queue.say("flaky", JobState.TIMEOUT)
        client.look(3)
    found = seen(client)
    assert counts(found) == (0, 1, 0, 0, 0)
    assert found.repeated == 1


def test_cancelling_also_ends_what_is_to_be_repeated(client: Client, queue: Queue) -> None:
    futures = client.run(prepared("flaky", retry=TWICE), prepared("child", "flaky"))
    queue.say("flaky", JobState.TIMEOUT)
    client.end("flaky", 0, outcome="timeout")
    look = Overview(client.cache)
    assert look.cancel(look.runs()[0], None) == 2
    client.look(5)
    assert not queue.reruns
    assert all(future.done() for future in futures.values())
    assert counts(seen(client))[:2] == (0, 2)


def test_a_run_that_nobody_can_mend_does_not_hide_the_others(
    client: Client,
    queue: Queue,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client.run(prepared("passed"))
    damaged = client.entry("passed").standing.run_id
    queue.say("passed", JobState.LOST)
    # The second run claims a key that the first one had claimed before it.
    Client(client.cache.path.parent, queue).run(prepared("passed"), prepared("fine"))
    read = Claims.run

    def run(claims: Claims, run_id: str) -> Run:
        if run_id == damaged:
            raise DamagedEntryError("torn")
        return read(claims, run_id)

    monkeypatch.setattr(Claims, "run", run)
    look = Overview(client.cache)
    (found,) = look.runs()
    assert damaged in caplog.text
    assert "verify" in caplog.text
    assert counts(look.status(found)) == (0, 0, 0, 1, 1)
    assert look.cancel(found, None) == 2
    assert queue.cancels == [sorted([queue.id_of("fine"), queue.id_of("passed")])]


def test_an_id_that_is_another_jobs_by_now_is_let_alone(client: Client, queue: Queue) -> None:
    client.run(prepared("mine"), prepared("lost"))
    for name in ("mine", "lost"):
        queue.say(name, JobState.RUNNING)
    mine, lost = queue.id_of("mine"), queue.id_of("lost")
    queue.states[lost] = dataclasses.replace(queue.states[lost], name="of-somebody-else")
    assert counts(seen(client)) == (0, 0, 1, 0, 1)
    look = Overview(client.cache)
    assert look.cancel(look.runs()[0], None) == 2
    assert queue.cancels == [[mine]]


def test_the_jobs_of_every_flux_instance_are_those_of_flux(client: Client, queue: Queue) -> None:
    queue.name = "flux@host/run/flux/local"
    client.run(prepared("runs"))
    queue.say("runs", JobState.RUNNING)
    folder = client.cache.path
    (entry,) = get_cache_data_queue(folder, queue_type="flux")
    assert entry["status"] == "running"
    assert get_cache_data_queue(folder, queue_type="slurm") == []
    terminate_tasks_in_cache(folder, backend="slurm")
    assert not queue.cancels
    terminate_tasks_in_cache(folder, backend="flux")
    assert queue.cancels == [[queue.id_of("runs")]]


@pytest.mark.parametrize("name", ["slurm-step", "flux-step", "workers"])
def test_jobs_that_live_with_another_client_are_told_of_by_their_records(
    client: Client, queue: Queue, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    queue.name = name
    client.run(prepared("runs"), prepared("waits"), prepared("done"))
    client.publish("done")
    claim = client.claims.current(key_of("runs"))
    assert claim is not None
    here = Owner.current()
    named = {"host": here.host, "boot_id": here.boot_id, "process_started": here.started}
    record = {"job_id": "1", "time": 0.0, "pid": here.pid, **named}
    attempts.start(client.cache, claim.key, claim.generation, record)
    another = dataclasses.replace(here, pid=os.getppid(), started="another time")
    monkeypatch.setattr(Owner, "current", lambda: another)
    look = Overview(client.cache)
    (run,) = look.runs()
    for alive, expected in (
        (True, (1, 0, 1, 1, 0)),
        (None, (1, 0, 0, 0, 2)),
        (False, (1, 2, 0, 0, 0)),
    ):
        monkeypatch.setattr(Owner, "alive", lambda owner, alive=alive: alive)
        assert counts(look.status(run)) == expected
        assert not look.can_ask(run)
