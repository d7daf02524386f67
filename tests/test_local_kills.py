"""The queue's process is killed, with real signals: what it had goes on under the next."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from dask_batch.backends.base import Job, JobState
from dask_batch.backends.local import LocalBackend, local_jobs
from dask_batch.errors import SubmissionError
from local_harness import Bench, alive, bench, client, eventually, queue_pid

CPUS = len(os.sched_getaffinity(0))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with bench(monkeypatch) as a_bench:
        yield a_bench


def kill_queue() -> None:
    pid = queue_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def graph(given: Bench, size: int) -> list[Job]:
    """Return jobs of which each waits for up to two before it."""
    jobs: list[Job] = []
    choose = random.Random(5)
    for position in range(size):
        parents = {choose.randrange(position) for _ in range(2)} if position > 5 else set()
        jobs.append(given.job("count_slowly", parents=[jobs[p].name for p in parents]))
    return jobs


@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_moments_lose_nothing_and_repeat_nothing(given: Bench, seed: int) -> None:
    jobs = graph(given, 40)
    ids = given.submit(*jobs)
    moments = random.Random(seed)
    for share in sorted(moments.sample(range(1, 36), 6)):
        while len(given.runs()) < share:
            given.backend.status(ids.values())
            given.backend.wait(moments.random() * 0.02)
        given.backend.status([])
        kill_queue()
    ended = given.end(ids)
    assert {status.state for status in ended.values()} == {JobState.COMPLETED}
    assert sorted(given.runs()) == [job.index for job in jobs]
    assert local_jobs() == []
    started = {p.pid for p in psutil.process_iter() if _works_in(p, given.folder)}
    eventually(lambda: not any(map(alive, started)), what="no job is left behind")


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.cwd() == str(folder)
    except psutil.Error:
        return False


def test_the_cpus_of_jobs_that_were_taken_over_count(given: Bench) -> None:
    large = given.job("until_file", program="local_bodies", threads_per_core=CPUS)
    ids = given.submit(large)
    given.finding(large)
    kill_queue()
    small = given.job("count")
    ids |= given.submit(small)
    assert given.backend.status(ids.values())[ids[small.name]].state is JobState.WAITING
    (given.folder / "go").touch()
    assert {status.state for status in given.end(ids).values()} == {JobState.COMPLETED}


def test_limits_bind_jobs_that_were_taken_over(given: Bench) -> None:
    slow = given.job("forever", run_time_max=1.5)
    large = given.job("memory_upon_file", memory_max=0.25)
    ids = given.submit(slow, large)
    given.finding(slow)
    given.finding(large)
    kill_queue()
    given.backend.status([])
    (given.folder / "go").touch()
    ended = given.end(ids)
    assert ended[slow.name].state is JobState.TIMEOUT
    assert ended[large.name].state is JobState.OUT_OF_MEMORY


def test_the_warning_reaches_a_job_that_was_taken_over(given: Bench) -> None:
    job = given.job("warned", run_time_max=3)
    ids = given.submit(job)
    given.finding(job)
    kill_queue()
    assert given.end(ids)[job.name].exit_code == 4


def test_a_job_that_ended_while_nobody_listened_is_known_to_have(given: Bench) -> None:
    good, bad = given.job("until_file"), given.job("until_file_then_fail")
    child = given.job("count", parents=[good.name])
    ids = given.submit(good, bad, child)
    pids = [given.finding(good), given.finding(bad)]
    kill_queue()
    (given.folder / "go").touch()
    eventually(lambda: not any(map(alive, pids)))
    ended = given.end(ids)
    assert [ended[j.name].exit_code for j in (good, bad, child)] == [0, 7, 0]


def test_a_job_whose_end_nobody_saw_says_so(given: Bench) -> None:
    job = given.job("forever")
    ids = given.submit(job)
    pid = given.finding(job)
    parent, queue = parent_of(pid), queue_pid()
    for victim in (queue, parent):
        os.kill(victim or 0, signal.SIGKILL)
    eventually(lambda: not alive(parent))
    assert given.backend.status(ids.values())[ids[job.name]].state is JobState.RUNNING
    os.kill(pid, signal.SIGKILL)
    status = given.end(ids)[job.name]
    assert (status.state, status.exit_code, status.signal) == (JobState.FAILED, None, None)
    assert "nothing was left to see" in status.reason


def test_what_is_run_again_is_on_record(given: Bench) -> None:
    top = given.job("fail_until_file", "top", repeatable=True)
    child = given.job("count", "child", parents=["top"], patient=True)
    blocker = given.job("until_file", program="local_bodies", threads_per_core=CPUS)
    ids = given.submit(top, child)
    eventually(lambda: given.backend.status([ids["top"]])[ids["top"]].state is JobState.FAILED)
    kill_queue()
    assert given.backend.status([ids["child"]])[ids["child"]].reason == "DependencyNeverSatisfied"
    ids |= given.submit(blocker)
    given.finding(blocker)
    (given.folder / "mended").touch()
    larger = replace(top, resources={"memory_max": 0.5})
    assert given.backend.rerun(larger, ids["top"], {ids["child"]: [ids["top"]]}) == ids["top"]
    kill_queue()
    assert given.backend.status([ids["top"]])[ids["top"]].state is JobState.WAITING
    assert given.backend.rerun(larger, ids["top"], {}) == ids["top"]
    (given.folder / "go").touch()
    assert {status.state for status in given.end(ids).values()} == {JobState.COMPLETED}
    assert given.runs() == [top.index, top.index, child.index]


def test_a_cancelled_job_stays_cancelled(given: Bench) -> None:
    running = given.job("stubborn")
    waiting = given.job("count", parents=[running.name])
    ids = given.submit(running, waiting)
    pid = given.finding(running)
    given.backend.cancel([ids[running.name]])
    kill_queue()
    ended = given.end(ids)
    assert ended[running.name].state is JobState.CANCELLED
    assert ended[waiting.name].state is JobState.DEPENDENCY_FAILED
    assert not alive(pid)


def test_a_client_does_not_notice_that_the_queue_is_killed_all_the_time(given: Bench) -> None:
    code = """
