"""Jobs that a controller brought back to life in its books: found, ended, and none but them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dask_batch.backends.base import JobState, JobStatus
from dask_batch.cache import attempts
from dask_batch.cache.owner import Owner
from dask_batch.following import ghosts, vanished
from dask_batch.verdicts.retry import RetryPolicy
from watching import OUTAGE, Client, Queue, key_of, prepared


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def client(tmp_path: Path, queue: Queue) -> Client:
    return Client(tmp_path, queue)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it be looked for ghosts at every look; they take their time still."""
    monkeypatch.setattr(ghosts, "_GATHER_S", 0.0)
    monkeypatch.setattr(ghosts, "_RARELY_S", 0.0)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(ghosts, "_STUCK", dict.fromkeys(ghosts._STUCK, -1.0))


def wait_for(queue: Queue, *tasks: str, reason: str) -> None:
    for task in tasks:
        queue.say(task, JobState.WAITING, word="PENDING", reason=reason)


# ---- in the way of what waits for them ---------------------------------------------------------


def test_a_job_that_the_controller_forgot_to_end_does_not_keep_others_waiting(
    client: Client, queue: Queue, later: Callable[[], None]
) -> None:
    futures = client.run(prepared("parent"), prepared("child", "parent"))
    queue.say("parent", JobState.RUNNING)
    wait_for(queue, "child", reason="Dependency")
    client.publish("parent")
    client.look(5)
    assert futures["parent"].result(0) == "parent"
    assert not queue.cancels
    later()
    client.look(2)
    assert queue.cancels == [[queue.id_of("parent")]]
    # Its dependent falls, and is run again: what it needs is there.
    queue.say("child", JobState.DEPENDENCY_FAILED)
    client.look(3)
    assert [each[0] for each in queue.reruns] == [queue.id_of("child")]
    assert not futures["child"].done()
    client.publish("child")
    client.look()
    assert futures["child"].result(0) == "child"


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (JobState.HELD, "JobHeldUser"),
        (JobState.LOST, "launch failed requeued held"),
        (JobState.DEPENDENCY_FAILED, "DependencyNeverSatisfied"),
    ],
)
def test_a_job_that_came_back_to_the_queue_for_ever_does_not_keep_others_waiting(
    client: Client,
    queue: Queue,
    later: Callable[[], None],
    state: JobState,
    reason: str,
) -> None:
    futures = client.run(prepared("parent"), prepared("child", "parent"))
    client.publish("parent")
    client.look()
    queue.say("parent", state, word="PENDING", reason=reason)
    wait_for(queue, "child", reason="Dependency")
    client.look(5)
    assert not queue.cancels
    later()
    client.look(2)
    assert queue.cancels == [[queue.id_of("parent")]]
    assert not futures["child"].done()
    client.look(3)
    assert len(queue.cancels) == 1  # it is not told again and again


def test_a_ghost_binds_what_is_over_as_well_and_that_is_ended_with_it(
    client: Client, queue: Queue, later: Callable[[], None]
) -> None:
    futures = client.run(prepared("one"), prepared("two", "one"), prepared("three", "two"))
    client.publish("one")
    client.publish("two")
    client.look()
    assert futures["two"].done()
    queue.say("one", JobState.RUNNING)
    wait_for(queue, "two", "three", reason="Dependency")
    client.look(5)
    assert not queue.cancels
    later()
    client.look(2)
    # "two" would wait for "one" until its time limit, and then for ever.
    assert queue.cancels == [[queue.id_of("two")]]
    queue.say("three", JobState.DEPENDENCY_FAILED)
    client.look(3)
    assert [each[0] for each in queue.reruns] == [queue.id_of("three")]


def test_what_is_over_and_waits_is_left_alone_where_nobody_waits_for_it_by_name(
    client: Client, queue: Queue, later: Callable[[], None]
) -> None:
    later()
    client.run(prepared("done"), prepared("hungry"))
    wait_for(queue, "done", "hungry", reason="Resources")
    client.publish("done")
    client.look(5)
    assert not queue.cancels


