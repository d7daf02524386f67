"""The queue in the client's process, with real processes: what starts when, and what ends how."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dask_batch.backends.base import JobState
from dask_batch.backends.within import keeper
from dask_batch.backends.within.backend import WithinBackend
from dask_batch.backends.within.launcher import Room
from dask_batch.backends.within.processes import ProcessLauncher
from dask_batch.errors import ConfigurationError, ResourceError, SubmissionError
from local_harness import alive
from within_harness import Bench, shell_job, until

DONE, FAILED = JobState.COMPLETED, JobState.FAILED


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Make benches, and close them."""
    made: list[Bench] = []

    def make(*, caps: dict[str, int] | None = None, **room: int) -> Bench:
        made.append(Bench(tmp_path, Room(**{"cpus": 2, **room}), **(caps or {})))
        return made[-1]

    yield make
    for each in made:
        each.backend.close()


# ---- beginnings --------------------------------------------------------------------------------


def test_what_is_held_starts_when_it_is_let_go(bench):
    one = bench()
    job = one.job("echo ran")
    (job_id,) = one.submit(job)
    assert one.status(job).state is JobState.HELD
    one.backend.release([job_id])
    assert one.ended(job) == [DONE]
    assert one.said(job) == "ran\n"


def test_a_child_starts_after_its_parents(bench, tmp_path):
    one = bench()
    first, second = one.job("echo 1 >> order"), one.job("echo 1 >> order")
    child = one.job("echo 2 >> order", parents=[first, second])
    one.go(first, second, child)
    assert one.ended(first, second, child) == [DONE] * 3
    assert (tmp_path / "order").read_text().split() == ["1", "1", "2"]


def test_a_job_finds_its_own_id_and_not_that_of_an_outer_one(bench, monkeypatch):
    one = bench()
    job = one.job("echo $DASK_BATCH_JOB_ID $OMP_NUM_THREADS", cores=2)
    outer = replace(job, environment={**job.environment, "DASK_BATCH_JOB_ID": "outer"})
    (job_id,) = one.go(outer)
    assert one.ended(job) == [DONE]
    assert one.said(job).split() == [job_id, "2"]


def test_the_higher_priority_goes_first(bench, tmp_path):
    one = bench(cpus=1)
    jobs = [one.job(f"echo {p} >> order", priority=p) for p in (0, 5, 10)]
    blocker = one.job("sleep 0.3")
    one.go(blocker, *jobs)
    one.ended(*jobs)
    assert (tmp_path / "order").read_text().split() == ["10", "5", "0"]


@pytest.mark.parametrize(
    ("room", "caps", "each", "most"),
    [
        ({"cpus": 2}, {}, {}, 2),
        ({"cpus": 4}, {}, {"cores": 2}, 2),
        ({"cpus": 8}, {"max_workers": 3}, {}, 3),
        ({"cpus": 8}, {"max_cores": 4}, {"cores": 2}, 2),
        ({"cpus": 8, "jobs": 1}, {}, {}, 1),
        ({"cpus": 8, "gpus": 2}, {}, {"gpus_per_core": 1}, 2),
        ({"cpus": 8, "memory_bytes": 2**30}, {}, {"memory_max": 0.4}, 2),
    ],
)
def test_no_more_run_at_a_time_than_there_is_room_for(bench, room, caps, each, most):
    assert bench(caps=caps, **room).at_once(6, **each) == most


def test_no_bound_is_no_bound(tmp_path):
    one = Bench(tmp_path, Room())
    jobs = [one.job(f"touch {i}.here; while [ $(ls *.here | wc -l) != 9 ]; do sleep .02; done")
            for i in range(9)]  # fmt: skip
    one.go(*jobs)
    assert one.ended(*jobs) == [DONE] * 9
    one.backend.close()


def test_room_that_comes_later_is_used(bench):
    one = bench(cpus=0)
    job = one.job("true")
    one.go(job)
    one.launcher._room = Room(cpus=1)
    one.launcher.news()
    assert one.ended(job) == [DONE]


# ---- ends --------------------------------------------------------------------------------------


def test_ends_are_told_apart(bench):
    one = bench(cpus=8)
    good, bad, killed = one.job("true"), one.job("exit 3"), one.job("kill -9 $$")
    one.go(good, bad, killed)
    assert one.ended(good, bad, killed) == [DONE, FAILED, FAILED]
    assert one.status(bad).exit_code == 3
    assert (one.status(killed).signal, one.status(killed).reason) == (9, "killed by SIGKILL")


