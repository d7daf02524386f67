"""Jobs that are held although they were let go."""

from __future__ import annotations

from pathlib import Path

import pytest

from dask_batch import letting_go
from dask_batch.backends.base import JobState
from watching import Client, Queue, prepared


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
