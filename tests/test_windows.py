"""A queue that takes fewer jobs than a graph has: windows, stewards, and the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dask_batch.backends.base import Job, JobState, JobStatus
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims, Owner
from dask_batch.cache.store import Cache
from dask_batch.engine.backlog import Backlog
from dask_batch.engine.engine import Engine
from dask_batch.engine.request import Request
from dask_batch.errors import BackendError, DependencyFailedError, GivenUpTaskError, QueueFullError
from dask_batch.evidence.standing import Standings
from dask_batch.following.watch import Pace, Watch
from dask_batch.future import BatchFuture
from dask_batch.preparing.preparation import PreparedJob
from dask_batch.steward.steward import Steward
from dask_batch.submitting.handover import HandOver
from test_handover import Recorder, key_of, prepared
from watching import Client, Queue


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
    monkeypatch.setattr("dask_batch.submitting.submission._PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr("dask_batch.engine.backlog._PAUSES_S", (0.01,))


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
    assert len(handed.submitted) == 4
    assert set(handed.left) == {key_of("root4"), *(key_of(f"child{i}") for i in range(5))}
    stewards = backend.stewards()
    assert handed.heirs == tuple(backend.names[job.name] for job in stewards)
    # Half of the window, from its beginning.
    assert {job.after_end for job in stewards} == {tuple(handed.submitted[:2])}
    # The second stands by for the first.
    assert [job.name for job in stewards] == [f"steward-{handed.run_id}-{i}" for i in (0, 1)]
    assert all(backend.states[job_id] is JobState.WAITING for job_id in handed.submitted)


def test_the_last_jobs_make_room_for_the_steward(cache: Cache) -> None:
    backend = Small(cache, 7)
    handed = hand_over(cache, backend)(wide(5), {})
    assert len(backend.queued) == 7
    assert len(handed.submitted) == 5
    assert set(handed.left) == {key_of(f"child{i}") for i in range(5)}
    cancelled = [i for i, state in backend.states.items() if state is JobState.CANCELLED]
    assert len(cancelled) == 2
    log = Claims(cache).log(str(handed.run_id))
    assert not set(cancelled) & set(log.ids.values())


def test_a_graph_that_just_fits_makes_room_for_the_steward_it_needs(cache: Cache) -> None:
    backend = Small(cache, 20)
    handed = hand_over(cache, backend)(wide(10, retries=1), {})
    # A steward for failures and its second; and since there is a rest now, two for that.
    assert len(handed.stewards) == 4
    assert len(handed.submitted) == 16
    assert set(handed.heirs) < set(handed.stewards)
    of_failures = [job for job in backend.stewards() if job.after_failure][-1]
    assert of_failures.after_failure == tuple(handed.submitted)
    assert backend.queued == sorted([*handed.submitted, *handed.stewards], key=int)


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("limit", [3, 4, 5, 6, 7, 9, 12, 15])
def test_a_window_of_any_size_has_somebody_to_look_after_it(
    cache: Cache, limit: int, retries: int
) -> None:
    backend = Small(cache, limit)
    handed = hand_over(cache, backend)(wide(20, retries=retries), {})
    assert handed.submitted
    assert handed.heirs
    finish(cache, backend)
    assert cache.present([job.key for job in wide(20)]) == {job.key for job in wide(20)}


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
    assert handed.heirs == ()
    assert backend.stewards() == []


def test_nobody_waits_for_what_was_left(cache: Cache) -> None:
    backend = Small(cache, 6)
    first = hand_over(cache, backend)(wide(5), {})
    backend.limit = 100
    second = hand_over(cache, backend)(wide(5), {})
    assert len(second.submitted) == 6
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
    steward, second = backend.stewards()
    assert steward.after_failure == second.after_failure == tuple(handed.submitted)
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
    assert [len(job.after_failure) for job in stewards] == 2 * [500, 500, 200]
    assert [job.index for job in stewards] == [0, 1, 2, 3, 4, 5]
    assert [i for job in stewards[:3] for i in job.after_failure] == handed.submitted


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


def test_a_steward_whose_id_is_another_jobs_by_now_is_let_be(tmp_path: Path) -> None:
    queue = Queue()
    client = Client(tmp_path, queue)
    for job_id, name in (("7", "steward-run-0"), ("8", "fit-run-0"), ("9", "")):
        queue.states[job_id] = JobStatus(job_id, JobState.WAITING, name=name)
    Backlog(client.watch, standings_of(client.cache, queue)).dismiss(["7", "8", "9"])
    assert queue.cancels == [["7", "9"]]


def test_cancelling_all_cancels_what_is_left(driven: Driven) -> None:
    futures = driven.request(wide(6))
    driven.engine._take_turn()
    driven.engine._cancel_all()
    assert all(future.cancelled() for future in futures.values())
    assert driven.backend.queued == []
    assert driven.engine.idle()


def test_a_cancellation_that_cannot_be_done_does_not_end_the_engine(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    futures = driven.request(wide(2))
    driven.engine._take_turn()

    def gone(*_: object, **__: object) -> None:
        raise BackendError("it cannot be reached")

    with monkeypatch.context() as context:
        context.setattr(driven.engine, "_alive", lambda: True)
        context.setattr(driven.engine._watch, "cancel", gone)
        driven.engine._command(driven.engine._cancel_all)
        driven.engine._take_turn()
    driven.turns(until=lambda: all(future.done() for future in futures.values()))
    assert {future.exception() for future in futures.values()} == {None}


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
    job, second = driven.backend.stewards()
    for each in (job, second):
        assert driven.backend.states[driven.backend.names[each.name]] is JobState.CANCELLED
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
    now = [0.0]
    one = Steward(
        cache,
        backend,
        claims.run(job.definition.stem),
        job.index,
        own_id=backend.names[job.name],
        clock=lambda: now[0],
    )

    def pause(seconds: float) -> None:
        now[0] += seconds
        backend.run(2)

    one._pause = pause  # type: ignore[method-assign]
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
                backend.states[job_id] = JobState.RUNNING
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
    job, _ = backend.stewards()
    backend.run()
    backend.limit = 100
    steward(cache, backend, job)()
    steward(cache, backend, job)()
    assert backend.kept() == sorted(j.function for j in wide(5))


class Killed(BaseException):
    """Ends a steward as SIGKILL would."""


def killed(cache: Cache, backend: Small, job: Job, at: int, monkeypatch: Any) -> bool:
    """Let a steward run until it does something lasting for the nth time; tell if it came so far.

    What it handed over has no living owner.
    """
    count = 0

    def dying(real: Any) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count >= at:
                raise Killed
            return real(*args, **options)

        return wrapped

    dead = dataclasses.replace(Owner.current(), pid=2**22 + at)
    with monkeypatch.context() as context:
        context.setattr(Owner, "current", classmethod(lambda cls: dead))
        for name in ("submit", "release", "cancel"):
            context.setattr(backend, name, dying(getattr(backend, name)))
        for name in ("begin", "claim", "record"):
            context.setattr(Claims, name, dying(getattr(Claims, name)))
        try:
            steward(cache, backend, job)()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("at", range(1, 40, 2))
def test_a_steward_that_is_killed_does_not_end_the_chain(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    backend = Small(cache, 6)
    hand_over(cache, backend)(wide(6, retries=1), {})
    backend.run(2)
    first, _ = backend.stewards()
    backend.states[backend.names[first.name]] = JobState.RUNNING
    early = killed(cache, backend, first, at, monkeypatch)
    ended = JobState.FAILED if early else JobState.COMPLETED
    backend.states[backend.names[first.name]] = ended
    finish(cache, backend)
    assert cache.present([job.key for job in wide(6)]) == {job.key for job in wide(6)}
    assert backend.kept() == sorted(job.function for job in wide(6))


def test_a_second_waits_while_the_first_is_at_work(cache: Cache) -> None:
    backend = Small(cache, 6)
    hand_over(cache, backend)(wide(5), {})
    backend.run(2)
    first, second = backend.stewards()
    backend.states[backend.names[first.name]] = JobState.RUNNING
    jobs: list[int] = []

    def wait(timeout_s: float) -> None:
        if not jobs:
            steward(cache, backend, first)()
            backend.states[backend.names[first.name]] = JobState.COMPLETED
            jobs.append(len(backend.jobs))

    before = len(backend.jobs)
    backend.wait = wait  # type: ignore[method-assign]
    steward(cache, backend, second)()
    assert before < jobs[0] == len(backend.jobs)


def test_a_steward_hands_over_nothing_that_nobody_would_look_after(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Small(cache, 6)
    hand_over(cache, backend)(wide(6, retries=1), {})
    backend.run(2)
    first, _ = backend.stewards()
    backend.limit = 100
    before = backend.queued
    submit = backend.submit

    def no_stewards(jobs: Sequence[Job], accepted: Callable[[str, str], None]) -> None:
        if any(job.program == "dask_batch.steward" for job in jobs):
            raise QueueFullError(1, ["submit"], "too many jobs")
        submit(jobs, accepted)

    with monkeypatch.context() as context:
        context.setattr(backend, "submit", no_stewards)
        one = steward(cache, backend, first)
        one._deadline = one._clock()
        monkeypatch.setattr("dask_batch.steward.steward._LEAST_S", 0.0)
        one()
    assert len(backend.kept()) == 4
    assert backend.queued == before
    finish(cache, backend)
    assert backend.kept() == sorted(job.function for job in wide(6))


def test_a_steward_of_a_run_that_was_taken_back_does_nothing(cache: Cache) -> None:
    backend = Small(cache, 6)
    handed = hand_over(cache, backend)(wide(5), {})
    job, _ = backend.stewards()
    Claims(cache).record(str(handed.run_id), {"event": "aborted", "reason": "test"})
    before = len(backend.jobs)
    steward(cache, backend, job)()
    assert len(backend.jobs) == before


def test_the_client_follows_what_a_steward_has_handed_over(cache: Cache) -> None:
    driven = Driven(cache, 6)
    futures = driven.request(wide(5))
    driven.engine._take_turn()
    job, _ = driven.backend.stewards()
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