def test_what_depends_on_a_failure_falls_with_it(bench):
    one = bench()
    bad = one.job("exit 1")
    child = one.job("true", parents=[bad])
    grandchild = one.job("true", parents=[child])
    one.go(bad, child, grandchild)
    fallen = JobState.DEPENDENCY_FAILED
    assert one.ended(bad, child, grandchild) == [FAILED, fallen, fallen]
    assert bad.name in one.status(child).reason


def test_a_time_limit_is_kept_and_said(bench):
    one = bench()
    job = one.job("echo $$; sleep 100", run_time_max=1)
    one.go(job)
    assert one.ended(job) == [JobState.TIMEOUT]
    assert one.status(job).reason == "it ran longer than run_time_max = 1 s"


def test_a_cancelled_job_is_ended_even_if_it_does_not_listen(bench):
    one = bench(cpus=1)
    stubborn = one.job("trap '' TERM; echo $$; while :; do sleep 0.1; done")
    waiting = one.job("true")
    ids = one.go(stubborn, waiting)
    until(lambda: one.said(stubborn), "its start")
    one.backend.cancel([*ids, "workers-0-0", "other"])
    assert one.ended(stubborn, waiting) == [JobState.CANCELLED] * 2
    until(lambda: not alive(int(one.said(stubborn))), "the end of the process")


def test_what_a_job_left_running_ends_with_it(bench):
    one = bench()
    job = one.job("sleep 100 & echo $!")
    one.go(job)
    assert one.ended(job) == [DONE]
    until(lambda: not alive(int(one.said(job))), "the end of what it left")


def test_what_cannot_be_started_has_failed_and_says_why(bench, tmp_path):
    one = bench()
    job = replace(one.job(), resources={**one.job().resources, "python": "/no/such/python"})
    one.backend.submit([job], one.ids.__setitem__)
    one.backend.release([one.ids[job.name]])
    assert one.ended(job) == [FAILED]
    assert "/no/such/python" in (tmp_path / f"{job.index}.err").read_text()


def deaf(one, monkeypatch):
    """Let jobs run on whatever is done: as those do whose node does not answer."""
    monkeypatch.setattr(keeper, "_LAST_S", 0.3)
    begin = one.launcher.start

    class Deaf:
        def __init__(self, started):
            self.started = started

        def ended(self):
            return None

        def kill(self):
            pass

    started = []

    def start(job, job_id):
        started.append(begin(job, job_id))
        return Deaf(started[-1])

    monkeypatch.setattr(one.launcher, "start", start)
    return started


def test_a_queue_that_fails_leaves_nobody_waiting(bench, monkeypatch):
    one = bench(cpus=1)
    started = deaf(one, monkeypatch)
    running, waiting = one.job("sleep 100"), one.job()
    child = one.job(parents=[running])
    one.go(running, child, waiting)
    one.wait_for(running, JobState.RUNNING)
    one.backend._woken.clear()

    def fail():
        raise OSError("no more files")

    monkeypatch.setattr(one.launcher, "room", fail)
    one.launcher.news()
    assert one.ended(running, child, waiting) == [FAILED] * 3
    assert "no more files" in one.status(waiting).reason
    assert one.status(running).reason.endswith("and it was not seen to end")
    one.backend._keeper._thread.join()
    assert one.backend._woken.is_set()
    with pytest.raises(SubmissionError, match=r"has failed.*no more files"):
        one.submit(one.job())
    for each in started:
        each.kill()


def test_who_waits_is_told_of_the_last_ends(bench, monkeypatch):
    one = bench(cpus=1)
    started = deaf(one, monkeypatch)
    job = one.job("sleep 100")
    one.go(job)
    one.wait_for(job, JobState.RUNNING)
    seen = []
    monkeypatch.setattr(one.backend._keeper, "_told", lambda: seen.append(one.status(job).state))
    one.backend.close()
    assert seen[-1:] == [JobState.CANCELLED]
    for each in started:
        each.kill()


# ---- repetition --------------------------------------------------------------------------------


