"""What is under way: verdicts, and what nothing may do to them."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from dask_batch.backends.base import JobState
from dask_batch.cache import attempts
from dask_batch.errors import (
    BackendError,
    CacheError,
    CancelledTaskError,
    DependencyFailedError,
    EnvironmentTaskError,
    GivenUpTaskError,
    LostTaskError,
    OutOfMemoryTaskError,
    TaskError,
    TimeoutTaskError,
)
from dask_batch.following.entries import Pace
from dask_batch.verdicts.breaker import THRESHOLD
from watching import AT_ONCE, OUTAGE, Client, Queue, key_of, prepared


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def client(tmp_path: Path, queue: Queue) -> Client:
    return Client(tmp_path, queue)


# ---- verdicts ----------------------------------------------------------------------------------


def test_a_result_resolves_and_a_failure_takes_down_what_depends_on_it_alone(
    client: Client, queue: Queue
) -> None:
    futures = client.run(
        prepared("bad"), prepared("child", "bad"), prepared("grandchild", "child"), prepared("fine")
    )
    queue.say("bad", JobState.TIMEOUT, word="TIMEOUT", source="sacct")
    client.publish("fine")
    client.look(2)
    assert futures["fine"].result(0) == "fine"
    error = futures["bad"].exception(0)
    assert isinstance(error, TimeoutTaskError)
    assert (error.key, error.function, error.job_id) == (key_of("bad"), "bad", queue.id_of("bad"))
    assert (error.state, error.evidence) == ("TIMEOUT", "sacct says TIMEOUT")
    assert error.log is not None
    assert error.advice
    for name in ("child", "grandchild"):
        fell = futures[name].exception(0)
        assert isinstance(fell, DependencyFailedError)
        assert fell.root == key_of("bad")
        assert fell.__cause__ is error
    assert queue.cancels == [sorted([queue.id_of("child"), queue.id_of("grandchild")])]
    assert client.ended("grandchild")["root"] == key_of("bad")
    assert not client.watch.entries


def test_what_waits_for_ever_is_taken_out_of_the_queue(
    client: Client, queue: Queue, tmp_path: Path
) -> None:
    client.run(prepared("bad"), prepared("child", "bad"), prepared("grandchild", "child"))
    queue.say("bad", JobState.TIMEOUT)
    queue.say("child", JobState.DEPENDENCY_FAILED, word="PENDING")
    client.look(2)
    child, grandchild = queue.id_of("child"), queue.id_of("grandchild")
    assert queue.cancels == [sorted([child, grandchild])]
    # The next client finds another one that nobody has swept away.
    Client(tmp_path, queue).run(prepared("worse"), prepared("heir", "worse"))
    queue.say("worse", JobState.TIMEOUT)
    queue.say("heir", JobState.DEPENDENCY_FAILED, word="PENDING")
    old = queue.id_of("heir")
    Client(tmp_path, queue).run(prepared("worse"), prepared("heir", "worse"))
    assert queue.cancels[-1] == [old]


def test_what_the_daemon_wrote_into_the_log_refines_a_death(client: Client, queue: Queue) -> None:
    futures = client.run(prepared("big"))
    log = client.entry("big").standing.log_stem.with_suffix(".err")
    log.write_text("slurmstepd: error: Step 1.batch exceeded memory limit (2 > 1), being killed\n")
    queue.say("big", JobState.FAILED, signal=9)
    client.look(2)
    error = futures["big"].exception(0)
    assert isinstance(error, OutOfMemoryTaskError)
    assert "exceeded memory limit" in error.tail
    assert client.ended("big")["outcome"] == "out of memory"


def test_a_time_limit_tells_where_the_function_stood(client: Client, queue: Queue) -> None:
    futures = client.run(prepared("long"))
    cut = {
        "time": 1.0,
        "left_s": 29.5,
        "traceback": '  File "mine.py", line 7, in fit\n    step()\n',
    }
    attempts.record_cut(client.cache, key_of("long"), 0, cut)
    queue.say("long", JobState.TIMEOUT)
    client.look(2)
    error = futures["long"].exception(0)
    assert isinstance(error, TimeoutTaskError)
    assert 'File "mine.py", line 7, in fit' in str(error)
    assert "mine.py" in str(error.__cause__)


def test_two_clients_that_conclude_at_once_say_the_same(
    client: Client, queue: Queue, tmp_path: Path
) -> None:
    futures = client.run(prepared("late"))
    client.look()
    # The job's own record appears between this client's look and its conclusion.
    client.end("late", 0, outcome="unstorable", message="the result is a socket")
    queue.say("late", JobState.FAILED, exit_code=1)
    client.look(2)
    assert "socket" in str(futures["late"].exception(0))


# ---- not known ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [OUTAGE, OSError(12, "no memory for a child"), ValueError("an unreadable line")]
)
def test_an_outage_changes_nothing(client: Client, queue: Queue, error: Exception) -> None:
    futures = client.run(prepared("one"))
    queue.outage = error
    client.look(5)
    assert not futures["one"].done()
    queue.outage = None
    client.publish("one")
    client.look()
    assert futures["one"].result(0) == "one"


def test_an_outage_is_asked_about_again_soon_and_then_less_and_less(
    tmp_path: Path, queue: Queue
) -> None:
    from dask_batch.following.polling import Polling

    pace = Pace(5.0, 120.0)
    polling = Polling(queue, pace)
    client = Client(tmp_path, queue, pace=pace)
    client.run(prepared("one"))
    entries = list(client.watch.entries.values())
    queue.outage = OUTAGE
    now, waits = entries[0].since, []
    for _ in range(8):
        polling.poll(entries, now)
        ahead = next(s for s in range(1, 1000) if polling.due(now + s))
        waits.append(ahead)
        now += ahead
    assert waits == [5, 10, 20, 40, 80, 120, 120, 120]
    queue.outage = None
    polling.poll(entries, now)
    assert polling.due(now + 30)


def test_a_job_that_a_shared_system_does_not_know_is_handed_in_again(
    client: Client, queue: Queue
) -> None:
    futures = client.run(prepared("one"))
    for attempt in range(3):
        queue.purged.add(queue.id_of("one"))
        client.look(4)
        assert len(queue.reruns) == attempt + 1
        assert not futures["one"].done()
    queue.purged.add(queue.id_of("one"))
    client.look(4)
    error = futures["one"].exception(0)
    assert isinstance(error, LostTaskError)
    assert len(queue.reruns) == 3


def test_what_was_lost_with_its_parents_is_handed_in_when_they_are_there(
    client: Client, queue: Queue
) -> None:
    futures = client.run(prepared("one"), prepared("two", "one"), prepared("three", "two"))
    queue.purged.update(queue.jobs)
    client.look(5)
    lost = queue.id_of("one")
    assert [each[0] for each in queue.reruns] == ["100"]
    for name in ("one", "two", "three"):
        assert not futures["three"].done()
        client.publish(name)
        client.look(5)
    assert [each[0] for each in queue.reruns] == ["100", "101", "102"]
    assert lost not in queue.purged
    assert [future.result(0) for future in futures.values()] == ["one", "two", "three"]


def test_what_the_queue_said_before_the_end_is_not_the_state_of_the_end(
    client: Client, queue: Queue
) -> None:
    futures = client.run(prepared("late"))
    queue.say("late", JobState.RUNNING)
    client.look()
    client.end("late", 0, outcome="unstorable", message="the result is a socket")
    client.look()
    error = futures["late"].exception(0)
    assert isinstance(error, TaskError)
    assert error.state == "ended"


def test_one_answer_without_the_job_is_no_evidence(client: Client, queue: Queue) -> None:
    futures = client.run(prepared("one"))
    queue.purged.add(queue.id_of("one"))
    client.look()
    queue.purged.clear()
    client.look(3)
    assert not futures["one"].done()
    assert not queue.reruns


def test_a_queue_of_our_own_may_not_know_a_job_for_ever(tmp_path: Path) -> None:
    queue = Queue(shared=False)
    client = Client(tmp_path, queue)
    futures = client.run(prepared("one"))
    queue.purged.add(queue.id_of("one"))
    client.look(20)
    assert not futures["one"].done()
    assert not queue.reruns


def test_an_id_that_was_given_to_another_job_tells_nothing_of_ours(
    client: Client, queue: Queue
) -> None:
    futures = client.run(prepared("one"))
    queue.say("one", JobState.FAILED, name="somebody-elses")
    client.look(2)
    assert not futures["one"].done()
    assert client.ended("one")["outcome"] == "lost"
    assert len(queue.reruns) == 1


# ---- isolation ---------------------------------------------------------------------------------


def test_a_mistake_about_one_entry_fails_it_alone_and_truthfully(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    futures = client.run(prepared("odd"), prepared("fine"))
    read_end = attempts.read_end

    def bad(cache: Any, key: str, generation: int) -> Any:
        if key == key_of("odd"):
            raise ZeroDivisionError("a mistake")
        return read_end(cache, key, generation)

    monkeypatch.setattr(attempts, "read_end", bad)
    client.end("odd", 0, outcome="exception")
    client.publish("fine")
    client.look()
    assert futures["fine"].result(0) == "fine"
    assert "a mistake" in caplog.text
    for _ in range(10):
        if client.watch.entries:
            client.entry("odd").quiet_until = 0.0
        client.look()
    error = futures["odd"].exception(0)
    assert isinstance(error, TaskError)
    assert "cannot be found out" in str(error)
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_a_store_that_cannot_be_read_for_a_while_changes_nothing(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    futures = client.run(prepared("one"))
    with monkeypatch.context() as patched:

        def stale(keys: Any) -> set[str]:
            raise OSError(116, "Stale file handle")

        patched.setattr(client.cache, "present", stale)
        client.look(20)
    assert not futures["one"].done()
    client.publish("one")
    client.look()
    assert futures["one"].result(0) == "one"


def test_a_directory_that_cannot_be_read_hides_nothing_of_the_others(
    client: Client, queue: Queue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    futures = client.run(prepared("odd"), prepared("fine"), prepared("bad"), prepared("last"))
    present = client.cache.present

    def partly(keys: Any) -> set[str]:
        if key_of("odd") in keys:
            raise CacheError(5, "Input/output error")
        return present(keys)

    monkeypatch.setattr(client.cache, "present", partly)
    client.publish("fine")
    client.end("bad", 0, outcome="timeout")
    client.look()
    assert futures["fine"].result(0) == "fine"
    assert isinstance(futures["bad"].exception(0), TimeoutTaskError)
    # The system's error is waited out; minutes of it are told.
    for _ in range(20):
        client.entry("odd").quiet_until = 0.0
        client.look()
    assert not futures["odd"].done()
    entry = client.entry("odd")
    entry.troubled_at -= 3600.0
    entry.quiet_until = 0.0
    client.look()
    error = futures["odd"].exception(0)
    assert "cannot be found out" in str(error)
    assert caplog.text.count("looking at odd") == 1


@pytest.mark.parametrize("raised", [ValueError("mine"), SystemExit(3)])
def test_observers_and_callbacks_that_fail_disturb_nobody(
    client: Client, caplog: pytest.LogCaptureFixture, raised: BaseException
) -> None:
    futures = client.run(prepared("one"), prepared("two"))

    def bad(*_: object) -> None:
        raise raised

    client.watch.observe(key_of("one"), bad)
    futures["one"].add_done_callback(bad)
    client.publish("one")
    client.publish("two")
    client.look()
    assert [futures[name].result(0) for name in ("one", "two")] == ["one", "two"]
    assert "callback failed" in caplog.text


# ---- giving up ---------------------------------------------------------------------------------


def test_a_graph_whose_first_jobs_cannot_begin_is_given_up(client: Client, queue: Queue) -> None:
    told: list[tuple[str, BaseException]] = []
    client.watch.given_up = lambda run_id, error: told.append((run_id, error))
    names = [f"t{n}" for n in range(30)]
    futures = client.run(*map(prepared, names))
    run_id = client.entry("t0").standing.run_id
    for name in names[:THRESHOLD]:
        queue.say(name, JobState.FAILED, exit_code=127)
    client.look(2)
    first = futures["t0"].exception(0)
    assert isinstance(first, EnvironmentTaskError)
    for name in names[THRESHOLD:]:
        error = futures[name].exception(0)
        assert isinstance(error, GivenUpTaskError)
        assert isinstance(error.__cause__, EnvironmentTaskError)
        assert "127" in str(error)
        assert str(THRESHOLD) in str(error)
        assert client.ended(name)["outcome"] == "given up"
    assert queue.cancels == [sorted(queue.id_of(name) for name in names[THRESHOLD:])]
    assert [each[0] for each in told] == [run_id]
    assert not client.watch.entries


def test_who_looks_after_a_run_gives_it_up_as_its_owner_would(tmp_path: Path, queue: Queue) -> None:
    jobs = [prepared(f"t{n}") for n in range(10)]
    owner, other, steward = (Client(tmp_path, queue) for _ in range(3))
    owner.run(*jobs)  # and is not heard of again
    steward.watch.guarded.add(owner.entry("t0").standing.run_id)
    futures, seen = steward.run(*jobs), other.run(*jobs)
    for n in range(THRESHOLD):
        record = {"outcome": "environment", "message": "no cache here", "host": "n7"}
        other.end(f"t{n}", 0, **record)
    other.look(2)
    assert not queue.cancels  # a client that only follows ends nothing
    steward.look(2)
    assert queue.cancels == [sorted(queue.id_of(f"t{n}") for n in range(THRESHOLD, 10))]
    error = futures["t9"].exception(0)
    assert isinstance(error, GivenUpTaskError)
    assert "on n7" in error.message
    assert "--exclude=n7" in error.advice
    assert queue.id_of("t0") in error.evidence
    other.look(2)
    assert isinstance(seen["t9"].exception(0), GivenUpTaskError)


def test_what_others_have_seen_work_counts(tmp_path: Path, queue: Queue) -> None:
    jobs = [prepared(f"t{n}") for n in range(10)]
    owner, steward = Client(tmp_path, queue), Client(tmp_path, queue)
    owner.run(*jobs)
    owner.publish("t9")
    steward.watch.guarded.add(owner.entry("t0").standing.run_id)
    futures = steward.run(*jobs[:9])
    for n in range(THRESHOLD):
        queue.say(f"t{n}", JobState.FAILED, exit_code=127)
    steward.look(2)
    assert not futures["t8"].done()
    assert not queue.cancels


def test_one_that_is_at_work_shows_that_the_others_are_not_hopeless(
    client: Client, queue: Queue
) -> None:
    names = [f"t{n}" for n in range(30)]
    futures = client.run(*map(prepared, names))
    record = {"job_id": queue.id_of("t29"), "host": "n1", "pid": 1, "boot_id": "b",
              "process_started": "1", "restart": 0, "time": 0.0}  # fmt: skip
    attempts.start(client.cache, key_of("t29"), 0, record)
    for name in names[:20]:
        queue.say(name, JobState.FAILED, exit_code=127)
    client.look(2)
    assert sum(f.done() for f in futures.values()) == 20
    assert not queue.cancels


def test_failing_functions_are_never_given_up(client: Client) -> None:
    names = [f"t{n}" for n in range(20)]
    futures = client.run(*map(prepared, names))
    for name in names[:10]:
        client.end(name, 0, outcome="exception", message="ValueError: no")
    client.look(2)
    assert sum(f.done() for f in futures.values()) == 10


# ---- cancelling --------------------------------------------------------------------------------


def test_the_last_one_interested_ends_the_job(tmp_path: Path, queue: Queue) -> None:
    owner, other = Client(tmp_path, queue), Client(tmp_path, queue)
    jobs = [prepared("parent"), prepared("child", "parent"), prepared("alone")]
    first = owner.run(*jobs)
    second = other.run(*jobs)
    assert len(queue.jobs) == 3
    owner.watch.cancel(waiting_only=False)
    # Nobody waits for anything of the owner's but the other client, which wants all of it.
    assert not queue.cancels
    assert all(future.cancelled() for future in first.values())
    for name in ("parent", "child"):
        second[name].cancel()
        other.watch.forget(second[name])
    assert [set(each) for each in queue.cancels] == [{queue.id_of("parent"), queue.id_of("child")}]
    assert other.ended("child")["outcome"] == "cancelled"
    other.publish("alone")
    other.look()
    assert second["alone"].result(0) == "alone"


def test_a_follower_that_cancels_first_ends_nothing(tmp_path: Path, queue: Queue) -> None:
    owner, other = Client(tmp_path, queue), Client(tmp_path, queue)
    owner.run(prepared("one"))
    other.run(prepared("one"))
    other.watch.cancel(waiting_only=False)
    assert not queue.cancels
    owner.watch.cancel(waiting_only=False)
    assert queue.cancels == [[queue.id_of("one")]]
    assert owner.ended("one")["outcome"] == "cancelled"


def test_what_is_cancelled_from_outside_says_so_while_its_parents_run(
    client: Client, queue: Queue
) -> None:
    futures = client.run(prepared("parent"), prepared("child", "parent"))
    queue.say("parent", JobState.RUNNING)
    queue.say("child", JobState.CANCELLED)
    client.look(2)
    assert isinstance(futures["child"].exception(0), CancelledTaskError)
    assert not futures["parent"].done()


def test_a_cancel_that_fails_is_tried_again(
    client: Client, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    futures = client.run(prepared("bad"), prepared("child", "bad"), prepared("other"))
    queue.say("bad", JobState.TIMEOUT)
    with monkeypatch.context() as patched:

        def refuse(job_ids: Any) -> None:
            raise BackendError("not now")

        patched.setattr(queue, "cancel", refuse)
        client.look(2)
    assert futures["child"].done()
    client.look()
    assert not queue.cancels  # what nobody answers is not asked again and again
    client.watch._sweep._not_before = 0.0
    client.look()
    assert queue.cancels == [[queue.id_of("child")]]


# ---- the rhythm --------------------------------------------------------------------------------


def test_quiet_looks_cost_next_to_nothing_and_young_ones_are_quick() -> None:
    from dask_batch.following.polling import Rhythm

    rhythm = Rhythm(0.0)
    cost_s, now, spent, looks = 0.015, 0.0, 0.0, 0
    while now < 600.0:
        rhythm.looked(now, now + cost_s, soon=False)
        spent += cost_s
        looks += 1
        now = max(now + cost_s + rhythm.look_s, rhythm.not_before)
    assert spent / now < 0.005
    assert looks > 100
    assert rhythm.look_s <= Rhythm.LONGEST_S
    rhythm.changed(now)
    rhythm.looked(now, now + 0.0001, soon=False)
    assert rhythm.look_s < 0.05
    rhythm.looked(now + 1000, now + 1000.0001, soon=True)
    assert rhythm.look_s <= 0.5


def test_nothing_of_a_watch_lives_in_other_threads(client: Client) -> None:
    before = threading.active_count()
    client.run(prepared("one"))
    client.look(3)
    assert threading.active_count() == before
    logging.getLogger("dask_batch.following.watch")
    assert client.watch.pace is AT_ONCE