ids = {}
for _ in range(30):
    ids |= bench.submit(bench.job("count"))
print({status.state.value for status in bench.end(ids).values()})
"""
    process = client(code, str(given.folder))
    for count in (3, 9, 15, 21):
        eventually(lambda count=count: len(given.runs()) >= count)
        kill_queue()
    said, _ = process.communicate(timeout=60)
    assert said.strip() == "{'completed'}"
    assert sorted(given.runs()) == list(range(1, 31))


def test_the_queue_goes_on_although_no_client_is_there(given: Bench) -> None:
    first = given.job("until_file")
    last = given.job("count", parents=[first.name])
    given.submit(first, last)
    given.finding(first)
    given.backend.close()
    kill_queue()
    (given.folder / "go").touch()
    eventually(lambda: given.runs() == [last.index])
    given.backend = LocalBackend()


def test_a_queue_that_is_asked_to_end_ends_and_its_jobs_go_on(given: Bench) -> None:
    first = given.job("until_file")
    last = given.job("count", parents=[first.name])
    ids = given.submit(first, last)
    pid, queue = given.finding(first), queue_pid()
    given.backend.close()
    os.kill(queue or 0, signal.SIGTERM)
    eventually(lambda: not alive(queue or 0))
    (given.folder / "go").touch()
    eventually(lambda: not alive(pid))
    assert queue_pid() is None
    given.backend = LocalBackend()
    assert {status.state for status in given.end(ids).values()} == {JobState.COMPLETED}
    assert given.runs() == [last.index]


def test_a_full_disk_refuses_and_the_queue_lives(given: Bench) -> None:
    running = given.job("until_file")
    ids = given.submit(running)
    given.finding(running)
    queue = psutil.Process(queue_pid())
    queue.rlimit(psutil.RLIMIT_FSIZE, (10, psutil.RLIM_INFINITY))
    with pytest.raises(SubmissionError, match="on record"):
        given.submit(given.job("count", "refused"))
    assert given.backend.find(["refused"]) == {}
    (given.folder / "go").touch()
    assert given.end(ids)[running.name].state is JobState.COMPLETED
    queue.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
    ids |= given.submit(given.job("count", "accepted"))
    assert {status.state for status in given.end(ids).values()} == {JobState.COMPLETED}
    kill_queue()
    assert {status.state for status in given.end(ids).values()} == {JobState.COMPLETED}
