"""From evidence to verdict."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_batch.backends.base import JobState, JobStatus
from dask_batch.verdicts.follow import Evidence, Outcome, judge, poll_interval_s

ENDED = [state for state in JobState if state.ended]
OPEN = [state for state in JobState if not state.ended]


def status(state: JobState, **more: object) -> JobStatus:
    return JobStatus("1", state, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", [None, *JobState])
def test_a_published_result_outweighs_everything(state: JobState | None) -> None:
    said = None if state is None else status(state)
    verdict = judge(Evidence(published=True, end={"outcome": "exception"}, status=said))
    assert verdict is not None
    assert verdict.outcome is Outcome.DONE


def test_the_jobs_own_record_outweighs_the_batch_system() -> None:
    end = {"outcome": "exception", "message": "ValueError: no"}
    verdict = judge(Evidence(end=end, status=status(JobState.COMPLETED), ended_for_s=99))
    assert verdict is not None
    assert verdict.outcome is Outcome.EXCEPTION
    assert verdict.message == "ValueError: no"


def test_a_record_in_words_of_a_later_version_is_still_an_end() -> None:
    verdict = judge(Evidence(end={"outcome": "abducted"}))
    assert verdict is not None
    assert verdict.outcome is Outcome.DIED


@pytest.mark.parametrize("state", [None, *OPEN])
def test_what_has_not_ended_or_is_not_known_has_no_verdict(state: JobState | None) -> None:
    said = None if state is None else status(state)
    assert judge(Evidence(status=said, ended_for_s=1e9)) is None


@pytest.mark.parametrize("state", ENDED)
def test_every_end_has_a_verdict_after_the_grace_and_none_before(state: JobState) -> None:
    assert judge(Evidence(status=status(state), ended_for_s=4.9, grace_s=5)) is None
    verdict = judge(Evidence(status=status(state), ended_for_s=5, grace_s=5))
    assert verdict is not None
    assert verdict.outcome is not Outcome.DONE


def test_each_cause_is_told_apart() -> None:
    verdicts = [judge(Evidence(status=status(state))) for state in ENDED]
    assert len({verdict.outcome for verdict in verdicts if verdict is not None}) == len(ENDED)


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.DEPENDENCY_FAILED, JobState.LOST])
def test_a_job_that_fell_with_its_parent_waits_for_the_parents_verdict(state: JobState) -> None:
    assert judge(Evidence(status=status(state), parents_open=True)) is None
    assert judge(Evidence(status=status(state), parents_open=False)) is not None


def test_a_job_that_was_cancelled_while_its_parents_are_well_was_cancelled_itself() -> None:
    well = Evidence(status=status(JobState.CANCELLED), parents_open=True, parents_alive=True)
    verdict = judge(well)
    assert verdict is not None
    assert verdict.outcome is Outcome.CANCELLED
    never = Evidence(
        status=status(JobState.DEPENDENCY_FAILED), parents_open=True, parents_alive=True
    )
    assert judge(never) is None


def test_a_record_of_a_failed_input_waits_for_that_inputs_own_end() -> None:
    end = {"outcome": "dependency", "message": "an input is missing"}
    assert judge(Evidence(end=end, parents_open=True)) is None
    assert judge(Evidence(end=end)) is not None


def test_no_record_makes_a_success() -> None:
    verdict = judge(Evidence(end={"outcome": "done"}))
    assert verdict is not None
    assert verdict.outcome is Outcome.NO_OUTPUT


def test_a_record_that_another_client_left_carries_its_evidence() -> None:
    verdict = judge(Evidence(end={"outcome": "timeout", "evidence": "sacct says TIMEOUT"}))
    assert verdict is not None
    assert verdict.evidence == "sacct says TIMEOUT"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"signal": 9}, "signal 9 (SIGKILL"),
        ({"signal": 11}, "signal 11 (SIGSEGV"),
        ({"signal": 14}, "signal 14 (SIGALRM)"),
        ({"signal": 60}, "signal 60"),
        ({"exit_code": 127}, "not found"),
        ({"exit_code": 3}, "exit code 3"),
        ({}, "no record of why"),
    ],
)
def test_a_death_is_described(more: dict[str, int], words: str) -> None:
    verdict = judge(Evidence(status=status(JobState.FAILED, **more)))
    assert verdict is not None
    assert words in verdict.message


def test_the_verdict_names_its_witness() -> None:
    said = status(JobState.TIMEOUT, word="TIMEOUT", source="sacct", reason="TimeLimit")
    verdict = judge(Evidence(status=said))
    assert verdict is not None
    assert verdict.evidence == "sacct says TIMEOUT (TimeLimit)"


_EVIDENCE = st.builds(
    Evidence,
    published=st.booleans(),
    end=st.none() | st.fixed_dictionaries({"outcome": st.sampled_from([*Outcome]).map(str)}),
    status=st.none() | st.sampled_from([*JobState]).map(status),
    ended_for_s=st.floats(0, 1e6),
    grace_s=st.floats(0, 1e3),
    parents_open=st.booleans(),
)


@given(_EVIDENCE)
def test_judging_is_total_and_success_needs_the_result(evidence: Evidence) -> None:
    verdict = judge(evidence)
    if verdict is not None:
        assert (verdict.outcome is Outcome.DONE) == evidence.published


@given(st.lists(st.floats(0, 1e7), min_size=2))
def test_the_poll_interval_grows_with_age_within_its_bounds(ages: list[float]) -> None:
    intervals = [poll_interval_s(age, shortest_s=5, longest_s=120) for age in sorted(ages)]
    assert all(5 <= interval <= 120 for interval in intervals)
    assert all(a <= b for a, b in itertools.pairwise(intervals))
