"""Repeating in place: by whoever follows, once, with what the next attempt is to have."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dask_batch.backends.base import Job, JobState, JobStatus
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims
from dask_batch.errors import (
    DependencyFailedError,
    JobEndingError,
    LostTaskError,
    NodeFailureTaskError,
    OutOfMemoryTaskError,
    QueueFullError,
    SubmissionError,
    TimeoutTaskError,
)
from dask_batch.future import BatchFuture
from dask_batch.verdicts.retry import RetryPolicy
from watching import AT_ONCE, OUTAGE, Client, Queue, key_of, prepared

TWICE = RetryPolicy(2)


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def client(tmp_path: Path, queue: Queue) -> Client:
    return Client(tmp_path, queue)


def generation(client: Client, name: str) -> int:
    claim = Claims(client.cache).current(key_of(name))
    assert claim is not None
    return claim.generation


# ---- in place ----------------------------------------------------------------------------------


def test_what_fails_is_run_again_in_place_and_what_waits_for_it_goes_on_waiting(
    client: Client, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    futures = client.run(
        prepared("other"),
        prepared("flaky", retry=TWICE, resources={"memory_max": 2, "run_time_max": 60}),
        prepared("child", "flaky", "other"),
        prepared("grandchild", "child"),
    )
    queue.say("flaky", JobState.OUT_OF_MEMORY)
    queue.say("child", JobState.DEPENDENCY_FAILED)
    client.look(3)
    flaky, child, other = (queue.id_of(name) for name in ("flaky", "child", "other"))
    (rerun,) = queue.reruns
    assert rerun[0] == flaky
    assert (rerun[1]["memory_max"], rerun[1]["run_time_max"]) == (4, 60)
    assert {key: sorted(ids) for key, ids in rerun[2].items()} == {child: sorted([flaky, other])}
    assert generation(client, "flaky") == 1
    assert not any(future.done() for future in futures.values())
    assert "ran out of memory (retry 1 of 2)" in caplog.text
    queue.say("child", JobState.WAITING)
    client.publish("other")
    queue.say("flaky", JobState.TIMEOUT)
    client.look(3)
    assert (queue.reruns[1][1]["memory_max"], queue.reruns[1][1]["run_time_max"]) == (4, 120)
    assert queue.reruns[1][2] == {child: (flaky,)}
    for name in ("flaky", "child", "grandchild"):
        client.publish(name)
    client.look()
    assert [future.result(0) for future in futures.values()] == list(futures)


def test_an_id_that_has_been_given_out_again_is_not_told_what_to_wait_for(
    client: Client, queue: Queue
) -> None:
    client.run(
        prepared("flaky", retry=TWICE),
        *(prepared(name, "flaky") for name in ("child", "gone", "lost")),
    )
    ids = {name: queue.id_of(name) for name in ("child", "gone", "lost")}
    names = {name: client.entry(name).standing.job_name for name in ids}
    queue.say("flaky", JobState.TIMEOUT)
    queue.say("child", JobState.DEPENDENCY_FAILED, name=names["child"])
    queue.say("gone", JobState.WAITING, name="somebody-elses")
    queue.say("lost", JobState.LOST)
    client.look(3)
    assert [set(dependents) for _, _, dependents in queue.reruns] == [{ids["child"]}]


def test_what_cannot_be_run_again_yet_holds_nobody_up(client: Client, queue: Queue) -> None:
    futures = client.run(prepared("slow", retry=TWICE), prepared("other", retry=TWICE))
    queue.say("slow", JobState.TIMEOUT)
    queue.say("other", JobState.TIMEOUT)
    rerun = queue.rerun

    def not_yet(job: Job, job_id: str, dependents: Mapping[str, Sequence[str]]) -> str:
        if job_id == queue.id_of("slow"):
            raise JobEndingError("it has not left its nodes yet")
        return rerun(job, job_id, dependents)

    queue.rerun = not_yet  # type: ignore[method-assign]
    client.look(5)
    assert [each[0] for each in queue.reruns] == [queue.id_of("other")]
    assert not client.entry("slow").refusals
    queue.rerun = rerun  # type: ignore[method-assign]
    client.entry("slow").act_at = client.entry("slow").quiet_until = 0.0
    client.look(3)
    assert queue.reruns[-1][0] == queue.id_of("slow")
    assert not any(future.done() for future in futures.values())


def test_retries_are_used_up(client: Client, queue: Queue) -> None:
    futures = client.run(prepared("flaky", retry=TWICE), prepared("child", "flaky"))
    for _ in range(3):
        assert not futures["flaky"].done()
        queue.say("flaky", JobState.OUT_OF_MEMORY)
        client.look(3)
    assert isinstance(futures["flaky"].exception(0), OutOfMemoryTaskError)
    assert isinstance(futures["child"].exception(0), DependencyFailedError)
    assert len(queue.reruns) == 2
    # The next compute begins anew, as a run of its own.
    again = client.run(prepared("flaky", retry=TWICE))
    assert generation(client, "flaky") == 3
    queue.say("flaky", JobState.OUT_OF_MEMORY)
    client.look(3)
    assert len(queue.reruns) == 3
    assert not again["flaky"].done()


def test_a_job_that_has_not_left_the_queue_yet_is_not_run_again_before(
    client: Client, queue: Queue
) -> None:
    futures = client.run(prepared("flaky", retry=RetryPolicy(1, exceptions=True)))
    queue.say("flaky", JobState.RUNNING)
    client.end("flaky", 0, outcome="exception", exception_type="builtins.ValueError")
    client.look(5)
    # Its record is there before its process has gone.
    assert generation(client, "flaky") == 1
    assert not queue.reruns
    queue.say("flaky", JobState.FAILED, exit_code=1)
    client.look(2)
    assert len(queue.reruns) == 1
    client.look(5)
    assert len(queue.reruns) == 1
    client.end("flaky", 1, outcome="exception", message="ValueError: again")
    client.look()
    assert "again" in str(futures["flaky"].exception(0))


def test_a_job_that_never_leaves_the_queue_is_made_to(client: Client, queue: Queue) -> None:
    client.run(prepared("flaky", retry=RetryPolicy(1, exceptions=True)))
    queue.say("flaky", JobState.RUNNING)
    client.end("flaky", 0, outcome="exception", exception_type="builtins.ValueError")
    client.look(3)
    client.entry("flaky").act_at -= 3600
    client.look(3)
    assert queue.cancels == [[queue.id_of("flaky")]]
    assert len(queue.reruns) == 1


def test_a_job_that_was_purged_gets_a_new_id(client: Client, queue: Queue) -> None:
    futures = client.run(prepared("lost"), prepared("child", "lost"))
    old = queue.id_of("lost")
    queue.purged.add(old)
    client.look(4)
    new = queue.id_of("lost")
    assert new != old
    standing = client.entry("lost").standing
    assert (standing.job_id, standing.generation) == (new, 1)
    assert client.watch.known[key_of("lost")].job_id == new
    assert client.claims.log(standing.run_id).ids[standing.job_name] == new
    client.publish("lost")
    client.look()
    assert futures["lost"].result(0) == "lost"


def test_what_was_handed_over_later_waits_for_the_repetition_too(
    client: Client, queue: Queue, tmp_path: Path
) -> None:
    flaky = prepared("flaky", retry=TWICE)
    client.run(flaky)
    # The next window of the graph, by the same client; and a graph of another one.
    pending = {key: entry.standing for key, entry in client.watch.entries.items()}
    client.hand_over([flaky, prepared("later", "flaky")], pending)
    Client(tmp_path, queue).run(flaky, prepared("more"), prepared("other", "flaky", "more"))
    first, *_ = {entry.standing.run_id for entry in client.watch.entries.values()}
    assert len(client.claims.log(first).awaited) == 2
    client.claims.record(first, {"event": "awaited", "run": "gone-since"})
    queue.say("flaky", JobState.TIMEOUT)
    queue.say("later", JobState.DEPENDENCY_FAILED)
    client.look(3)
    (rerun,) = queue.reruns
    later, other, more = (queue.id_of(name) for name in ("later", "other", "more"))
    assert rerun[0] == queue.id_of("flaky")
    assert {key: set(ids) for key, ids in rerun[2].items()} == {
        later: {rerun[0]},
        other: {rerun[0], more},
    }


# ---- several actors ----------------------------------------------------------------------------


def test_of_several_clients_one_repeats_and_all_follow(tmp_path: Path, queue: Queue) -> None:
    clients = [Client(tmp_path, queue) for _ in range(3)]
    futures = [client.run(prepared("flaky", retry=TWICE))["flaky"] for client in clients]
    for expected in (1, 2):
        queue.say("flaky", JobState.NODE_FAILURE)
        for _ in range(4):
            for client in clients:
                client.look()
                for entry in client.watch.entries.values():
                    entry.sign_at = 0.0
        assert len(queue.reruns) == expected
        assert {c.entry("flaky").standing.generation for c in clients} == {expected}
        assert all(c.entry("flaky").course.sure for c in clients)
    queue.say("flaky", JobState.NODE_FAILURE)
    for client in clients * 2:
        client.look()
    assert {type(future.exception(0)).__name__ for future in futures} == {"NodeFailureTaskError"}


def test_one_that_dies_between_claim_and_repetition_is_replaced(
    tmp_path: Path, queue: Queue
) -> None:
    client = Client(tmp_path, queue, pace=replace(AT_ONCE, lease_s=3600.0))
    client.run(prepared("flaky", retry=TWICE))
    queue.say("flaky", JobState.PREEMPTED)
    client.end("flaky", 0, outcome="preempted")
    claim = client.claims.current(key_of("flaky"))
    assert claim is not None
    client.claims.claim(claim.key, claim.run, after=0)  # and it is never heard of again
    client.look(5)
    assert not queue.reruns
    assert client.entry("flaky").act_at > time.monotonic() + 3000
    client.entry("flaky").act_at = 0.0
    client.look(2)
    assert len(queue.reruns) == 1
    assert generation(client, "flaky") == 1


def test_what_another_process_repeated_is_not_taken_for_its_earlier_end(
    client: Client, queue: Queue
) -> None:
    futures = client.run(prepared("flaky", retry=TWICE))
    queue.say("flaky", JobState.TIMEOUT)
    client.end("flaky", 0, outcome="timeout")
    claim = client.claims.current(key_of("flaky"))
    assert claim is not None
    client.claims.claim(claim.key, claim.run, after=0)
    client.look(10)
    assert not futures["flaky"].done()
    assert client.entry("flaky").standing.generation == 1
    record = {"job_id": "1", "host": "n1", "pid": 1, "boot_id": "b", "process_started": "1"}
    attempts.start(client.cache, key_of("flaky"), 1, {**record, "restart": 1, "time": 0.0})
    client.entry("flaky").sign_at = 0.0
    client.look()
    assert client.entry("flaky").course.sure


def test_one_that_joins_between_claim_and_repetition_waits_for_a_sign(
    tmp_path: Path, queue: Queue
) -> None:
    first = Client(tmp_path, queue)
    first.run(prepared("flaky", retry=TWICE))
    queue.say("flaky", JobState.TIMEOUT)
    first.end("flaky", 0, outcome="timeout")
    claim = first.claims.current(key_of("flaky"))
    assert claim is not None
    first.claims.claim(claim.key, claim.run, after=0)
    second = Client(tmp_path, queue)
    future = second.run(prepared("flaky", retry=TWICE))["flaky"]
    assert len(queue.jobs) == 1
    second.look(5)
    # The end that the batch system tells of is that of the first attempt.
    assert generation(second, "flaky") == 1
    assert not future.done()
    first.look(5)
    assert len(queue.reruns) == 0
    for client in (first, second):
        client.entry("flaky").act_at = 0.0
        client.look(2)
    assert len(queue.reruns) == 1


def test_an_old_word_for_the_queue_is_not_taken_for_a_repetition(
    client: Client, queue: Queue
) -> None:
    futures = client.run(prepared("flaky", retry=RetryPolicy(1, exceptions=True)))
    client.look()  # it waits, says the batch system, and that is the last for a while
    queue.outage = OUTAGE
    client.end("flaky", 0, outcome="exception", exception_type="builtins.OSError")
    client.look(3)
    assert not client.entry("flaky").course.sure
    queue.outage = None
    queue.say("flaky", JobState.FAILED, exit_code=1)
    client.watch.hasten()
    client.watch._polling._next = 0.0
    client.look(2)
    assert len(queue.reruns) == 1
    assert not futures["flaky"].done()


def test_a_run_that_has_taken_over_is_followed(tmp_path: Path, queue: Queue) -> None:
    first, second = Client(tmp_path, queue), Client(tmp_path, queue)
    futures = first.run(prepared("one"))
    old = queue.id_of("one")
    queue.say("one", JobState.LOST)
    again = second.run(prepared("one"))
    assert queue.id_of("one") != old
    first.look(3)
    assert not queue.reruns
    standing = first.entry("one").standing
    assert standing.job_id == queue.id_of("one")
    assert standing.generation == 1
    assert second.watch.followers.wanted(standing.run_id) == {key_of("one")}
    queue.states[queue.id_of("one")] = JobStatus("", JobState.TIMEOUT)
    first.look(3)
    second.look(3)
    assert isinstance(futures["one"].exception(0), TimeoutTaskError)
    assert isinstance(again["one"].exception(0), TimeoutTaskError)


def test_the_id_of_a_job_that_is_being_handed_over_is_found_later(
    tmp_path: Path, queue: Queue
) -> None:
    first, second = Client(tmp_path, queue), Client(tmp_path, queue)
    first.run(prepared("one"))
    standing = first.entry("one").standing
    second.watch.follow(replace(standing, job_id=None), "one")
    second.look()
    assert second.entry("one").standing.job_id == standing.job_id
    assert second.watch.known[key_of("one")].job_id == standing.job_id


def test_a_job_whose_run_was_taken_back_is_not_waited_for(tmp_path: Path, queue: Queue) -> None:
    first, second = Client(tmp_path, queue), Client(tmp_path, queue)
    first.run(prepared("one"))
    standing = first.entry("one").standing
    first.claims.record(standing.run_id, {"event": "aborted", "reason": "for a test"})
    second.watch.follow(replace(standing, job_id=None, job_name="one-other-0"), "one")
    future = BatchFuture(None, key_of("one"))
    second.watch.attach(future)
    second.look(3)
    assert isinstance(future.exception(0), LostTaskError)


def test_a_second_client_joins_what_is_to_be_repeated(tmp_path: Path, queue: Queue) -> None:
    Client(tmp_path, queue).run(prepared("flaky", retry=TWICE), prepared("child", "flaky"))
    queue.say("flaky", JobState.OUT_OF_MEMORY)
    queue.say("child", JobState.DEPENDENCY_FAILED)
    # The first one has gone; nobody has seen the failure. The second wants the child alone.
    second = Client(tmp_path, queue)
    futures = second.run(prepared("flaky", retry=TWICE), prepared("child", "flaky"))
    assert len(queue.jobs) == 2
    second.look(4)
    assert [each[0] for each in queue.reruns] == [queue.id_of("flaky")]
    second.publish("flaky")
    second.publish("child")
    second.look()
    assert futures["child"].result(0) == "child"


def test_one_that_joins_a_child_alone_follows_its_ancestors_and_names_the_cause(
    tmp_path: Path, queue: Queue
) -> None:
    graph = [
        prepared("root", retry=RetryPolicy(1)),
        prepared("middle", "root"),
        prepared("child", "middle"),
    ]
    Client(tmp_path, queue).run(*graph)
    queue.say("root", JobState.TIMEOUT)
    queue.say("middle", JobState.DEPENDENCY_FAILED)
    queue.say("child", JobState.DEPENDENCY_FAILED)
    second = Client(tmp_path, queue)
    child = second.run(graph[2])["child"]
    assert len(queue.jobs) == 3
    second.look(4)
    assert len(queue.reruns) == 1
    assert not child.done()
    queue.say("root", JobState.TIMEOUT)
    second.look(4)
    error = child.exception(0)
    assert isinstance(error, DependencyFailedError)
    assert error.root == key_of("root")
    assert isinstance(error.__cause__, TimeoutTaskError)
    assert "root" in str(error)


def test_a_cause_that_ended_before_one_joined_is_named_too(tmp_path: Path, queue: Queue) -> None:
    first = Client(tmp_path, queue)
    graph = [prepared("root"), prepared("middle", "root"), prepared("child", "middle")]
    first.run(*graph)
    second = Client(tmp_path, queue)
    child = second.run(graph[2])["child"]
    first.end("root", 0, outcome="exception", message="ValueError: no", function="root",
              exception_type="mine.Gone", traceback="the frames")  # fmt: skip
    queue.say("root", JobState.FAILED)
    queue.say("middle", JobState.CANCELLED)
    queue.say("child", JobState.CANCELLED)  # as the accounting calls what was removed
    second.look(3)
    error = child.exception(0)
    assert isinstance(error, DependencyFailedError)
    assert error.root == key_of("root")
    assert "ValueError: no" in str(error)


# ---- inputs that have not failed ---------------------------------------------------------------


def test_a_job_that_fell_with_an_input_that_is_there_is_run_again(
    client: Client, queue: Queue
) -> None:
    futures = client.run(prepared("parent"), prepared("child", "parent"))
    client.end("child", 0, outcome="dependency", message="the input is not there", root="")
    queue.say("child", JobState.FAILED, exit_code=1)
    client.look(3)
    assert not queue.reruns  # its parent is under way still
    client.publish("parent")
    client.look(3)
    assert [each[0] for each in queue.reruns] == [queue.id_of("child")]
    assert not futures["child"].done()
    client.publish("child")
    client.look()
    assert futures["child"].result(0) == "child"


# ---- what cannot be repeated -------------------------------------------------------------------


def test_a_repetition_that_is_refused_is_tried_again_and_then_told(
    client: Client, queue: Queue
) -> None:
    futures = client.run(prepared("big", retry=TWICE), prepared("child", "big"))
    said = "Requested node configuration is not available"
    queue.refusal = SubmissionError(1, ["scontrol"], said)
    queue.say("big", JobState.OUT_OF_MEMORY)
    client.look(2)
    for _ in range(4):
        assert not queue.reruns
        for entry in client.watch.entries.values():
            entry.act_at = entry.quiet_until = 0.0
        client.look()
    error = futures["big"].exception(0)
    assert isinstance(error, OutOfMemoryTaskError)
    assert said in str(error)
    assert isinstance(futures["child"].exception(0), DependencyFailedError)


@pytest.mark.parametrize(
    "refusal", [OUTAGE, QueueFullError(1, ["sbatch"], "Job violates accounting/QOS policy")]
)
def test_a_repetition_survives_an_outage_of_hours(
    client: Client, queue: Queue, refusal: Exception
) -> None:
    futures = client.run(prepared("flaky", retry=TWICE))
    queue.refusal = refusal
    queue.say("flaky", JobState.NODE_FAILURE)
    client.look(2)
    for _ in range(100):
        client.entry("flaky").act_at = client.entry("flaky").quiet_until = 0.0
        client.look()
    client.entry("flaky").unanswered_at -= 5 * 3600
    client.look()
    assert not futures["flaky"].done()
    # One refusal is not the last of a hundred.
    queue.refusal = SubmissionError(1, ["scontrol"], "no")
    client.entry("flaky").quiet_until = 0.0
    client.look()
    assert not futures["flaky"].done()
    queue.refusal = None
    client.entry("flaky").act_at = client.entry("flaky").quiet_until = 0.0
    client.look()
    assert len(queue.reruns) == 1


def test_an_outage_without_end_is_told_as_one(client: Client, queue: Queue) -> None:
    futures = client.run(prepared("flaky", retry=TWICE))
    queue.refusal = OUTAGE
    queue.say("flaky", JobState.NODE_FAILURE)
    client.look(2)
    client.entry("flaky").unanswered_at -= 7 * 3600
    client.entry("flaky").quiet_until = 0.0
    client.look()
    error = futures["flaky"].exception(0)
    assert isinstance(error, NodeFailureTaskError)
    assert "for 7.0 hours it could not be run again" in str(error)
    assert "Unable to contact" in str(error)


def test_one_try_is_enough_to_see_that_nobody_answers(
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(tmp_path, queue, pace=replace(AT_ONCE, longest_poll_s=120.0))
    names = [f"t{n}" for n in range(20)]
    client.run(*(prepared(name, retry=TWICE) for name in names), prepared("other"))
    tries: list[str] = []

    def unanswered(job: Job, job_id: str, dependents: object) -> str:
        tries.append(job_id)
        raise OUTAGE

    for name in names:
        queue.say(name, JobState.NODE_FAILURE)
    with monkeypatch.context() as patched:
        patched.setattr(queue, "rerun", unanswered)
        client.look(10)
        assert len(tries) == 1
        client.watch._attend._silent_until = 0.0
        client.look(10)
        assert len(tries) == 2
    client.watch._attend._silent_until = 0.0
    for entry in client.watch.entries.values():
        entry.quiet_until = entry.act_at = 0.0
    client.look()
    assert len(queue.reruns) == 20


def test_running_jobs_again_does_not_take_all_the_time(
    client: Client, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dask_batch.following import attending

    names = [f"t{n}" for n in range(5)]
    futures = client.run(*(prepared(name, retry=TWICE) for name in names), prepared("other"))
    monkeypatch.setattr(attending, "_TURN_S", 0.0)
    for name in names:
        queue.say(name, JobState.NODE_FAILURE)
    client.look()
    before = len(queue.reruns)
    assert before < 5
    client.publish("other")
    client.look()
    assert futures["other"].result(0) == "other"
    client.look(10)
    assert len(queue.reruns) == 5


def test_without_its_definition_nothing_is_repeated(client: Client, queue: Queue) -> None:
    futures = client.run(prepared("flaky", retry=TWICE))
    run_id = client.entry("flaky").standing.run_id
    (client.cache.path / "definitions" / f"{run_id}.h5").unlink()
    queue.say("flaky", JobState.TIMEOUT)
    client.look(3)
    assert isinstance(futures["flaky"].exception(0), TimeoutTaskError)
    assert not queue.reruns


def test_what_a_full_queue_left_is_nobodys_and_is_not_asked_about(
    client: Client, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.run(prepared("taken"), prepared("left"))
    names = dict(client.claims.run(client.entry("left").standing.run_id).jobs)
    (name,) = (name for name, key in names.items() if key == key_of("left"))
    run_id = client.entry("left").standing.run_id
    client.claims.record(run_id, {"event": "left", "names": [name]})

    def not_asked(*_: object) -> dict[str, str]:
        raise AssertionError("asked")

    monkeypatch.setattr(queue, "find", not_asked)
    survey = client.standings.survey([key_of("taken"), key_of("left")])
    assert survey.alive.keys() == {key_of("taken")}
    assert survey.generations == {key_of("taken"): 0, key_of("left"): 0}


def test_an_outage_during_a_survey_is_waited_out(
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dask_batch.evidence import settling

    Client(tmp_path, queue).run(prepared("one"))
    monkeypatch.setattr(settling, "_PATIENCE_S", (0.01,) * 5)
    monkeypatch.setattr(settling, "_STEP_S", 0.004)
    queue.outage = OUTAGE
    second = Client(tmp_path, queue)
    calls: list[int] = []

    def meanwhile() -> None:
        calls.append(queue.polls)
        if len(calls) == 5:
            queue.outage = None

    second.standings.between = meanwhile
    second.run(prepared("one"))
    assert len(queue.jobs) == 1
    assert len(calls) >= 5  # others are looked after while an answer is waited for