def test_a_job_is_run_again_in_its_place_and_its_children_wait(bench):
    one = bench()
    job = one.job("test -e fixed", repeatable=True)
    child = one.job("echo after", parents=[job])
    one.go(job, child)
    assert one.ended(job) == [FAILED]
    assert one.status(child).state is JobState.DEPENDENCY_FAILED
    (one.folder / "fixed").touch()
    ids = {one.ids[child.name]: [one.ids[job.name]]}
    assert one.backend.rerun(job, one.ids[job.name], ids) == one.ids[job.name]
    until(lambda: one.status(child).state is DONE, "the child")
    # Calling it twice does no harm to what has not ended, and what waits is not forgotten.
    assert one.status(job).state is DONE


def test_a_job_that_the_queue_does_not_know_is_run_as_a_new_one(bench):
    one = bench()
    job = one.job("echo anew")
    new = one.backend.rerun(job, "workers-00000000-7", {})
    assert new != "workers-00000000-7"
    one.ids[job.name] = new
    assert one.ended(job) == [DONE]


def test_jobs_for_failures_and_for_ends(bench):
    one = bench(cpus=4)
    good, bad = one.job("true"), one.job("exit 1")
    ids = one.submit(good, bad)
    for_failure = one.job("true", after_failure=tuple(ids))
    for_nothing = one.job("true", after_failure=(ids[0],))
    for_ends = one.job("true", after_end=tuple(ids))
    one.submit(for_failure, for_nothing, for_ends)
    one.backend.release(ids)
    dropped = JobState.DEPENDENCY_FAILED
    assert one.ended(for_failure, for_nothing, for_ends) == [DONE, dropped, DONE]


# ---- several queues, and the end ---------------------------------------------------------------


def test_queues_of_one_process_may_be_asked_about_each_others_jobs(tmp_path):
    one, other = Bench(tmp_path, Room(cpus=1)), Bench(tmp_path, Room(cpus=1))
    job = one.job("sleep 100")
    (job_id,) = one.go(job)
    one.wait_for(job, JobState.RUNNING)
    assert other.backend.status([job_id])[job_id].state is JobState.RUNNING
    assert other.backend.find([job.name]) == {job.name: job_id}
    other.backend.cancel([job_id])
    assert one.ended(job) == [JobState.CANCELLED]
    one.backend.close()
    assert other.backend.status([job_id]) == {}
    other.backend.close()


def test_closing_ends_all_that_runs(tmp_path):
    one = Bench(tmp_path, Room(cpus=1))
    job = one.job("echo $$; sleep 100")
    one.go(job)
    until(lambda: one.said(job), "its start")
    one.backend.close()
    assert not alive(int(one.said(job)))


KILLED = """
import os, sys, time
from pathlib import Path

sys.path.insert(0, {tests!r})
from dask_batch.backends.within.launcher import Room
from within_harness import Bench

one = Bench(Path({folder!r}), Room(cpus=4))
lines = ["echo $$; sleep 100", "trap '' TERM HUP; echo $$; while :; do sleep 1; done"]
one.go(*[one.job(line) for line in lines])
time.sleep(100)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_client_leaves_no_process(tmp_path, how):
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    client = subprocess.Popen([sys.executable, "-c", script])
    outs = [tmp_path / "0.out", tmp_path / "1.out"]
    until(lambda: all(out.exists() and out.read_text() for out in outs), "the start of the jobs")
    client.send_signal(how)
    client.wait(10)
    until(lambda: not any(alive(int(out.read_text())) for out in outs), "the end of the jobs")


def test_a_fork_does_not_use_the_queue_of_its_parent(bench):
    one = bench()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            one.backend.submit([one.job()], lambda name, job_id: None)
        except SubmissionError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert b"is a fork" in os.read(reader, 4096)


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({"cores": 3}, "max_cores=2"),
        ({"cwd": "/no/such/folder"}, "no such directory"),
        ({"partition": "long"}, "no partitions; leave it out"),
        ({"num_nodes": 2}, "runs on one node"),
    ],
)
def test_what_cannot_be_met_is_refused_before_anything_is_handed_over(bench, wanted, why):
    one = bench(caps={"max_cores": 2})
    with pytest.raises(ResourceError, match=why):
        one.backend.check([one.job(**wanted)])


def test_caps_must_be_counts():
    with pytest.raises(ConfigurationError, match="max_workers must be greater than 0"):
        WithinBackend(ProcessLauncher(), name="workers", max_workers=0)


def test_two_jobs_of_one_name_are_refused(bench):
    one = bench()
    job = one.job("sleep 100")
    one.go(job)
    with pytest.raises(SubmissionError, match="is there already") as caught:
        one.submit(shell_job(one.folder, 0, "true"))
    assert caught.value.job_name == job.name
