"""The local queue's scheduling core: policy by example, invariants by random histories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dask_batch.backends.base import JobState
from dask_batch.backends.gpus import Devices
from dask_batch.backends.local.queue import WorkQueue as Queue
from dask_batch.backends.local.records import Demand, Entry, Outcome, RefusedError
from dask_batch.backends.local.room import PASS_LIMIT

GOOD = Outcome(JobState.COMPLETED, exit_code=0)
FAILURES = (JobState.FAILED, JobState.CANCELLED, JobState.DEPENDENCY_FAILED)
BAD = Outcome(JobState.FAILED, exit_code=1)


def entry(name: str, *parents: int, cpus: int = 1, memory: int = 0, **more: Any) -> Entry:
    demand = {key: more.pop(key) for key in ("devices", "gpus", "group", "priority") if key in more}
    return Entry(name, Demand(cpus, memory, **demand), parents, **more)


def started(queue: Queue) -> list[str]:
    return [job.name for job in queue.start_due()]


def state(queue: Queue, number: int) -> JobState:
    job = queue.jobs.get(number)
    assert job is not None
    return job.state


@pytest.fixture
def queue() -> Queue:
    return Queue(cpus=4, memory_bytes=100)


def test_roots_are_held_until_released_and_the_rest_waits(queue: Queue) -> None:
    numbers = queue.hand_over([entry("a"), entry("b", 0)])
    assert [state(queue, n) for n in numbers] == [JobState.HELD, JobState.WAITING]
    assert started(queue) == []
    queue.release(numbers)
    assert started(queue) == ["a"]
    queue.end(0, GOOD)
    assert started(queue) == ["b"]


def test_a_hand_over_is_taken_whole_or_not_at_all(queue: Queue) -> None:
    queue.hand_over([entry("taken")])
    for bad in (entry("taken"), entry("x"), entry("large", cpus=5), entry("big", memory=101)):
        with pytest.raises(RefusedError) as caught:
            queue.hand_over([entry("x"), bad])
        assert caught.value.name == bad.name
    with pytest.raises(RefusedError):
        queue.hand_over([entry("child", 0)])
    assert [job.name for job in queue.jobs] == ["taken"]


def test_failure_reaches_all_descendants_and_nobody_else(queue: Queue) -> None:
    queue.hand_over([entry("a"), entry("b", 0), entry("c", 1), entry("other")])
    queue.release(range(4))
    assert started(queue) == ["a", "other"]
    queue.end(0, BAD)
    assert [state(queue, n) for n in (1, 2)] == [JobState.DEPENDENCY_FAILED] * 2
    assert state(queue, 3) is JobState.RUNNING
    job = queue.jobs.get(2)
    assert job is not None
    assert job.outcome is not None
    assert "b" in job.outcome.reason


def test_after_counts_what_is_known_of_earlier_jobs(queue: Queue) -> None:
    queue.hand_over([entry("good"), entry("bad"), entry("unfinished")])
    queue.release(range(2))
    queue.start_due()
    queue.end(0, GOOD)
    queue.end(1, BAD)
    numbers = queue.hand_over(
        [
            entry("1", after=(0,)),
            entry("2", after=(1,)),
            entry("3", after=(2,)),
            entry("4", after=(99,)),
            entry("5", 1),
        ]
    )
    queue.release(numbers)
    assert started(queue) == ["1", "4"]
    assert [state(queue, numbers[i]) for i in (1, 4)] == [JobState.DEPENDENCY_FAILED] * 2
    queue.release([2])
    assert started(queue) == ["unfinished"]
    queue.end(2, GOOD)
    assert started(queue) == ["3"]


def test_priority_first_then_order(queue: Queue) -> None:
    queue.hand_over([entry("a", cpus=4), entry("b", cpus=4), entry("c", cpus=4, priority=1)])
    queue.release(range(3))
    order = []
    for _ in range(3):
        (job,) = queue.start_due()
        order.append(job.name)
        queue.end(job.number, GOOD)
    assert order == ["c", "a", "b"]


def test_small_jobs_pass_a_large_one_but_not_for_ever(queue: Queue) -> None:
    queue.hand_over([entry("long"), entry("large", cpus=4)])
    queue.hand_over([entry(f"small{i}", cpus=3) for i in range(PASS_LIMIT + 5)])
    queue.release(range(PASS_LIMIT + 7))
    assert started(queue) == ["long", "small0"]
    passed = 1
    while True:
        (small,) = [n for n in queue.running if n != 0]
        queue.end(small, GOOD)
        if not started(queue):
            break
        passed += 1
    assert passed == PASS_LIMIT
    queue.end(0, GOOD)
    assert started(queue) == ["large"]


def test_a_cap_binds_its_group_alone_and_does_not_count_as_passing(queue: Queue) -> None:
    queue.hand_over([entry(f"g{i}", group="g") for i in range(4)], cap=1)
    queue.hand_over([entry("free")])
    queue.release(range(5))
    assert started(queue) == ["g0", "free"]
    queue.end(0, GOOD)
    assert started(queue) == ["g1"]


def test_a_cap_on_cpus_keeps_the_order_within_its_group(queue: Queue) -> None:
    entries = [entry("one", cpus=1, group="g"), entry("two", cpus=2, group="g")]
    queue.hand_over([*entries, entry("three", cpus=1, group="g")], cap=[None, 2])
    queue.hand_over([entry("free")])
    queue.release(range(4))
    # The third would fit, but the second has waited longer.
    assert started(queue) == ["one", "free"]
    queue.end(0, GOOD)
    assert started(queue) == ["two"]
    queue.end(1, GOOD)
    assert started(queue) == ["three"]


def test_caps_on_jobs_and_on_cpus_both_bind(queue: Queue) -> None:
    queue.hand_over([entry(f"g{i}", cpus=1, group="g") for i in range(3)], cap=[1, 2])
    queue.release(range(3))
    assert started(queue) == ["g0"]


def test_cancel_of_waiting_and_of_running_jobs(queue: Queue) -> None:
    queue.hand_over([entry("a"), entry("b", 0), entry("c")])
    queue.release([0])
    queue.start_due()
    assert queue.cancel(0) is True
    assert state(queue, 0) is JobState.RUNNING
    assert queue.cancel(2) is False
    assert state(queue, 2) is JobState.CANCELLED
    queue.release([2])
    assert started(queue) == []
    queue.end(0, Outcome(JobState.CANCELLED))
    assert state(queue, 1) is JobState.DEPENDENCY_FAILED
    assert queue.cancel(0) is False
    assert queue.cancel(99) is False


def test_ended_jobs_are_forgotten_oldest_first_and_names_free_again() -> None:
    queue = Queue(cpus=1, memory_bytes=1, keep_ended=2)
    for i in range(4):
        (number,) = queue.hand_over([entry(f"j{i}")])
        queue.cancel(number)
    assert [job.name for job in queue.jobs] == ["j2", "j3"]
    assert queue.jobs.find("j0") is None
    assert queue.jobs.find("j3") == 3
    assert queue.hand_over([entry("j3")]) == range(4, 5)
    assert queue.jobs.find("j3") == 4


def test_the_failure_of_a_job_that_may_run_again_leaves_its_dependents_queued(
    queue: Queue,
) -> None:
    queue.hand_over([entry("a", repeatable=True), entry("b", 0), entry("c", 1)])
    queue.release([0])
    queue.start_due()
    queue.end(0, BAD)
    child = queue.jobs[1]
    assert (child.state, child.reported_state) == (JobState.WAITING, JobState.DEPENDENCY_FAILED)
    assert queue.jobs[2].reported_state is JobState.WAITING
    assert not queue.can_progress
    queue.rerun(0, entry("a", cpus=2, repeatable=True))
    assert child.reported_state is JobState.WAITING
    assert started(queue) == ["a"]
    assert queue.free_cpus == 2
    queue.end(0, GOOD)
    assert started(queue) == ["b"]


def test_what_cannot_run_again_takes_its_dependents_along(queue: Queue) -> None:
    queue.hand_over([entry("a", repeatable=True), entry("b", 0, repeatable=True), entry("c", 1)])
    queue.cancel(0)
    assert [state(queue, n) for n in (1, 2)] == [JobState.DEPENDENCY_FAILED] * 2


def test_a_place_in_the_queue_is_void_once_the_job_has_run(queue: Queue) -> None:
    queue.hand_over([entry("first", cpus=4), entry("a"), entry("b")])
    queue.release(range(3))
    assert started(queue) == ["first"]
    queue.repoint(1, [])  # queued for resources a second time
    queue.end(0, GOOD)
    assert started(queue) == ["a", "b"]
    queue.end(1, BAD)
    queue.rerun(1, entry("a", after=(2,)))
    assert started(queue) == []
    queue.end(2, GOOD)
    assert started(queue) == ["a"]


def test_conditions_on_failure_and_end(queue: Queue) -> None:
    queue.hand_over([entry("good"), entry("bad"), entry("slow")])
    conditions = queue.hand_over(
        [
            entry("upon failure", after_failure=(0, 1, 2)),
            entry("upon none", after_failure=(0,)),
            entry("at the end", after_end=(0, 1)),
            entry("unknown", after_failure=(99,), after_end=(98,)),
        ]
    )
    assert started(queue) == ["unknown"]
    queue.release(range(3))
    assert started(queue) == ["good", "bad", "slow"]
    queue.end(0, GOOD)
    assert state(queue, conditions[1]) is JobState.DEPENDENCY_FAILED
    queue.end(1, BAD)
    assert started(queue) == ["upon failure", "at the end"]


TWO = Devices("CUDA_VISIBLE_DEVICES", ("0", "1"))
BY_ID = Devices("CUDA_VISIBLE_DEVICES", ("GPU-a", "GPU-b"))


def held(queue: Queue) -> list[tuple[str, ...]]:
    return [job.devices for job in queue.jobs if job.number in queue.running]


def test_each_device_is_one_jobs_alone(queue: Queue) -> None:
    queue.hand_over([entry(f"j{i}", gpus=1, devices=TWO) for i in range(3)])
    queue.hand_over([entry("both", gpus=2, devices=TWO), entry("none", devices=TWO)])
    queue.release(range(5))
    assert started(queue) == ["j0", "j1", "none"]
    assert held(queue) == [("0",), ("1",), ()]
    queue.end(0, GOOD)
    assert started(queue) == ["j2"]
    assert queue.jobs[2].devices == ("0",)
    queue.end(1, BAD)
    assert started(queue) == []
    queue.end(2, GOOD)
    assert started(queue) == ["both"]
    assert queue.jobs[3].devices == ("0", "1")


def test_a_client_gets_only_those_devices_that_it_names(queue: Queue) -> None:
    second = Devices(TWO.variable, ("1",))
    queue.hand_over([entry("any", gpus=1, devices=TWO), entry("second", gpus=1, devices=second)])
    queue.hand_over([entry("second too", gpus=1, devices=second)])
    queue.release(range(3))
    assert started(queue) == ["any", "second"]
    assert held(queue) == [("0",), ("1",)]
    queue.end(0, GOOD)
    assert started(queue) == []
    queue.end(1, GOOD)
    assert started(queue) == ["second too"]


def test_devices_that_are_named_in_two_ways_are_not_in_use_at_the_same_time(
    queue: Queue,
) -> None:
    queue.hand_over([entry("number", gpus=1, devices=TWO), entry("id", gpus=1, devices=BY_ID)])
    queue.release(range(2))
    assert started(queue) == ["number"]
    queue.end(0, GOOD)
    assert started(queue) == ["id"]
    assert queue.jobs[1].devices == ("GPU-a",)


def test_a_job_that_is_put_back_holds_no_devices(queue: Queue) -> None:
    queue.hand_over([entry("a", gpus=2, devices=TWO), entry("b", gpus=2, devices=TWO, priority=1)])
    queue.release([0])
    assert started(queue) == ["a"]
    queue.release([1])
    queue.put_back(0)
    assert queue.jobs[0].devices == ()
    assert started(queue) == ["b"]


def test_more_devices_than_are_named_are_refused(queue: Queue) -> None:
    with pytest.raises(RefusedError, match="'a' names too few GPUs"):
        queue.hand_over([entry("a", gpus=3, devices=TWO)])
    with pytest.raises(RefusedError, match="too few"):
        queue.hand_over([entry("a", gpus=1)])


class History(RuleBasedStateMachine):
    """Any history: never more than the machine, never before parents, never stuck.

    And done once more, from what is on record of it, it comes to the same.
    """

    @initialize(cpus=st.integers(1, 4))
    def begin(self, cpus: int) -> None:
        self.queue = Queue(cpus=cpus, memory_bytes=10, keep_ended=1000)
        self.parents: dict[int, set[int]] = {}
        self.names = 0
        self.again: set[int] = set()
        self.events: list[Callable[[Queue], object]] = []

    @rule(data=st.data(), size=st.integers(1, 6), cap=st.none() | st.integers(1, 2))
    def hand_over(self, data: st.DataObject, size: int, cap: int | None) -> None:
        entries = []
        known = len(self.parents)
        for position in range(size):
            some = st.sets(st.integers(0, position - 1), max_size=2) if position else st.just(set())
            earlier = (
                st.sets(st.integers(0, known - 1), max_size=2) if known else st.just(set[int]())
            )
            entries.append(
                entry(
                    f"n{self.names}",
                    *data.draw(some),
                    cpus=data.draw(st.integers(1, self.queue.cpus)),
                    memory=data.draw(st.integers(0, 10)),
                    after=tuple(data.draw(earlier)),
                    group="g" if cap else None,
                    priority=data.draw(st.integers(-1, 1)),
                    gpus=data.draw(st.sampled_from([0, 0, 1, 2])),
                    devices=data.draw(st.sampled_from([TWO, BY_ID])),
                    repeatable=data.draw(st.booleans()),
                    after_failure=tuple(data.draw(earlier)),
                    after_end=tuple(data.draw(earlier)),
                )
            )
            self.names += 1
        numbers = self.queue.hand_over(entries, cap=cap)
        self.events.append(lambda queue: queue.hand_over(entries, cap=cap))
        for number, item in zip(numbers, entries, strict=True):
            self.parents[number] = {numbers[p] for p in item.parents} | set(item.after)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        numbers = data.draw(st.sets(st.integers(0, len(self.parents))))
        self.queue.release(numbers)
        self.events.append(lambda queue: queue.release(numbers))

    @rule()
    def start(self) -> None:
        for job in self.queue.start_due():
            self.events.append(
                lambda queue, number=job.number, devices=job.devices: queue.begin(number, devices)
            )
            for parent in self.parents[job.number] if job.number not in self.again else ():
                assert state(self.queue, parent) is JobState.COMPLETED

    @rule(data=st.data(), how=st.sampled_from([GOOD, GOOD, GOOD, BAD]))
    def end(self, data: st.DataObject, how: Outcome) -> None:
        if self.queue.running:
            self.queue.end(data.draw(st.sampled_from(self.queue.running)), how)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.queue.cancel(data.draw(st.integers(0, len(self.parents))))

    @rule(data=st.data(), cpus=st.integers(1, 4))
    def rerun(self, data: st.DataObject, cpus: int) -> None:
        failed = [job for job in self.queue.jobs if state(self.queue, job.number) in FAILURES]
        if not failed:
            return
        job = data.draw(st.sampled_from(failed))
        self.record()
        again = entry(job.name, cpus=min(cpus, self.queue.cpus), repeatable=True)
        self.queue.rerun(job.number, again)
        self.again.add(job.number)
        self.events.append(lambda queue: queue.rerun(job.number, again))

    @invariant()
    def record(self) -> None:
        """Put on record what has ended."""
        ended, self.queue.ended = self.queue.ended, []
        for job in ended:
            self.events.append(
                lambda queue, number=job.number, how=job.outcome: (
                    queue.end if number in queue.running else queue.end_unstarted
                )(number, how)
            )

    @invariant()
    def fits_the_machine(self) -> None:
        running = [self.queue.jobs.get(number) for number in self.queue.running]
        assert self.queue.cpus - self.queue.free_cpus == sum(j.demand.cpus for j in running if j)
        assert self.queue.free_cpus >= 0
        assert self.queue.free_memory_bytes >= 0
        devices = [name for job in running if job for name in job.devices]
        assert len(devices) == len(set(devices)) == sum(j.demand.gpus for j in running if j)

    @invariant()
    def descendants_of_failures_have_failed(self) -> None:
        for number, parents in self.parents.items():
            ended = [state(self.queue, p) for p in parents if state(self.queue, p).ended]
            if any(how is not JobState.COMPLETED for how in ended) and number not in self.again:
                assert self.queue.jobs[number].reported_state.ended

    def teardown(self) -> None:
        """Let everything go: it must all end, but for what waits for a failure to be mended."""
        if not hasattr(self, "queue"):
            return
        self.repeat()
        self.queue.release(list(self.parents))
        while self.queue.jobs.unfinished:
            for job in [job for job in self.queue.jobs if job.broken]:
                self.queue.cancel(job.number)
            self.queue.start_due()
            if not self.queue.jobs.unfinished:
                break
            assert self.queue.running, "jobs are left and nothing starts"
            self.queue.end(self.queue.running[0], GOOD)
        assert self.queue.free_cpus == self.queue.cpus
        assert self.queue.free_memory_bytes == self.queue.memory_bytes

    def repeat(self) -> None:
        """Do everything once more, in another queue."""
        self.record()
        another = Queue(cpus=self.queue.cpus, memory_bytes=10, keep_ended=1000)
        for event in self.events:
            event(another)
        for job, same in zip(self.queue.jobs, another.jobs, strict=True):
            for what in (
                "name",
                "state",
                "outcome",
                "demand",
                "unmet",
                "broken",
                "waits",
                "devices",
            ):
                assert getattr(job, what) == getattr(same, what), what
            assert job.waits == same.waits
        assert sorted(self.queue.running) == sorted(another.running)
        assert self.queue.free_cpus == another.free_cpus
        assert self.queue.can_progress == another.can_progress


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
