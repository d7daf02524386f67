"""What it costs to follow many jobs, and that an answer that takes long does no harm."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

import pytest

from dask_batch.backends.base import JobState, JobStatus
from dask_batch.cache.store import Cache
from dask_batch.configuration.options import Options
from dask_batch.evidence.standing import Standing
from dask_batch.following.entries import Entry, Pace
from dask_batch.following.polling import Polling, Rhythm
from dask_batch.session import Session
from scripted import Clock, Scripted, handed_over

HOUR_S = 3600.0


def entry(number: int) -> Entry:
    standing = Standing(
        key=f"{number:064x}",
        generation=0,
        run_id="run",
        job_name=f"f-run-{number}",
        job_id=str(number),
        backend="scripted",
        log_stem=Path(f"/logs/{number}"),
    )
    return Entry(standing, "f", since=0.0)


def test_a_thousand_jobs_are_asked_about_in_one_call_and_sixty_calls_an_hour() -> None:
    backend = Scripted()
    entries = [entry(i) for i in range(1000)]
    backend.states = {str(i): JobState.WAITING for i in range(1000)}
    polling = Polling(backend, Pace())
    calls = [0.0] * 4
    for second in range(4 * int(HOUR_S)):
        if polling.due(second):
            before = backend.answers
            polling.poll(entries, second)
            assert backend.answers == before + 1
            calls[int(second // HOUR_S)] += 1
    assert calls[0] <= 120  # while the run is young
    assert all(number <= 60 for number in calls[1:])
    assert calls[3] >= 25


@pytest.mark.parametrize("quiet_s", [0.0, 10.0, 1e5])
def test_what_takes_very_long_is_not_rested_from_for_very_long(quiet_s: float) -> None:
    rhythm = Rhythm(0.0)
    rhythm.looked(quiet_s, quiet_s + 600.0, soon=False)
    assert rhythm.not_before <= quiet_s + 600.0 + Rhythm.LONGEST_REST_S
    assert rhythm.look_s <= Rhythm.LONGEST_REST_S


def test_looks_take_their_share_of_the_time_and_no_more() -> None:
    rhythm, now, spent = Rhythm(0.0), 0.0, 0.0
    for _ in range(10_000):
        now = max(now + rhythm.look_s, rhythm.not_before)
        rhythm.looked(now, now + 0.02, soon=False)
        now, spent = now + 0.02, spent + 0.02
    assert spent / now < 0.01


class Slow(Scripted):
    """Takes a minute for each answer."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def status(self, job_ids: Collection[str]) -> dict[str, JobStatus]:
        self.clock.ahead_s += 60.0
        return super().status(job_ids)


def test_an_answer_that_takes_a_minute_is_not_rested_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    options = Options("scripted", tmp_path, shortest_poll_s=0.02, longest_poll_s=0.02)
    session = Session(Cache(tmp_path), Slow(clock), options)
    future = session.call(max, (1, 2), {}, {})
    handed_over(session, future)
    session.backend.heard()  # three answers, for which there would be hours of rest
    Cache(tmp_path).publish(future.key, 2, {})
    assert future.result(30) == 2
    session.close(wait=False, cancel=True)
