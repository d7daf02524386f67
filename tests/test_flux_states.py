"""From events and answers of Flux to states: pure, and the journal that remembers them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from dask_batch.backends.base import JobState
from dask_batch.backends.flux.instance import Dependency, Event, Phase, Row
from dask_batch.backends.flux.journal import Journal
from dask_batch.backends.flux.states import after, status_of
from dask_batch.errors import BackendUnavailableError

EVENTS = {
    "submit": {"urgency": 0},
    "validate": {},
    "depend": {},
    "priority": {"priority": 16},
    "urgency": {"urgency": 16},
    "alloc": {},
    "start": {},
    "finish": {"status": 0},
    "release": {},
    "clean": {},
}


def told(*names: str, row: Row | None = None, **contexts: dict) -> Row:
    """Return what is known of a job after some events."""
    for name in names:
        context = contexts.get(name, EVENTS.get(name, {}))
        row = after(row, Event("f1", name, context, job_name="a" if name == "submit" else ""))
    assert row is not None
    return row


def test_a_life_in_events():
    seen = []
    row = None
    for name in EVENTS:
        row = told(name, row=row)
        seen.append(status_of(row).state)
    held, waiting, running = JobState.HELD, JobState.WAITING, JobState.RUNNING
    ending = JobState.ENDING
    assert seen == [held] * 4 + [waiting] + [running] * 2 + [ending] * 2 + [JobState.COMPLETED]
    assert status_of(row).name == "a"


def test_what_a_job_waits_for():
    row = told("submit", submit={"urgency": 16})
    dependency = Dependency("after-success", "f2")
    row = after(row, Event("f1", "dependency-add", dependency=dependency))
    assert row.waits_for == {dependency}
    assert status_of(row).reason == "Dependency"
    row = told("depend", "priority", row=row)
    assert status_of(row).reason == "Resources"


@pytest.mark.parametrize(
    ("kind", "note", "state", "word"),
    [
        ("cancel", "", JobState.CANCELLED, "CANCELED"),
        ("timeout", "resource allocation expired", JobState.TIMEOUT, "TIMEOUT"),
        ("dependency", "never started", JobState.DEPENDENCY_FAILED, "FAILED"),
        ("alloc", "unsatisfiable request", JobState.FAILED, "FAILED"),
        ("exec", "task 0: start failed: No such file", JobState.FAILED, "FAILED"),
        ("exec", "lost contact with job shell on n3", JobState.NODE_FAILURE, "FAILED"),
        ("node-failure", "", JobState.NODE_FAILURE, "FAILED"),
        ("preempt", "", JobState.PREEMPTED, "FAILED"),
        ("a-plugin-of-the-site", "no", JobState.FAILED, "FAILED"),
    ],
)
def test_exceptions_that_end_jobs(kind, note, state, word):
    fatal = {"type": kind, "severity": 0, "note": note}
    row = told("submit", "alloc", "exception", exception=fatal)
    assert status_of(row).state is JobState.ENDING
    seen = status_of(told("clean", row=row))
    assert (seen.state, seen.word, seen.exit_code) == (state, word, None)
    assert seen.reason == f"{kind}: {note}"


def test_an_exception_that_is_not_fatal_ends_nothing():
    warned = {"type": "cancel", "severity": 3}
    row = told("submit", "alloc", "exception", "finish", "clean", exception=warned)
    assert status_of(row).state is JobState.COMPLETED


def test_of_several_exceptions_the_first_one_counts():
    row = told("submit", "alloc")
    for kind in ("timeout", "cancel"):
        row = after(row, Event("f1", "exception", {"type": kind, "severity": 0}))
    assert status_of(told("clean", row=row)).state is JobState.TIMEOUT


@pytest.mark.parametrize(
    ("status", "exit_code", "signal"), [(7 << 8, 7, None), (137 << 8, 137, None), (9, None, 9)]
)
def test_exit_codes_and_signals(status, exit_code, signal):
    row = told("submit", "alloc", "finish", "clean", finish={"status": status})
    seen = status_of(row)
    assert (seen.state, seen.exit_code, seen.signal) == (JobState.FAILED, exit_code, signal)


# ---- the journal -------------------------------------------------------------------------------


class Scripted:
    """An instance that says what a test has it say."""

    def __init__(self, *, owned: bool = True) -> None:
        self.owned = owned
        self.said: list[Row] = []
        self.asked: list[list[str]] = []
        self.down = False
        self._events: list[Event] = []
        self._changed = threading.Condition()

    def rows(self, job_ids: list[str]) -> list[Row]:
        if self.down:
            raise BackendUnavailableError("it is down")
        self.asked.append(list(job_ids))
        return [row for row in self.said if row.job_id in job_ids]

    def tell(self, *events: Event) -> None:
        with self._changed:
            self._events += events
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._events, 10)

    def events(self, stopped: Callable[[], bool]) -> Iterator[Event | None]:
        yield None
        while not stopped():
            with self._changed:
                self._changed.wait(0.05)
                events, self._events = self._events, []
                yield from events
                self._changed.notify_all()
            if self.down:
                raise BackendUnavailableError("it is down")
            yield None

    def close(self) -> None:
        pass


@pytest.fixture
def instance() -> Scripted:
    return Scripted()


@pytest.fixture
def journal(instance: Scripted) -> Iterator[Journal]:
    journal = Journal(instance, threading.Event())
    yield journal
    journal.close()


RUNNING = Row("f1", "a", Phase.RUN)


def test_what_the_journal_tells_is_not_asked(instance, journal):
    journal.ensure()
    instance.tell(Event("f1", "submit", {"urgency": 16}, job_name="a"), Event("f1", "alloc"))
    assert journal.rows(["f1"])["f1"].phase is Phase.RUN
    assert instance.asked == []


def test_what_is_not_known_is_asked_once_and_events_lead_on(instance, journal):
    instance.said = [RUNNING]
    for _ in range(2):
        assert journal.rows(["f1"]) == {"f1": RUNNING}
    assert instance.asked == [["f1"]]
    instance.tell(Event("f1", "finish", {"status": 256}), Event("f1", "clean"))
    assert journal.rows(["f1"])["f1"].wait_status == 256
    assert instance.asked == [["f1"]]


def test_an_answer_that_is_older_than_the_events_is_asked_again(instance, journal):
    journal.ensure()
    instance.said = [RUNNING]
    instance.tell(Event("f1", "clean"))  # whose finish was before the journal
    assert journal.rows(["f1"]) == {"f1": RUNNING}
    ended = replace(RUNNING, phase=Phase.INACTIVE, wait_status=256)
    instance.said = [ended]
    assert journal.rows(["f1"]) == {"f1": ended}
    assert len(instance.asked) == 2


def test_news_of_what_was_asked_about_and_of_nothing_else(instance):
    news = threading.Event()
    journal = Journal(instance, news)
    instance.said = [RUNNING]
    journal.rows(["f1"])
    instance.tell(Event("f2", "submit", {}), Event("f2", "clean"), Event("f1", "annotations"))
    assert not news.is_set()
    instance.tell(Event("f1", "finish", {"status": 0}))
    assert news.is_set()
    journal.close()


def test_a_journal_that_ends_concludes_nothing_and_begins_again(instance):
    news = threading.Event()
    journal = Journal(instance, news)
    instance.said = [RUNNING]
    journal.rows(["f1"])
    instance.down = True
    assert news.wait(10)
    with pytest.raises(BackendUnavailableError):
        journal.rows(["f1"])
    instance.down = False
    instance.said = [replace(RUNNING, phase=Phase.INACTIVE, wait_status=0)]
    deadline = time.monotonic() + 10
    while journal.rows(["f1"])["f1"].phase is not Phase.INACTIVE:
        assert time.monotonic() < deadline
    journal.close()


def test_a_guest_asks(monkeypatch):
    instance = Scripted(owned=False)
    journal = Journal(instance, threading.Event())
    instance.said = [RUNNING]
    for _ in range(2):
        assert journal.rows(["f1"]) == {"f1": RUNNING}
    assert instance.asked == [["f1"]] * 2


def test_a_list_may_lag_behind_the_journal(instance, journal):
    journal.ensure()
    instance.tell(
        Event("f1", "submit", {"urgency": 16}, job_name="a"),
        *(Event("f1", name, EVENTS[name]) for name in ("alloc", "finish", "clean")),
    )
    (row,) = journal.newest([RUNNING])
    assert row.phase is Phase.INACTIVE


def test_the_journal_may_lag_behind_a_list(instance, journal):
    journal.ensure()
    instance.tell(Event("f1", "submit", {"urgency": 16}, job_name="a"))
    assert journal.newest([RUNNING]) == [RUNNING]
    assert journal.rows(["f1"])["f1"].phase is Phase.DEPEND


def test_only_so_much_is_remembered(instance, journal, monkeypatch):
    monkeypatch.setattr("dask_batch.backends.flux.journal._KEPT", 10)
    journal.ensure()
    instance.said = [RUNNING]
    journal.rows(["f1"])
    for number in range(2, 100):
        job_id = f"f{number}"
        instance.tell(Event(job_id, "submit", {}, job_name="b"), Event(job_id, "clean"))
    assert len(journal._rows) < 20
    assert journal.rows(["f1"]) == {"f1": RUNNING}
    assert len(instance.asked) == 1
