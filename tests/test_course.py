"""Any interleaving of evidence ends in exactly one verdict and never leaves it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from dask_batch.backends.base import JobState, JobStatus
from dask_batch.verdicts.course import Course
from dask_batch.verdicts.follow import Evidence, Outcome, Verdict
from dask_batch.verdicts.retry import FREE_REPEATS, Ending, Repeat, RetryPolicy

GRACE_S = 5.0
ENDED = [state for state in JobState if state.ended]
FAILURES = [outcome for outcome in Outcome if outcome is not Outcome.DONE]


def status(state: JobState) -> JobStatus:
    return JobStatus("1", state)


def over(state: JobState, **more: Any) -> Evidence:
    return Evidence(status=status(state), ended_for_s=GRACE_S, grace_s=GRACE_S, **more)


# ---- single steps ------------------------------------------------------------------------------


def test_a_failure_that_is_repeated_is_no_end() -> None:
    course = Course(0)
    verdict = course.consider(0, over(JobState.TIMEOUT))
    assert verdict is not None
    repeat = course.settle(verdict, Ending(verdict.outcome), RetryPolicy(1), [])
    assert isinstance(repeat, Repeat)
    assert course.verdict is None
    course.advance(1, sure=False)
    # The batch system still tells of the end of the first attempt; nothing follows from that.
    assert course.consider(1, over(JobState.TIMEOUT)) is None
    assert course.consider(1, Evidence(status=status(JobState.RUNNING))) is None
    assert course.consider(1, over(JobState.TIMEOUT)) is None
    # Queued again: from now on it is about the second.
    assert course.consider(1, Evidence(status=status(JobState.WAITING))) is None
    verdict = course.consider(1, over(JobState.TIMEOUT))
    assert verdict is not None
    assert (
        course.settle(verdict, Ending(verdict.outcome), RetryPolicy(1), [verdict.outcome]) is None
    )
    assert course.verdict is verdict


def test_the_record_of_an_earlier_attempt_is_not_taken_for_the_one_under_way() -> None:
    course = Course(0)
    course.advance(1, sure=False)
    assert course.consider(0, Evidence(end={"outcome": "timeout"})) is None
    verdict = course.consider(1, Evidence(end={"outcome": "exception", "message": "no"}))
    assert verdict is not None
    assert verdict.outcome is Outcome.EXCEPTION


@pytest.mark.parametrize("sure", [True, False])
def test_a_result_ends_every_course_whoever_made_it(sure: bool) -> None:
    course = Course(0)
    course.advance(3, sure=sure)
    verdict = course.consider(1, over(JobState.FAILED, published=True))
    assert verdict is not None
    assert verdict.outcome is Outcome.DONE
    assert course.consider(3, Evidence(end={"outcome": "exception"})) is verdict


def test_what_fell_with_an_input_is_repeated_only_if_that_has_not_failed() -> None:
    for failed in (True, False):
        course = Course(0)
        verdict = course.consider(0, over(JobState.DEPENDENCY_FAILED))
        assert verdict is not None
        ending = Ending(verdict.outcome)
        repeat = course.settle(verdict, ending, RetryPolicy(), [], inputs_failed=failed)
        assert (repeat is None) == failed
        assert (course.verdict is verdict) == failed


# ---- any interleaving --------------------------------------------------------------------------


class AnyEvidence(RuleBasedStateMachine):
    """Evidence of all attempts, late and out of order, and a client that does what it should."""

    @initialize(retries=st.integers(0, 3), exceptions=st.booleans(), generation=st.integers(0, 2))
    def begin(self, retries: int, exceptions: bool, generation: int) -> None:
        self.policy = RetryPolicy(retries, exceptions)
        self.first = generation
        self.course = Course(generation)
        self.past: list[Outcome] = []
        self.ends: dict[int, Outcome] = {}
        self.published = False
        self.final: Verdict | None = None

    def see(self, generation: int, evidence: Evidence, *, inputs_failed: bool = False) -> None:
        before = self.course.verdict
        verdict = self.course.consider(generation, evidence)
        if before is not None:
            assert verdict is before
            return
        if verdict is None:
            return
        if verdict.outcome is Outcome.DONE:
            assert evidence.published
            assert self.course.verdict is verdict
            return
        # A failure is always about the attempt under way.
        assert generation == self.course.generation
        repeat = self.course.settle(
            verdict, Ending(verdict.outcome), self.policy, self.past, inputs_failed=inputs_failed
        )
        assert (repeat is None) == (self.course.verdict is verdict)
        self.ends.setdefault(generation, verdict.outcome)
        if repeat is not None:
            self.past.append(verdict.outcome)
            self.course.advance(self.course.generation + 1, sure=False)

    generations = st.integers(-1, 0)
    """How far behind the evidence is."""

    @rule(
        late=generations,
        state=st.sampled_from(list(JobState)),
        ended_for_s=st.sampled_from([0.0, GRACE_S, 1e6]),
        parents_open=st.booleans(),
        inputs_failed=st.booleans(),
    )
    def told(
        self,
        late: int,
        state: JobState,
        ended_for_s: float,
        parents_open: bool,
        inputs_failed: bool,
    ) -> None:
        evidence = Evidence(
            published=self.published,
            status=status(state),
            ended_for_s=ended_for_s,
            grace_s=GRACE_S,
            parents_open=parents_open,
        )
        self.see(self.course.generation + late, evidence, inputs_failed=inputs_failed)

    @rule(late=generations, outcome=st.sampled_from(FAILURES) | st.none(), word=st.text(max_size=4))
    def recorded(self, late: int, outcome: Outcome | None, word: str) -> None:
        generation = self.course.generation + late
        said = outcome.value if outcome is not None else word
        self.see(generation, Evidence(published=self.published, end={"outcome": said}))

    @rule()
    def nothing_known(self) -> None:
        self.see(self.course.generation, Evidence(published=self.published))

    @rule()
    def publish(self) -> None:
        self.published = True

    @rule(ahead=st.integers(-2, 2), sure=st.booleans())
    def another_actor(self, ahead: int, sure: bool) -> None:
        before = self.course.generation
        self.course.advance(before + ahead, sure=sure)
        assert self.course.generation >= before

    @precondition(lambda self: self.published)
    @rule()
    def look(self) -> None:
        self.see(self.course.generation, Evidence(published=True))
        assert self.course.verdict is not None

    @invariant()
    def a_verdict_is_never_left(self) -> None:
        if not hasattr(self, "course"):
            return
        if self.final is None:
            self.final = self.course.verdict
        assert self.course.verdict is self.final

    @invariant()
    def attempts_are_bounded(self) -> None:
        if hasattr(self, "course"):
            assert len(self.past) <= self.policy.retries + FREE_REPEATS

    def teardown(self) -> None:
        """Whatever came before: enough evidence ends the course in a verdict."""
        if not hasattr(self, "course"):
            return
        for _ in range(self.policy.retries + FREE_REPEATS + 1):
            if self.course.verdict is not None:
                break
            self.course.consider(self.course.generation, Evidence(status=status(JobState.WAITING)))
            self.see(self.course.generation, over(JobState.TIMEOUT))
        assert self.course.verdict is not None


TestAnyEvidence = AnyEvidence.TestCase
TestAnyEvidence.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