def test_after_an_outage_a_ghost_that_was_ended_may_be_back(
    client: Client, queue: Queue, later: Callable[[], None]
) -> None:
    later()
    client.run(prepared("parent"), prepared("child", "parent"))
    client.publish("parent")
    client.look()
    queue.say("parent", JobState.RUNNING)
    wait_for(queue, "child", reason="Dependency")
    client.look(5)
    assert queue.cancels == [[queue.id_of("parent")]]
    suffer_outage(client, queue)
    queue.say("parent", JobState.RUNNING)  # that it was ended had not been saved
    client.look(5)
    assert len(queue.cancels) == 2


def test_a_crash_between_two_polls_is_reckoned_with_too(
    client: Client, queue: Queue, later: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    later()
    client.run(prepared("parent"), prepared("child", "parent"))
    client.publish("parent")
    queue.say("parent", JobState.COMPLETED)
    wait_for(queue, "child", reason="Dependency")
    client.look(5)
    queue.say("parent", JobState.RUNNING)
    client.look(5)
    assert not queue.cancels  # it has left, as far as anybody knows
    client.watch.ghosts._forget_at = 0.0
    client.look(5)
    assert queue.cancels == [[queue.id_of("parent")]]


@pytest.mark.parametrize("by", ["outage", "need"])
def test_where_nothing_was_found_it_is_looked_again_in_time(
    client: Client, queue: Queue, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr(ghosts, "_GATHER_S", 1.0)
    monkeypatch.setattr(ghosts, "_RARELY_S", 300.0)
    client.run(prepared("parent"), prepared("child", "parent"), prepared("hungry"))
    queue.say("parent", JobState.RUNNING)
    wait_for(queue, "child", reason="Dependency")
    wait_for(queue, "hungry", reason="Resources")
    watched = client.watch.ghosts
    watched._pause_s = 1.0
    for _ in range(12):
        watched._gathered = -1e9
        client.look()
    assert watched._pause_s == 300.0
    watched._gathered -= 2.0
    assert not watched.suspected
    if by == "outage":
        suffer_outage(client, queue)
    else:
        client.publish("parent")
        client.look()
    client.watch._polling._next = 0.0
    gathered = watched._gathered
    client.look()
    assert watched._gathered > gathered


def suffer_outage(client: Client, queue: Queue) -> None:
    queue.outage = OUTAGE
    client.watch._polling._next = 0.0
    client.look()
    queue.outage = None
    client.watch._polling._next = 0.0


def test_who_never_watched_the_parents_finds_them_by_their_claims(
    tmp_path: Path, queue: Queue, later: Callable[[], None]
) -> None:
    first = Client(tmp_path, queue)
    first.run(prepared("one"), prepared("two"))
    jobs = [prepared("one"), prepared("two"), prepared("child", "one", "two")]
    first.run(*jobs)  # of another run than its parents
    first.publish("one")
    second = Client(tmp_path, queue)
    child = second.run(*jobs)["child"]
    queue.say("one", JobState.RUNNING)
    queue.say("two", JobState.RUNNING)
    wait_for(queue, "child", reason="Dependency")
    later()
    second.look(5)
    assert not queue.cancels  # the other one is at work
    second.publish("two")
    third = Client(tmp_path, queue)
    third.run(jobs[2])
    third.look()
    assert third.watch.ghosts.suspected
    third.look()
    assert queue.cancels == [sorted([queue.id_of("one"), queue.id_of("two")])]
    assert not child.done()


def test_a_job_that_others_have_stopped_waiting_for_may_take_its_time(
    client: Client, queue: Queue, later: Callable[[], None]
) -> None:
    later()
    client.run(prepared("parent"), prepared("child", "parent"))
    queue.say("parent", JobState.RUNNING)
    queue.say("child", JobState.RUNNING)
    client.look()
    client.publish("parent")
    client.look(5)
    assert not queue.cancels


@pytest.mark.parametrize(
    ("state", "more"),
    [
        (JobState.ENDING, {}),
        (JobState.COMPLETED, {}),
        (JobState.UNKNOWN, {"word": "NEW_WORD"}),
        (JobState.RUNNING, {"name": "somebody-elses"}),
    ],
)
def test_only_what_is_said_to_run_under_its_name_is_a_ghost(
    client: Client, queue: Queue, later: Callable[[], None], state: JobState, more: dict[str, str]
) -> None:
    later()
    client.run(prepared("parent"), prepared("child", "parent"))
    queue.say("parent", state, **more)
    wait_for(queue, "child", reason="Dependency")
    client.publish("parent")
    client.look(5)
    assert not queue.cancels


# ---- in the way of what waits for room ---------------------------------------------------------


def test_ghosts_do_not_starve_the_queue(
    tmp_path: Path, queue: Queue, later: Callable[[], None]
) -> None:
    first = Client(tmp_path, queue)
    first.run(prepared("done"), prepared("broken"), prepared("busy"))
    for name in ("done", "broken", "busy"):
        queue.say(name, JobState.RUNNING)
    first.publish("done")
    first.end("broken", 0, outcome="exception", message="ValueError: no")
    first.look(3)
    # Another client of the same cache waits, and has never heard of them.
    second = Client(tmp_path, queue)
    second.run(prepared("hungry"))
    wait_for(queue, "hungry", reason="Resources")
    second.look(5)
    assert not queue.cancels
    later()
    second.look(2)
    assert queue.cancels == [sorted([queue.id_of("done"), queue.id_of("broken")])]
    second.look(3)
    assert len(queue.cancels) == 1


@pytest.mark.parametrize("reason", ["Dependency", "BeginTime", "JobHeldUser"])
def test_what_waits_for_something_else_is_not_hungry(
    client: Client, queue: Queue, later: Callable[[], None], reason: str
) -> None:
    later()
    client.run(prepared("done"), prepared("waits"))
    queue.say("done", JobState.RUNNING)
    wait_for(queue, "waits", reason=reason)
    client.publish("done")
    client.look(5)
    assert not queue.cancels


def test_what_is_run_again_is_no_ghost(
    client: Client, queue: Queue, later: Callable[[], None]
) -> None:
    client.run(prepared("flaky", retry=RetryPolicy(1, exceptions=True)), prepared("hungry"))
    queue.say("flaky", JobState.FAILED)
    wait_for(queue, "hungry", reason="Priority")
    client.end("flaky", 0, outcome="exception", exception_type="builtins.OSError")
    client.look(3)
    assert len(queue.reruns) == 1
    queue.say("flaky", JobState.RUNNING)
    later()
    client.look(5)
    assert not queue.cancels


def test_what_has_been_claimed_again_since_it_was_suspected_is_left_alone(
    tmp_path: Path, queue: Queue, later: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Client(tmp_path, queue), Client(tmp_path, queue)
    first.run(prepared("flaky"))
    second.run(prepared("hungry"))
    queue.say("flaky", JobState.RUNNING)
    wait_for(queue, "hungry", reason="Resources")
    first.end("flaky", 0, outcome="node failure")
    second.look()
    assert second.watch.ghosts.suspected
    monkeypatch.setattr(ghosts, "_GATHER_S", 3600.0)
    second.look()
    claim = first.claims.current(key_of("flaky"))
    assert claim is not None
    first.claims.claim(claim.key, claim.run, after=0)
    later()
    second.look(3)
    assert not queue.cancels


def test_a_job_that_has_left_is_asked_about_once(
    client: Client, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    status = queue.status

    def listening(job_ids: list[str]) -> dict[str, JobStatus]:
        asked.extend(job_ids)
        return status(job_ids)

    monkeypatch.setattr(queue, "status", listening)
    client.run(prepared("done"), prepared("hungry"))
    queue.say("done", JobState.COMPLETED)
    wait_for(queue, "hungry", reason="Resources")
    client.publish("done")
    client.look()
    asked.clear()
    client.look(10)
    assert asked.count(queue.id_of("done")) == 1
    assert asked.count(queue.id_of("hungry")) == 10


# ---- without a result or a record ------------------------------------------------------------


@pytest.mark.parametrize("dead", [True, False])
def test_a_job_whose_process_is_gone_from_this_machine_is_ended_and_repeated(
    client: Client, queue: Queue, monkeypatch: pytest.MonkeyPatch, dead: bool
) -> None:
    monkeypatch.setattr(vanished, "_LOOK_S", 0.0)
    futures = client.run(prepared("killed", retry=RetryPolicy(1)), prepared("child", "killed"))
    me = Owner.current()
    record = {
        "job_id": queue.id_of("killed"), "host": me.host, "pid": me.pid, "boot_id": me.boot_id,
        "process_started": "1" if dead else me.started, "restart": 0, "time": 0.0,
    }  # fmt: skip
    attempts.start(client.cache, key_of("killed"), 0, record)
    queue.say("killed", JobState.RUNNING)
    wait_for(queue, "child", reason="Dependency")
    client.look(3)
    assert client.entry("killed").standing.generation == 0
    monkeypatch.setattr(vanished, "_AFTER_S", -1.0)
    client.look(3)
    assert client.entry("killed").standing.generation == int(dead)
    if dead:
        assert "process is gone" in client.ended("killed")["message"]
        # It is ended at once: that it is over is known, and need not be waited for again.
        assert queue.cancels == [[queue.id_of("killed")]]
        assert len(queue.reruns) == 1
    assert not any(future.done() for future in futures.values())


def test_of_a_process_on_another_machine_nothing_is_known_here(
    client: Client, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vanished, "_LOOK_S", 0.0)
    monkeypatch.setattr(vanished, "_AFTER_S", -1.0)
    client.run(prepared("far"))
    host = Owner.current().host  # they may all be called alike
    record = {"job_id": "1", "host": host, "pid": 1, "boot_id": "b", "process_started": "1"}
    attempts.start(client.cache, key_of("far"), 0, {**record, "restart": 0, "time": 0.0})
    queue.say("far", JobState.RUNNING)
    client.look(5)
    assert client.entry("far").standing.generation == 0
    assert not queue.cancels


# ---- nothing gets in their way -----------------------------------------------------------------


def test_an_outage_or_a_store_that_cannot_be_read_makes_no_ghosts(
    client: Client, queue: Queue, later: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    later()
    futures = client.run(prepared("parent"), prepared("child", "parent"))
    queue.say("parent", JobState.RUNNING)
    wait_for(queue, "child", reason="Dependency")
    client.publish("parent")
    client.look()
    queue.outage = OUTAGE
    client.watch._polling._next = 0.0
    client.look(3)
    assert not queue.cancels
    queue.outage = None

    def stale(*_: object) -> object:
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr(client.watch.ghosts._claims, "generations", stale)
        patched.setattr(client.watch.ghosts, "_gathered", -1e9)
        client.watch._polling._next = 0.0
        client.look(3)
    assert not futures["child"].done()


def test_a_queue_of_our_own_has_no_ghosts(tmp_path: Path, later: Callable[[], None]) -> None:
    later()
    queue = Queue(shared=False)
    client = Client(tmp_path, queue)
    client.run(prepared("parent"), prepared("child", "parent"))
    queue.say("parent", JobState.RUNNING)
    client.publish("parent")
    client.look(5)
    assert not queue.cancels


def test_a_damaged_run_does_not_hide_the_others(
    tmp_path: Path, queue: Queue, later: Callable[[], None]
) -> None:
    later()
    Client(tmp_path, queue).run(prepared("other"))
    (record,) = (tmp_path / "cache" / "runs").glob("*.json")
    record.chmod(0o600)
    record.write_text("torn")
    client = Client(tmp_path, queue)
    client.run(prepared("done"), prepared("hungry"))
    queue.say("done", JobState.RUNNING)
    wait_for(queue, "hungry", reason="Resources")
    client.publish("done")
    client.look(4)
    assert queue.cancels == [[queue.id_of("done")]]
