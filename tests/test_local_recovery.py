"""A queue that goes on from the journal, shortened or not, stands where the other one stood."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from dask_batch.backends.base import JobState
from dask_batch.backends.local import journal as journals
from dask_batch.backends.local.entries import Entries
from dask_batch.backends.local.identity import JobId, QueueId
from dask_batch.backends.local.intake import Intake
from dask_batch.backends.local.journal import Journal
from dask_batch.backends.local.processes import ProcessIdentity
from dask_batch.backends.local.queue import WorkQueue
from dask_batch.backends.local.records import Outcome
from dask_batch.backends.local.recovery import restore
from dask_batch.backends.local.submission import Member, Profile

GOOD = Outcome(JobState.COMPLETED, exit_code=0)
BAD = Outcome(JobState.FAILED, exit_code=1, reason="ended with exit code 1")
PARENT, PROCESS = ProcessIdentity(10, "100"), ProcessIdentity(11, "101")
_lives = itertools.count()


class Life:
    """One life of a queue: without processes, but with a journal."""

    def __init__(self, path: Path, *, cpus: int = 8) -> None:
        self.journal = Journal(path, QueueId("host", "boot", f"life{next(_lives)}"))
        self.queue = WorkQueue(cpus=cpus, memory_bytes=100)
        self.entries = Entries(self.journal.queue)
        self.intake = Intake(self.queue, self.journal, self.entries)
        restore(self.journal.former, self.queue, self.entries)

    def id(self, number: int) -> str:
        return str(JobId(self.journal.queue, number))

    def start(self) -> list[int]:
        due = self.queue.start_due()
        for job in due:
            self.journal.started(job.number, job.name, PARENT, job.devices)
        self.journal.write()
        return [job.number for job in due]

    def end(self, number: int, how: Outcome) -> None:
        self.queue.end(number, how)
        self.intake.record_ends()

    def looks(self) -> list[Any]:
        return [
            (job.number, job.name, job.state, job.reported_state, job.demand, job.unmet)
            + ((job.devices,) if job.devices else ())
            + ((job.payload,) if job.payload else ())
            for job in self.queue.jobs
            if not job.state.ended
        ]


def member(name: str, *parents: int, **more: Any) -> Member:
    variables = {"A": "b\udcff", "N": str(len(name))}
    own = {name: more.pop(name) for name in ("cpus", "gpus") if name in more}
    gpus = {"gpu_variable": "CUDA_VISIBLE_DEVICES", "gpu_names": ("0", "1", "2")}
    profile = Profile("/d", "/l", "/w", variables, "/p", program="x.y", **own, **gpus)
    return Member(name, profile, 7, parents, **more)


def busy(path: Path) -> Life:
    """Return a queue in the midst of things."""
    life = Life(path)
    life.intake.hand_over([member("done"), member("done too", 0)], "g", 2)  # 0, 1
    life.intake.release([0])
    for number in (0, 1):
        life.start()
        life.end(number, GOOD)
    life.intake.hand_over([member("failed", repeatable=True), member("other")], None, None)  # 2, 3
    life.intake.release([2])
    life.start()
    life.end(2, BAD)
    life.intake.hand_over(
        [
            member("stuck", after=(life.id(2),)),
            member("below", 0),
            member("held"),
            member("running", cpus=2, gpus=2, after=(life.id(1),)),
            member("steward", after_failure=(life.id(3),), after_end=(life.id(6),)),
        ],
        None,
        None,
    )  # 4 to 8
    life.intake.release([7])
    life.intake.release([4])
    assert life.start() == [7]
    journals.append_process(path, life.id(7), PROCESS)
    return life


@pytest.mark.parametrize("shortened", [0, 1, 2])
def test_everything_is_as_it_was(tmp_path: Path, shortened: int) -> None:
    life = busy(tmp_path / "journal")
    for _ in range(shortened):
        life.journal.compact_if_large(limit_bytes=1)
    later = Life(tmp_path / "journal")
    assert later.journal.queue == life.journal.queue
    assert later.looks() == life.looks()
    assert later.queue.running == (7,)
    assert later.queue.free_cpus == 6
    assert later.queue.jobs[7].devices == ("0", "1")
    assert later.queue.jobs.next_number == 9
    assert later.journal.former.jobs[life.id(7)].process == PROCESS
    for number, state in ((0, JobState.COMPLETED), (2, JobState.FAILED)):
        how = later.journal.former.now(life.id(number), life.journal.queue, lambda _: False)
        assert how is not None
        assert how.state is state
    assert later.intake.run_again(life.id(2), member("failed", cpus=3), None, None) == 2
    third = Life(tmp_path / "journal")
    assert third.start() == [2]
    third.end(2, GOOD)
    assert third.start() == [4]
    assert third.intake.hand_over([member("new")], None, None) == range(9, 10)


def test_a_shorter_journal_is_shorter(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    life = busy(path)
    for i in range(50):
        (number,) = life.intake.hand_over([member(f"n{i}")], None, None)
        life.intake.release([number])
        life.start()
        life.end(number, GOOD)
    before = path.stat().st_size
    life.journal.compact_if_large(limit_bytes=1)
    assert path.stat().st_size < before / 2
    assert Life(path).looks() == life.looks()


def test_wherever_the_journal_is_cut_off_no_job_is_taken_by_half(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    busy(path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 23):
        path.write_bytes(whole[:size])
        names = {job.name for job in Life(path).queue.jobs}
        for family in ({"done", "done too"}, {"failed", "other"}, {"stuck", "below", "held"}):
            assert family <= names or not family & names


def test_a_queue_that_has_nothing_left_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    life = Life(path)
    life.intake.hand_over([member("a")], None, None)
    life.queue.cancel(0)
    life.intake.record_ends()
    assert Life(path).journal.queue != life.journal.queue


def test_what_a_smaller_machine_cannot_give_is_left_out_and_the_rest_goes_on(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal"
    life = Life(path)
    life.intake.hand_over([member("large", cpus=8)], None, None)
    life.intake.hand_over([member("small")], None, None)
    later = Life(path, cpus=2)
    assert [(job.number, job.name) for job in later.queue.jobs] == [(1, "small")]
    assert later.intake.hand_over([member("next")], None, None) == range(2, 3)


def test_what_cannot_be_put_on_record_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = busy(tmp_path / "journal")
    before = life.looks()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journals, "_append", full)
        with pytest.raises(OSError, match="No space"):
            life.intake.hand_over([member("new")], None, None)
        with pytest.raises(OSError, match="No space"):
            life.intake.run_again(life.id(2), member("failed"), None, None)
        life.end(7, GOOD)
    assert life.looks() == [look for look in before if look[0] != 7]
    life.intake.release([6])
    assert Life(tmp_path / "journal").looks() == life.looks()
