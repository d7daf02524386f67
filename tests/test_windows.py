"""A queue that takes fewer jobs than a graph has: windows, stewards, and the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dask_batch.backends.base import Job, JobState
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims
from dask_batch.cache.store import Cache
from dask_batch.engine import Engine
from dask_batch.errors import DependencyFailedError, GivenUpTaskError, QueueFullError
from dask_batch.future import BatchFuture
from dask_batch.handover import HandOver
from dask_batch.preparation import PreparedJob
from dask_batch.request import Request
from dask_batch.standing import Standings
from dask_batch.steward import Steward
from dask_batch.watch import Pace, Watch
from test_handover import Recorder, key_of, prepared


class Small(Recorder):
    """A batch system that takes so many jobs at a time, and runs them when it is told to."""

    def __init__(self, cache: Cache, limit: int) -> None:
        super().__init__()
        self.cache = cache
        self.limit = limit
        self.fail: set[str] = set()
        self.ids_of_stewards: set[str] = set()

    @property
    def queued(self) -> list[str]:
        return [job_id for job_id, state in self.states.items() if not state.ended]

    def submit(self, jobs: Sequence[Job], accepted: Callable[[str, str], None]) -> None:
        for job in jobs:
            if len(self.queued) >= self.limit:
                error = QueueFullError(1, ["submit"], "too many jobs")
                error.job_name = job.name
                raise error
            super().submit([job], accepted)
            if job.program != "dask_batch.job":
                self.ids_of_stewards.add(self.names[job.name])
                self.states[self.names[job.name]] = JobState.WAITING

    def stewards(self) -> list[Job]:
        return [job for job in self.jobs if job.program == "dask_batch.steward"]

    def kept(self) -> list[str]:
        """Return the functions of all jobs that were not withdrawn, sorted."""
        jobs = [job for job in self.jobs if job.program == "dask_batch.job"]
        cancelled = JobState.CANCELLED
        return sorted(
            job.name.partition("-")[0]
            for job in jobs
            if self.states[self.names[job.name]] is not cancelled
        )

    def run(self, count: int = 1000) -> None:
        """Run so many of the jobs that can run, in their order."""
        by_name = {job.name: job for job in self.jobs}
        for name, job in list(by_name.items()):
            job_id = self.names[name]
            above = [self.names[parent] for parent in job.parents] + list(job.after)
            ready = all(self.states[each] is JobState.COMPLETED for each in above)
            waits = self.states[job_id] is JobState.WAITING
            if count and waits and ready and job.program == "dask_batch.job":
                count -= 1
                self._run(job, job_id)

    def _run(self, job: Job, job_id: str) -> None:
        function = job.name.partition("-")[0]
        claim = Claims(self.cache).current(key_of(function))
        assert claim is not None
        if function in self.fail:
            self.states[job_id] = JobState.FAILED
            attempts.end(
                self.cache,
                key_of(function),
                claim.generation,
                {"outcome": "died", "message": "it died", "function": function},
            )
        else:
            self.cache.publish(key_of(function), function, {})
            self.states[job_id] = JobState.COMPLETED


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask_batch.submission._PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr("dask_batch.backlog._PAUSES_S", (0.01,))


def wide(count: int, **retry: Any) -> tuple[PreparedJob, ...]:
    """Return a graph of so many roots and as many children."""
    roots = [prepared(f"root{i}") for i in range(count)]
    children = [prepared(f"child{i}", f"root{i}") for i in range(count)]
    header = {
        "attributes": {"function": ""},
        "retry": {"retries": 0, **retry},
    }
    return tuple(
        dataclasses.replace(
            job, header={**header, "attributes": {"function": job.function}}, wanted=True
        )
        for job in (*roots, *children)
    )


def standings_of(cache: Cache, backend: Any) -> Standings:
    return Standings(cache, Claims(cache), backend, lambda name: None)


def hand_over(cache: Cache, backend: Any, **options: Any) -> HandOver:
    return HandOver(standings_of(cache, backend), common={}, **options)


# ---- one window ------------------------------------------------------------------------------


def test_a_full_queue_keeps_what_it_took_and_a_steward_for_the_rest(cache: Cache) -> None:
    backend = Small(cache, 6)
    handed = hand_over(cache, backend)(wide(5), {})
    assert len(handed.submitted) == 5
    assert set(handed.left) == {key_of(f"child{i}") for i in range(5)}
    (steward,) = backend.stewards()
    assert handed.heir == backend.names[steward.name]
    # Half of the window, from its beginning.
    assert steward.after_end == tuple(handed.submitted[:3])
    assert steward.name == f"steward-{handed.run_id}-0"
    assert all(backend.states[job_id] is JobState.WAITING for job_id in handed.submitted)


def test_the_last_jobs_make_room_for_the_steward(cache: Cache) -> None:
    backend = Small(cache, 7)
    handed = hand_over(cache, backend)(wide(5), {})
    assert len(backend.queued) == 7
    assert len(handed.submitted) == 6
    assert set(handed.left) == {key_of(f"child{i}") for i in range(1, 5)}
    cancelled = [i for i, state in backend.states.items() if state is JobState.CANCELLED]
    assert len(cancelled) == 1
    log = Claims(cache).log(str(handed.run_id))
    assert not set(cancelled) & set(log.ids.values())


def test_a_graph_that_just_fits_makes_room_for_the_steward_it_needs(cache: Cache) -> None:
    backend = Small(cache, 10)
    handed = hand_over(cache, backend)(wide(5, retries=1), {})
    # One steward for failures, and since there is a rest now, one for that.
    assert len(handed.stewards) == 2
    assert len(handed.submitted) == 8
    assert handed.heir in handed.stewards
    of_failures = [job for job in backend.stewards() if job.after_failure][-1]
    assert of_failures.after_failure == tuple(handed.submitted)
    assert backend.queued == sorted([*handed.submitted, *handed.stewards], key=int)


def test_of_a_queue_that_takes_nothing_nothing_is_left(cache: Cache) -> None:
    backend = Small(cache, 0)
    handed = hand_over(cache, backend)(wide(2), {})
    assert handed.run_id is None
    assert len(handed.left) == 4
    assert Claims(cache).unsettled() == []
    assert list((cache.path / "definitions").glob("*.h5")) == []
    backend.limit = 100
    assert len(hand_over(cache, backend)(wide(2), {}).submitted) == 4


def test_room_for_the_steward_alone_is_no_room(cache: Cache) -> None:
    backend = Small(cache, 1)
    handed = hand_over(cache, backend)(wide(2), {})
    assert handed.submitted == []
    assert backend.queued == []


def test_without_stewards_the_whole_window_is_jobs(cache: Cache) -> None:
    backend = Small(cache, 6)
    handed = hand_over(cache, backend, steward=False)(wide(5, retries=3), {})
    assert len(handed.submitted) == 6
    assert handed.heir is None
    assert backend.stewards() == []


def test_nobody_waits_for_what_was_left(cache: Cache) -> None:
    backend = Small(cache, 6)
    first = hand_over(cache, backend)(wide(5), {})
    backend.limit = 100
    second = hand_over(cache, backend)(wide(5), {})
    assert len(second.submitted) == 5
    assert second.left == ()
    assert set(second.under_way) == {job.key for job in wide(5)}
    assert first.under_way.keys() < second.under_way.keys()


def test_a_job_that_waits_for_one_that_may_be_repeated_is_patient(cache: Cache) -> None:
    backend = Small(cache, 5)
    first = hand_over(cache, backend)(wide(4, retries=1), {})
    backend.limit = 100
    second = hand_over(cache, backend)(wide(4, retries=1), {})
    patient = {job.name.partition("-")[0] for job in backend.jobs if job.patient}
    under_way = {job.function for job in wide(4) if job.key in first.under_way}
    assert patient == {name.replace("root", "child") for name in under_way}
    assert Claims(cache).log(str(first.run_id)).awaited == (second.run_id,)


def test_a_steward_is_handed_over_for_what_may_be_repeated_and_for_nothing_else(
    cache: Cache,
) -> None:
    backend = Small(cache, 100)
    hand_over(cache, backend)(wide(1), {})
    assert backend.stewards() == []
    handed = hand_over(cache, backend)(
        [dataclasses.replace(prepared("again"), header={"retry": {"retries": 1}})], {}
    )
    (steward,) = backend.stewards()
    assert steward.after_failure == tuple(handed.submitted)
    assert steward.resources["memory_max"] == 1
    assert steward.log_directory.name == "stewards"


def test_a_refused_steward_does_not_take_the_graph_along(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Small(cache, 100)
    backend.refuse = "steward"
    handed = hand_over(cache, backend)(wide(1, retries=1), {})
    assert len(handed.submitted) == 2
    assert "only while a client is there" in caplog.text


def test_a_large_run_has_several_stewards(cache: Cache) -> None:
    backend = Small(cache, 5000)
    handed = hand_over(cache, backend)(wide(600, retries=1), {})
    stewards = backend.stewards()
    assert [len(job.after_failure) for job in stewards] == [500, 500, 200]
    assert [job.index for job in stewards] == [0, 1, 2]
    assert [i for job in stewards for i in job.after_failure] == handed.submitted


# ---- the client goes on ----------------------------------------------------------------------


class Driven:
    """An engine whose turns the test takes, and whose batch system it runs."""

    def __init__(self, cache: Cache, limit: int, *, steward: bool = True) -> None:
        self.backend = Small(cache, limit)
        standings = standings_of(cache, self.backend)
        pace = Pace(0.0, 0.0, output_grace_s=0.0, failure_grace_s=0.0)
        watch = Watch(cache, self.backend, pace, standings)
        self.engine = Engine(HandOver(standings, common={}, steward=steward), watch)
        self.engine._ensure_thread = lambda: None  # type: ignore[method-assign]

    def request(self, jobs: Sequence[PreparedJob]) -> dict[str, BatchFuture]:
        futures = {job.function: BatchFuture(self.engine, job.key) for job in jobs}
        self.engine.request(Request(jobs, tuple(futures.values())))
        return futures

    def turns(self, *, until: Callable[[], bool]) -> None:
        for _ in range(500):
            if until():
                return
            self.engine._take_turn()
            self.backend.run(2)
        raise AssertionError("it does not come to an end")


@pytest.fixture
def driven(cache: Cache) -> Driven:
    return Driven(cache, 6)


def test_the_client_hands_over_the_rest_as_there_is_room(driven: Driven) -> None:
    futures = driven.request(wide(12))
    driven.turns(until=lambda: all(future.done() for future in futures.values()))
    assert {name: future.result() for name, future in futures.items()} == {n: n for n in futures}
    assert driven.backend.kept() == sorted(futures)


def test_what_depends_on_a_failure_of_an_earlier_window_fails(driven: Driven) -> None:
    driven.backend.fail = {"root1"}
    futures = driven.request(wide(6))
    driven.turns(until=lambda: all(future.done() for future in futures.values()))
    failed = {name for name, future in futures.items() if future.exception() is not None}
    assert failed == {"root1", "child1"}
    error = futures["child1"].exception()
    assert isinstance(error, DependencyFailedError)
    assert error.__cause__ is futures["root1"].exception()


def test_a_request_that_needs_what_is_left_waits_with_it(driven: Driven) -> None:
    first = driven.request(wide(6))
    driven.engine._take_turn()
    second = driven.request(
        [
            dataclasses.replace(
                prepared("last", "child5"), header={"attributes": {"function": "last"}}
            )
        ]
    )
    futures = {**first, **second}
    driven.turns(until=lambda: all(future.done() for future in futures.values()))
    assert futures["last"].result() == "last"


def test_cancelling_all_cancels_what_is_left(driven: Driven) -> None:
    futures = driven.request(wide(6))
    driven.engine._take_turn()
    driven.engine._cancel_all()
    assert all(future.cancelled() for future in futures.values())
    assert driven.backend.queued == []
    assert driven.engine.idle()


def test_nothing_is_handed_over_for_what_nobody_wants(driven: Driven) -> None:
    futures = driven.request(wide(6))
    driven.engine._take_turn()
    before = len(driven.backend.jobs)
    for future in futures.values():
        future.cancel()
        driven.engine._forget(future)
    assert driven.engine.idle()
    assert len(driven.backend.jobs) == before


def test_flushing_waits_for_somebody_who_hands_over_the_rest(cache: Cache) -> None:
    driven = Driven(cache, 0)
    driven.request(wide(6))
    driven.engine._take_turn()
    assert driven.engine._unguarded
    driven.backend.limit = 6
    driven.turns(until=lambda: bool(driven.backend.stewards()))
    assert not driven.engine._unguarded


def test_a_run_that_is_given_up_takes_what_was_left_of_it_along(driven: Driven) -> None:
    futures = driven.request(wide(6))
    driven.engine._take_turn()
    run_id = Claims(driven.engine.cache).run_ids()[0]
    cause = RuntimeError("no interpreter")
    driven.engine._given_up(run_id, cause)
    error = futures["child5"].exception()
    assert isinstance(error, GivenUpTaskError)
    assert error.__cause__ is cause
    (job,) = driven.backend.stewards()
    assert driven.backend.states[driven.backend.names[job.name]] is JobState.CANCELLED
    # A steward that has begun already sees it, too.
    before = len(driven.backend.jobs)
    driven.backend.run()
    steward(driven.engine.cache, driven.backend, job)()
    assert len(driven.backend.jobs) == before


def test_what_is_under_way_is_looked_after_while_more_is_handed_over(cache: Cache) -> None:
    driven = Driven(cache, 100)
    first = driven.request([prepared("first")])["first"]
    driven.engine._take_turn()
    driven.backend.run()
    ended: list[bool] = []
    between = driven.engine._between

    def observed() -> None:
        between()
        ended.append(first.done())

    driven.engine._hand_over.between = observed
    driven.request(wide(3))
    driven.engine._take_turn()
    assert ended[0]
    assert first.result() == "first"


# ---- a steward goes on -----------------------------------------------------------------------


def steward(cache: Cache, backend: Small, job: Job) -> Steward:
    claims = Claims(cache)
    one = Steward(cache, backend, claims.run(job.definition.stem), job.index, own_id="own")
    one._pause = lambda seconds: backend.run(2)  # type: ignore[method-assign]
    return one


def finish(cache: Cache, backend: Small) -> None:
    """Run jobs and stewards as a batch system would, until nothing happens any more."""
    done: set[str] = set()
    for _ in range(200):
        before = (len(done), sorted(backend.states.items(), key=str))
        backend.run(2)
        for job in backend.stewards():
            job_id = backend.names[job.name]
            ended = [backend.states[each].ended for each in job.after_end if each in backend.states]
            if job_id not in done and not backend.states[job_id].ended and all(ended):
                done.add(job_id)
                steward(cache, backend, job)()
                backend.states[job_id] = JobState.COMPLETED
        if before == (len(done), sorted(backend.states.items(), key=str)):
            return
    raise AssertionError("it does not come to an end")


def test_stewards_hand_over_window_after_window(cache: Cache) -> None:
    backend = Small(cache, 6)
    hand_over(cache, backend)(wide(12), {})
    finish(cache, backend)
    assert cache.present([job.key for job in wide(12)]) == {job.key for job in wide(12)}
    assert backend.kept() == sorted(job.function for job in wide(12))


def test_a_steward_does_not_hand_over_what_depends_on_a_failure(cache: Cache) -> None:
    backend = Small(cache, 6)
    backend.fail = {"root2"}
    hand_over(cache, backend)(wide(6), {})
    finish(cache, backend)
    missing = {job.function for job in wide(6) if job.key not in cache.present([job.key])}
    assert missing == {"root2", "child2"}
    claim = Claims(cache).current(key_of("child2"))
    assert claim is not None
    end = attempts.read_end(cache, claim.key, claim.generation)
    assert end is not None
    assert (end["outcome"], end["root"]) == ("dependency", key_of("root2"))


def test_two_stewards_of_one_run_hand_over_each_task_once(cache: Cache) -> None:
    backend = Small(cache, 6)
    hand_over(cache, backend)(wide(5), {})
    (job,) = backend.stewards()
    backend.run()
    backend.limit = 100
    steward(cache, backend, job)()
    steward(cache, backend, job)()
    assert backend.kept() == sorted(j.function for j in wide(5))


def test_a_steward_of_a_run_that_was_taken_back_does_nothing(cache: Cache) -> None:
    backend = Small(cache, 6)
    handed = hand_over(cache, backend)(wide(5), {})
    (job,) = backend.stewards()
    Claims(cache).record(str(handed.run_id), {"event": "aborted", "reason": "test"})
    before = len(backend.jobs)
    steward(cache, backend, job)()
    assert len(backend.jobs) == before


def test_the_client_follows_what_a_steward_has_handed_over(cache: Cache) -> None:
    driven = Driven(cache, 6)
    futures = driven.request(wide(5))
    driven.engine._take_turn()
    (job,) = driven.backend.stewards()
    driven.backend.run()
    driven.backend.limit = 100
    steward(cache, driven.backend, job)()
    driven.turns(until=lambda: all(future.done() for future in futures.values()))
    assert driven.backend.kept() == sorted(futures)


def test_an_interrupt_between_jobs_leaves_nothing_behind(cache: Cache) -> None:
    backend = Small(cache, 100)

    class Interrupted(BaseException):
        pass

    def interrupt() -> None:
        if len(backend.jobs) == 3:
            raise Interrupted

    hand = hand_over(cache, backend)
    hand.between = interrupt
    with pytest.raises(Interrupted):
        hand(wide(4), {})
    assert backend.queued == []
    assert Claims(cache).unsettled() == []
