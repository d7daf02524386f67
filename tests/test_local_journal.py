"""What a later queue concludes from an earlier one's journal."""

from __future__ import annotations

import os
from pathlib import Path

from dask_batch.backends.base import JobState
from dask_batch.backends.local import journal
from dask_batch.backends.local.identity import JobId, QueueId
from dask_batch.backends.local.journal import FormerJobs, Journal
from dask_batch.backends.local.processes import ProcessIdentity
from dask_batch.backends.local.records import Outcome

HERE = QueueId("host", "boot1", "now")
BEFORE = QueueId("host", "boot1", "before")
PARENT = ProcessIdentity(10, "100")
PROCESS = ProcessIdentity(11, "101")


def identifier(number: int, queue: QueueId = BEFORE) -> str:
    return str(JobId(queue, number))


def written(path: Path, queue: QueueId = BEFORE) -> Journal:
    """Return a journal in which job 0 has ended, 1 runs, and 2 was about to start."""
    book = Journal(path, queue)
    for number in range(3):
        book.started(number, f"job{number}", PARENT)
    for number in range(2):
        book.running(number, PROCESS)
    book.ended(0, "job0", Outcome(JobState.TIMEOUT, signal=15, reason="too long"))
    book.write()
    return book


def states(former: FormerJobs, *alive: ProcessIdentity) -> list[JobState | None]:
    found = [former.now(identifier(n), HERE, lambda process: process in alive) for n in range(4)]
    return [None if how is None else how.state for how in found]


def test_what_became_of_jobs(tmp_path: Path) -> None:
    written(tmp_path / "journal")
    former = Journal(tmp_path / "journal", HERE).former
    gone, runs = JobState.NODE_FAILURE, JobState.RUNNING
    assert states(former, PARENT, PROCESS) == [JobState.TIMEOUT, runs, runs, gone]
    assert states(former, PROCESS) == [JobState.TIMEOUT, runs, gone, gone]
    assert states(former) == [JobState.TIMEOUT, gone, gone, gone]
    how = former.now(identifier(0), HERE)
    assert how == Outcome(JobState.TIMEOUT, signal=15, reason="too long")
    assert former.find(["job1", "nobody"]) == {"job1": identifier(1)}


def test_a_reused_pid_is_another_process(tmp_path: Path) -> None:
    written(tmp_path / "journal")
    former = Journal(tmp_path / "journal", HERE).former
    reused = ProcessIdentity(PROCESS.pid, "999")
    assert states(former, reused)[1] is JobState.NODE_FAILURE
    own = ProcessIdentity.of(os.getpid())
    assert own is not None
    assert own.alive()
    assert not ProcessIdentity(own.pid, own.started + "0").alive()


def test_nothing_survives_a_reboot_not_even_an_equal_pid_and_start(tmp_path: Path) -> None:
    earlier = QueueId("host", "boot0", "before")
    written(tmp_path / "journal", earlier)
    former = Journal(tmp_path / "journal", HERE).former
    how = former.now(identifier(1, earlier), HERE, lambda _: True)
    assert how is not None
    assert how.state is JobState.NODE_FAILURE


def test_certain_only_of_what_is_certain() -> None:
    former = FormerJobs()
    rebooted = former.now(identifier(1, QueueId("host", "boot0", "any")), HERE)
    assert rebooted is not None
    assert rebooted.state is JobState.NODE_FAILURE
    unsure = [
        identifier(1),  # a queue of this boot that left no journal here
        identifier(1, HERE),
        identifier(1, QueueId("elsewhere", "boot0", "any")),
        identifier(1, QueueId("host", "0", "any")),  # a system without names for boots
        "local-1",
        "17",
        "",
    ]
    assert [former.now(job_id, HERE) for job_id in unsure] == [None] * len(unsure)


def test_worker_parents_write_on_when_the_queue_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path)
    later = Journal(path, HERE)
    journal.append_pids(path, {identifier(2): PROCESS})
    journal.append_exits(path, {identifier(1): 0, identifier(0): 9})
    later.read_new()
    assert states(later.former, PROCESS)[:3] == [
        JobState.TIMEOUT,  # the queue's own word counts
        JobState.COMPLETED,
        JobState.RUNNING,
    ]


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path)
    with path.open("ab") as file:
        file.write(
            b'\n[]\n{"a": 1}\n["start"]\n["process", "x", "y", 3]\n\xff\xfe\n["end", "cut of'
        )
    former = Journal(path, HERE).former
    assert states(former, PROCESS)[0] is JobState.TIMEOUT
    again = Journal(path, QueueId("host", "boot1", "third"))
    assert states(again.former)[0] is JobState.TIMEOUT
    assert str(HERE) in again.former.queues


def test_a_long_journal_is_shortened_and_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path)
    book = Journal(path, HERE)
    book.started(7, "own", PARENT)
    book.write()
    before = states(book.former)
    book.compact_if_large(limit_bytes=1)
    book.ended(7, "own", Outcome(JobState.COMPLETED, exit_code=0))
    book.write()
    later = Journal(path, QueueId("host", "boot1", "third")).former
    assert states(later) == before
    how = later.now(identifier(7, HERE), QueueId("host", "boot1", "third"))
    assert how == Outcome(JobState.COMPLETED, exit_code=0)


def test_a_journal_is_not_replaced_while_somebody_may_append(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    own = ProcessIdentity.of(os.getpid())
    assert own is not None
    book = Journal(path, BEFORE)
    book.started(0, "runs", own)
    book.write()
    later = Journal(path, HERE)
    inode = path.stat().st_ino
    later.compact_if_large(limit_bytes=1)
    assert path.stat().st_ino == inode


def test_of_a_queue_whose_jobs_were_dropped_nothing_is_certain(tmp_path: Path) -> None:
    written(tmp_path / "journal")
    former = Journal(tmp_path / "journal", HERE).former
    shorter = FormerJobs()
    shorter.read(
        str(line).replace("'", '"').replace("None", "null").encode()
        for line in former.entries(keep=2)
    )
    assert shorter.now(identifier(0), HERE) is None
    assert states(shorter, PROCESS)[1] is JobState.RUNNING
