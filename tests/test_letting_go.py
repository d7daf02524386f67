"""Jobs that are held although they were let go."""

from __future__ import annotations

from pathlib import Path

import pytest

from dask_batch.backends.base import JobState
from dask_batch.following import letting_go
from dask_batch.verdicts.retry import RetryPolicy
from watching import OUTAGE, Client, Queue, key_of, prepared


@pytest.fixture
def queue() -> Queue:
    return Queue()


def test_what_the_controller_forgot_to_let_go_is_let_go_once_more(
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(tmp_path, queue)
    client.run(prepared("one"), prepared("two"))
    queue.releases.clear()
    queue.say("one", JobState.HELD)
    queue.say("two", JobState.WAITING)
    client.look(3)
    assert not queue.releases  # whoever repeats a job holds it for moments
    monkeypatch.setattr(letting_go, "_AFTER_S", -1.0)
    client.look(3)
    # Once: a user may hold a job of his own.
    assert queue.releases == [[queue.id_of("one")]]


def test_what_was_not_let_go_stays_held(
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letting_go, "_AFTER_S", -1.0)
    client = Client(tmp_path, queue)
    client.run(prepared("one"))
    for log in client.cache.path.glob("runs/*.log"):
        lines = [line for line in log.read_text().splitlines() if '"released"' not in line]
        log.write_text("\n".join(lines) + "\n")
    queue.releases.clear()
    queue.say("one", JobState.HELD)
    client.look(3)
    assert not queue.releases


def test_what_comes_back_held_is_let_go_again_and_not_for_ever(
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letting_go, "_AFTER_S", -1.0)
    client = Client(tmp_path, queue)
    client.run(prepared("one"))
    queue.releases.clear()
    for times in (1, 2, 3, 3):
        queue.say("one", JobState.HELD, reason="JobHeldUser")
        client.look(3)
        assert len(queue.releases) == times
        queue.say("one", JobState.WAITING, reason="Priority")
        client.look(3)


def test_after_an_outage_what_was_held_all_the_time_may_have_been_let_go_in_vain(
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letting_go, "_AFTER_S", -1.0)
    client = Client(tmp_path, queue)
    client.run(prepared("one"))
    queue.releases.clear()
    queue.say("one", JobState.HELD)
    client.look(3)
    assert len(queue.releases) == 1
    queue.outage = OUTAGE
    client.look()
    queue.outage = None
    client.watch._polling._next = 0.0
    client.look(3)
    assert len(queue.releases) == 2


def test_what_is_held_because_it_is_repeated_is_finished_rather_than_let_go(
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has not been given yet what its next attempt is to have."""
    monkeypatch.setattr(letting_go, "_AFTER_S", -1.0)
    client = Client(tmp_path, queue)
    client.run(prepared("one", retry=RetryPolicy(1), resources={"memory_max": 1}))
    queue.releases.clear()
    queue.say("one", JobState.OUT_OF_MEMORY)
    claim = client.claims.current(key_of("one"))
    assert claim is not None
    client.end("one", 0, outcome="out of memory")
    client.claims.claim(claim.key, claim.run, after=0)  # another client repeats it
    client.look(3)
    queue.say("one", JobState.HELD, reason="job requeued in held state")
    client.look(3)
    assert not queue.releases
    assert not queue.reruns
    client.entry("one").act_at -= 3600  # ... and has died
    client.look(3)
    assert [(job_id, more["memory_max"]) for job_id, more, _ in queue.reruns] == [
        (queue.id_of("one"), 2)
    ]
    # From now on it may be one that came back held.
    queue.say("one", JobState.HELD)
    client.look(3)
    assert queue.releases == [[queue.id_of("one")]]
