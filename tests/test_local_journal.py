"""What a later queue concludes from an earlier one's journal."""

from __future__ import annotations

import fcntl
import os
import threading
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
    book.write()
    for number in range(2):
        journal.append_process(path, identifier(number, queue), PROCESS)
    book.ended(0, "job0", Outcome(JobState.TIMEOUT, signal=15, reason="too long"))
    book.write()
    book.read_new()
    return book


def states(former: FormerJobs, *alive: ProcessIdentity) -> list[JobState | None]:
    found = [former.now(identifier(n), HERE, lambda process: process in alive) for n in range(4)]
    return [None if how is None else how.state for how in found]


def test_what_became_of_jobs(tmp_path: Path) -> None:
    written(tmp_path / "journal")
    former = Journal(tmp_path / "journal", HERE).former
    lost, runs = JobState.LOST, JobState.RUNNING
    assert states(former, PARENT, PROCESS) == [JobState.TIMEOUT, runs, runs, lost]
    assert states(former, PROCESS) == [JobState.TIMEOUT, runs, lost, lost]
    assert states(former) == [JobState.TIMEOUT, JobState.FAILED, lost, lost]
    how = former.now(identifier(0), HERE)
    assert how == Outcome(JobState.TIMEOUT, signal=15, reason="too long")
    assert former.find(["job1", "nobody"]) == {"job1": identifier(1)}


def test_a_reused_pid_is_another_process(tmp_path: Path) -> None:
    written(tmp_path / "journal")
    former = Journal(tmp_path / "journal", HERE).former
    reused = ProcessIdentity(PROCESS.pid, "999")
    assert states(former, reused)[1] is JobState.FAILED
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
    assert rebooted.state is JobState.LOST
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
    journal.append_process(path, identifier(2), PROCESS)
    exits = [(identifier(1), 0, PROCESS), (identifier(0), 9, PROCESS), (identifier(2), 0, PARENT)]
    journal.append_exits(path, exits)
    later.read_new()
    assert states(later.former, PROCESS)[:3] == [
        JobState.TIMEOUT,  # the queue's own word counts
        JobState.COMPLETED,
        JobState.RUNNING,  # the exit is that of an earlier run, in another process
    ]


def test_a_parent_that_has_said_that_it_starts_no_more_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path)
    later = Journal(path, HERE)
    assert states(later.former, PARENT)[2] is JobState.RUNNING
    journal.append_orphaned(path, PARENT)
    later.read_new()
    assert states(later.former, PARENT)[2] is JobState.LOST


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


def test_who_appends_while_the_journal_is_replaced_writes_into_the_new_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal"
    book = written(path)
    descriptor = os.open(path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    late = threading.Thread(target=journal.append_process, args=(path, identifier(2), PROCESS))
    late.start()
    fresh = path.with_suffix(".fresh")
    fresh.write_bytes(path.read_bytes())
    fresh.rename(path)
    os.close(descriptor)
    late.join()
    assert states(Journal(path, HERE).former, PROCESS)[2] is JobState.RUNNING
    del book


def test_of_a_queue_whose_jobs_were_dropped_nothing_is_certain(tmp_path: Path) -> None:
    written(tmp_path / "journal")
    former = Journal(tmp_path / "journal", HERE).former
    shorter = FormerJobs()
    shorter.read(
        str(line).replace("'", '"').replace("None", "null").encode()
        for line in former.entries(keep=0)
    )
    assert shorter.now(identifier(0), HERE) is None
    assert states(shorter, PROCESS)[1] is JobState.RUNNING
