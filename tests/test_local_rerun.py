"""Jobs that are run once more in their place, and jobs that start upon failures and ends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest

from dask_batch.backends.base import JobState
from dask_batch.backends.local.limits import warning_margin_s
from dask_batch.errors import SubmissionError
from local_harness import Bench, bench, eventually, queue_pid


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with bench(monkeypatch) as a_bench:
        yield a_bench


def state(given: Bench, job_id: str) -> JobState | None:
    status = given.backend.status([job_id]).get(job_id)
    return None if status is None else status.state


def failed_family(given: Bench) -> tuple[list, dict[str, str]]:
    """Hand over a failing job with a child and a grandchild, and wait for the failure."""
    jobs = [
        given.job("fail_until_file", "top", repeatable=True, run_time_max=30),
        given.job("count", "child", parents=["top"], patient=True),
        given.job("count", "grandchild", parents=["child"]),
    ]
    ids = given.submit(*jobs)
    eventually(lambda: state(given, ids["top"]) is JobState.FAILED)
    return jobs, ids


def test_dependents_outlive_the_failure_and_follow_the_second_run(given: Bench) -> None:
    (top, child, grandchild), ids = failed_family(given)
    seen = given.backend.status(ids.values())
    assert seen[ids["child"]].state is JobState.DEPENDENCY_FAILED
    assert seen[ids["child"]].reason == "DependencyNeverSatisfied"
    assert seen[ids["grandchild"]].state is JobState.WAITING
    (given.folder / "mended").touch()
    larger = replace(top, resources={"memory_max": 0.5, "run_time_max": 60})
    assert given.backend.rerun(larger, ids["top"], {ids["child"]: [ids["top"]]}) == ids["top"]
    ended = given.end(ids)
    assert {status.state for status in ended.values()} == {JobState.COMPLETED}
    assert given.runs() == [top.index, top.index, child.index, grandchild.index]
    assert {status.name for status in ended.values()} == {"top", "child", "grandchild"}


def test_asking_again_for_what_runs_does_nothing(given: Bench) -> None:
    job = given.job("until_file_then_fail", "job", repeatable=True)
    ids = given.submit(job)
    given.finding(job)
    assert given.backend.rerun(job, ids["job"], {}) == ids["job"]
    (given.folder / "go").touch()
    assert given.end(ids)["job"].exit_code == 7
    for _ in range(2):
        given.backend.rerun(job, ids["job"], {})
    assert given.end(ids)["job"].exit_code == 7


def test_the_new_resources_count(given: Bench) -> None:
    job = given.job("forever", "job", repeatable=True, run_time_max=0.2)
    ids = given.submit(job)
    assert given.end(ids)["job"].state is JobState.TIMEOUT
    longer = replace(job, resources={"memory_max": 1, "run_time_max": 600})
    given.backend.rerun(longer, ids["job"], {})
    eventually(lambda: state(given, ids["job"]) is JobState.RUNNING)
    given.backend.cancel(ids.values())
    given.end(ids)
    with pytest.raises(SubmissionError) as caught:
        given.backend.rerun(replace(job, resources={"cores": 10_000}), ids["job"], {})
    assert caught.value.job_name == "job"
    assert state(given, ids["job"]) is JobState.CANCELLED


def test_cancel_of_a_stuck_dependent_takes_what_depends_on_it(given: Bench) -> None:
    _, ids = failed_family(given)
    given.backend.cancel([ids["child"]])
    seen = given.end(ids)
    assert seen["child"].state is JobState.CANCELLED
    assert seen["grandchild"].state is JobState.DEPENDENCY_FAILED
    assert "child" in seen["grandchild"].reason


def test_a_forgotten_job_is_taken_anew_and_its_dependents_wait_for_that(given: Bench) -> None:
    (top, *_), ids = failed_family(given)
    (given.folder / "mended").touch()
    forgotten = ids["top"].rpartition("-")[0] + "-999999"
    new = given.backend.rerun(replace(top, name="anew"), forgotten, {ids["child"]: [forgotten]})
    assert new not in ids.values()
    again = given.backend.rerun(replace(top, name="anew"), forgotten, {ids["child"]: [forgotten]})
    assert again == new
    assert given.end({"child": ids["child"]})["child"].state is JobState.COMPLETED
    assert state(given, ids["top"]) is JobState.FAILED
    assert given.backend.find(["anew"]) == {"anew": new}


# ---- after failures and ends -------------------------------------------------------------------


def test_a_job_for_failures_starts_upon_the_first(given: Bench) -> None:
    good, bad, slow = (given.job(b) for b in ("nothing", "exit_three", "until_file"))
    ids = given.submit(good, bad, slow, release=False)
    steward = given.job("count", after_failure=list(ids.values()), program="local_bodies")
    ids |= given.submit(steward, release=False)
    given.run(given.job("nothing"))
    assert given.runs() == []
    given.backend.release([ids[job.name] for job in (good, bad, slow)])
    assert given.end({"s": ids[steward.name]})["s"].state is JobState.COMPLETED
    assert given.runs() == [steward.index]
    assert state(given, ids[slow.name]) is JobState.RUNNING
    (given.folder / "go").touch()
    given.end(ids)


def test_a_job_for_failures_is_dropped_if_there_are_none(given: Bench) -> None:
    ids = given.submit(*(given.job("nothing") for _ in range(3)), release=False)
    steward = given.job("count", "steward", after_failure=list(ids.values()))
    ids |= given.submit(steward)
    given.backend.release(list(ids.values()))
    status = given.end(ids)["steward"]
    assert status.state is JobState.DEPENDENCY_FAILED
    assert given.runs() == []
    bad = given.end(given.submit(given.job("exit_three", "bad")))["bad"]
    late = given.job("count", after_failure=[bad.job_id], program="local_bodies")
    assert given.run(late)[0].state is JobState.COMPLETED


def test_a_job_for_ends_starts_when_all_have_ended_however(given: Bench) -> None:
    good, bad, slow = (given.job(b) for b in ("nothing", "exit_three", "until_file"))
    ids = given.submit(good, bad, slow)
    last = given.job("count", after_end=list(ids.values()), program="local_bodies")
    ids |= given.submit(last)
    given.finding(slow)
    eventually(lambda: state(given, ids[bad.name]) is JobState.FAILED)
    assert state(given, ids[last.name]) is JobState.WAITING
    given.backend.cancel([ids[slow.name]])
    assert given.end(ids)[last.name].state is JobState.COMPLETED


def test_another_program_is_a_process_of_its_own(given: Bench) -> None:
    job = given.job("look", program="local_bodies")
    (status,) = given.run(job)
    seen = given.finding(job)
    assert status.state is JobState.COMPLETED
    assert "numpy" not in seen["modules"]
    assert seen["environment"]["DASK_BATCH_JOB_ID"] == status.job_id
    assert "-P -m local_bodies" in given.backend.script(job)


def test_from_within_a_job_the_queue_obeys_as_from_outside(given: Bench) -> None:
    (top, *_), ids = failed_family(given)
    other = given.job("forever")
    ids |= given.submit(other)
    told = {"name": "top", "index": top.index, "id": ids["top"], "cancel": ids[other.name]}
    (given.folder / "told").write_text(json.dumps(told))
    steward = given.job("steward", after_failure=[ids["top"]], program="local_bodies")
    ids |= given.submit(steward)
    ended = given.end(ids)
    assert given.finding(steward) == [ids["top"], "completed", "completed"]
    assert ended["grandchild"].state is JobState.COMPLETED
    assert ended[other.name].state is JobState.CANCELLED


# ---- the warning -------------------------------------------------------------------------------


def test_the_margin_of_the_warning() -> None:
    assert [warning_margin_s(s) for s in (2, 10, 300, 600, 86_400)] == [1, 1, 30, 60, 60]


def test_a_job_that_listens_is_warned_before_its_time_is_up(given: Bench) -> None:
    listening = given.job("warned", run_time_max=1.5)
    deaf = given.job("forever", run_time_max=1.5)
    statuses = given.run(listening, deaf)
    assert (statuses[0].state, statuses[0].exit_code) == (JobState.FAILED, 4)
    assert (statuses[1].state, statuses[1].signal) == (JobState.TIMEOUT, signal.SIGTERM)


def test_an_end_by_a_signal_from_outside_and_one_without_a_word(given: Bench) -> None:
    job = given.job("forever")
    ids = given.submit(job)
    os.kill(given.finding(job), signal.SIGKILL)
    status = given.end(ids)[job.name]
    assert (status.state, status.signal) == (JobState.FAILED, signal.SIGKILL)
    assert given.run(given.job("vanish"))[0].state is JobState.COMPLETED
    assert queue_pid() is not None
