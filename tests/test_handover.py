"""The hand-over, with a batch system that can be told to fail and a client that can be dead."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dask_batch.backends.base import Job, JobState, JobStatus
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims, Owner, Run
from dask_batch.cache.store import Cache
from dask_batch.code.pickling import Pickled
from dask_batch.errors import BackendError, CacheError, MissingEntryError, SubmissionError
from dask_batch.evidence.standing import Standings
from dask_batch.preparing.preparation import PreparedJob
from dask_batch.preparing.surroundings import Surroundings
from dask_batch.submitting import defining
from dask_batch.submitting.handover import HandOver


class Recorder:
    """A batch system in memory that runs nothing."""

    name = "local"
    shared = False
    default_max_jobs: int | None = None

    def __init__(self) -> None:
        self.states: dict[str, JobState] = {}
        self.names: dict[str, str] = {}
        self.jobs: list[Job] = []
        self.refuse: str | None = None
        self.fail_release = False

    def check(self, jobs: Sequence[Job]) -> None: ...

    def script(self, job: Job, dependency: Sequence[str] = ()) -> str:
        return ""

    def submit(self, jobs: Sequence[Job], accepted: Callable[[str, str], None]) -> None:
        for job in jobs:
            if self.refuse is not None and job.name.startswith(self.refuse):
                error = SubmissionError(1, ["submit"], "no such partition")
                error.job_name = job.name
                raise error
            job_id = str(len(self.jobs) + 1)
            self.names[job.name] = job_id
            self.states[job_id] = JobState.WAITING if job.parents else JobState.HELD
            self.jobs.append(job)
            accepted(job.name, job_id)

    def release(self, job_ids: Sequence[str]) -> None:
        if self.fail_release:
            raise BackendError("not now")
        for job_id in job_ids:
            if self.states[job_id] is JobState.HELD:
                self.states[job_id] = JobState.WAITING

    def rerun(self, job: Job, job_id: str, dependents: Mapping[str, Sequence[str]]) -> str:
        self.states[job_id] = JobState.WAITING
        return job_id

    def status(self, job_ids: Collection[str]) -> dict[str, JobStatus]:
        return {i: JobStatus(i, self.states[i]) for i in job_ids if i in self.states}

    def find(self, names: Collection[str]) -> dict[str, str]:
        return {name: self.names[name] for name in names if name in self.names}

    def cancel(self, job_ids: Collection[str]) -> None:
        for job_id in job_ids:
            self.states[job_id] = JobState.CANCELLED

    def wait(self, timeout_s: float) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


def prepared(name: str, *parents: str, wanted: bool = True) -> PreparedJob:
    return PreparedJob(
        key=key_of(name),
        function=name,
        names=(name,),
        payload=Pickled(b""),
        inputs=frozenset(key_of(parent) for parent in parents),
        resources={},
        header={},
        surroundings=Surroundings(Path("/"), 0o022, (), {}),
        wanted=wanted,
    )


def key_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


CHAIN = (
    prepared("one", wanted=False),
    prepared("two", "one", wanted=False),
    prepared("end", "two"),
)


@pytest.fixture
def backend() -> Recorder:
    return Recorder()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def hand_over(cache: Cache, backend: Any) -> HandOver:
    return HandOver(Standings(cache, Claims(cache), backend, lambda name: None), common={})


def test_roots_are_let_go_together_and_children_wait_for_their_parents(
    cache: Cache, backend: Recorder
) -> None:
    handed = hand_over(cache, backend)(CHAIN, {})
    assert handed.submitted == ["1", "2", "3"]
    assert set(backend.states.values()) == {JobState.WAITING}
    assert [job.parents for job in backend.jobs] == [
        (),
        (backend.jobs[0].name,),
        (backend.jobs[1].name,),
    ]


def test_what_is_under_way_is_not_submitted_again(cache: Cache, backend: Recorder) -> None:
    hand_over(cache, backend)(CHAIN, {})
    handed = hand_over(cache, backend)((*CHAIN, prepared("more", "end")), {})
    assert handed.submitted == ["4"]
    assert backend.jobs[-1].after == ("3",)
    # The whole chain is followed: whoever handed it over may not be there to repeat what fails.
    assert set(handed.under_way) == {key_of(name) for name in ("one", "two", "end", "more")}


def test_what_is_in_the_store_is_not_submitted(cache: Cache, backend: Recorder) -> None:
    cache.publish(key_of("two"), 2, {})
    assert hand_over(cache, backend)(CHAIN, {}).submitted == ["1"]
    assert backend.jobs[0].name.startswith("end-")


def test_a_finished_attempt_without_a_result_is_made_again(cache: Cache, backend: Recorder) -> None:
    hand_over(cache, backend)(CHAIN, {})
    backend.states = dict.fromkeys(backend.states, JobState.FAILED)
    assert len(hand_over(cache, backend)(CHAIN, {}).submitted) == 3
    claim = Claims(cache).current(key_of("end"))
    assert claim is not None
    assert claim.generation == 1


def test_an_end_on_record_needs_no_question(cache: Cache, backend: Recorder) -> None:
    hand_over(cache, backend)(CHAIN, {})
    attempts.end(cache, key_of("end"), 0, {"outcome": "exception"})
    assert hand_over(cache, backend)(CHAIN, {}).submitted == ["4"]


def test_a_job_that_somebody_holds_stays_held(cache: Cache, backend: Recorder) -> None:
    hand_over(cache, backend)(CHAIN, {})
    backend.states["1"] = JobState.HELD
    assert hand_over(cache, backend)(CHAIN, {}).submitted == []
    assert backend.states["1"] is JobState.HELD


def test_what_this_process_has_dropped_it_takes_back(
    cache: Cache, backend: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dask_batch.evidence.settling._DROPPED_S", 0.1)
    # Neither its release nor its end could be written down, or that is damaged.
    run = Run("dropped", Owner.current(), backend.name, 1.0, (("end-dropped-0", key_of("end")),))
    claims = Claims(cache)
    claims.begin(run)
    claims.claim(key_of("end"), run)
    assert len(hand_over(cache, backend)(CHAIN, {}).submitted) == 3
    assert claims.unsettled() == []


def fails(cache: Cache, backend: Recorder, error: type[Exception]) -> None:
    with pytest.raises(error):
        hand_over(cache, backend)(CHAIN, {})
    assert set(backend.states.values()) <= {JobState.CANCELLED}
    assert Claims(cache).unsettled() == []


def test_of_a_refused_graph_nothing_is_left(cache: Cache, backend: Recorder) -> None:
    backend.refuse = "two"
    fails(cache, backend, SubmissionError)
    backend.refuse = None
    assert len(hand_over(cache, backend)(CHAIN, {}).submitted) == 3


def test_a_refusal_names_the_key(cache: Cache, backend: Recorder) -> None:
    backend.refuse = "two"
    with pytest.raises(SubmissionError) as caught:
        hand_over(cache, backend)(CHAIN, {})
    assert caught.value.key == key_of("two")


def test_of_a_graph_that_cannot_be_let_go_nothing_is_left(cache: Cache, backend: Recorder) -> None:
    backend.fail_release = True
    fails(cache, backend, BackendError)


def test_claims_are_given_up_when_definitions_cannot_be_written(
    cache: Cache, backend: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> Path:
        raise CacheError("no space left")

    with monkeypatch.context() as context:
        context.setattr(defining, "write_definitions", full)
        fails(cache, backend, CacheError)
    assert len(hand_over(cache, backend)(CHAIN, {}).submitted) == 3


def test_a_vanished_input_is_named(cache: Cache, backend: Recorder) -> None:
    with pytest.raises(MissingEntryError, match=key_of("gone")[:12]):
        hand_over(cache, backend)((prepared("child", "gone"),), {})


class Killed(BaseException):
    """Ends a hand-over as SIGKILL would: nothing is cleaned up behind it."""


def die(cache: Cache, backend: Recorder, monkeypatch: pytest.MonkeyPatch, event: str) -> None:
    """Hand over as a process that is dead by now, and that recorded nothing from ``event`` on."""
    claims = Claims(cache)
    record = claims.record

    def record_until(run_id: str, what: Any) -> None:
        if what["event"] in (event, "aborted"):
            raise Killed
        record(run_id, what)

    monkeypatch.setattr(claims, "record", record_until)
    dead = dataclasses.replace(Owner.current(), pid=2**22 + 1)
    standings = Standings(cache, claims, backend, lambda name: None)
    hand = HandOver(standings, common={})
    with monkeypatch.context() as context:
        context.setattr(backend, "cancel", lambda ids: None)
        context.setattr(Owner, "current", classmethod(lambda cls: dead))
        with pytest.raises(Killed):
            hand(CHAIN, {})


def test_what_a_dead_client_had_not_handed_over_whole_is_taken_back(
    cache: Cache, backend: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    die(cache, backend, monkeypatch, "job")
    assert list(backend.states.values()) == [JobState.HELD]
    handed = hand_over(cache, backend)(CHAIN, {})
    assert backend.states["1"] is JobState.CANCELLED
    assert handed.submitted == ["2", "3", "4"]


def test_what_a_dead_client_had_not_let_go_is_let_go(
    cache: Cache, backend: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(job_ids: Sequence[str]) -> None:
        raise Killed

    with monkeypatch.context() as context:
        context.setattr(backend, "release", killed)
        die(cache, backend, context, "released")
    assert backend.states["1"] is JobState.HELD
    handed = hand_over(cache, backend)(CHAIN, {})
    assert handed.submitted == []
    assert set(handed.under_way) == {key_of(name) for name in ("one", "two", "end")}
    assert set(backend.states.values()) == {JobState.WAITING}
