"""Whether a failed attempt is repeated, and with what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_batch.verdicts.follow import Outcome
from dask_batch.verdicts.retry import (
    FREE_REPEATS,
    Ending,
    RetryPolicy,
    decide,
    resources_of_attempt,
)

TWICE = RetryPolicy(2)
FREE = {Outcome.LOST, Outcome.DEPENDENCY}
COUNTED = {
    Outcome.NODE_FAILURE,
    Outcome.PREEMPTED,
    Outcome.OUT_OF_MEMORY,
    Outcome.TIMEOUT,
    Outcome.DIED,
}


@pytest.mark.parametrize("outcome", list(Outcome))
def test_each_class_is_repeated_or_not(outcome: Outcome) -> None:
    assert (decide(Ending(outcome), TWICE, []) is not None) == (outcome in COUNTED | FREE)
    assert (decide(Ending(outcome), RetryPolicy(), []) is not None) == (outcome in FREE)


def test_so_often_and_no_more() -> None:
    died = Ending(Outcome.DIED)
    assert decide(died, TWICE, [Outcome.TIMEOUT]) is not None
    assert decide(died, TWICE, [Outcome.TIMEOUT, Outcome.OUT_OF_MEMORY]) is None
    assert decide(died, TWICE, [Outcome.LOST, Outcome.DEPENDENCY, Outcome.DIED]) is not None


def test_what_is_free_is_bounded_too() -> None:
    lost = [Outcome.LOST] * FREE_REPEATS
    assert decide(Ending(Outcome.LOST), TWICE, lost[:-1]) is not None
    assert decide(Ending(Outcome.LOST), TWICE, lost) is None
    assert decide(Ending(Outcome.DEPENDENCY), TWICE, lost) is None


@pytest.mark.parametrize(
    ("chosen", "repeated"),
    [
        (False, False),
        (True, True),
        (("OSError",), True),
        (("builtins.OSError",), True),
        (("FileNotFoundError",), True),
        (("ValueError",), False),
        ((), False),
    ],
)
def test_exceptions_are_repeated_if_asked_for_by_class_or_base(
    chosen: bool | tuple[str, ...], repeated: bool
) -> None:
    ending = Ending.of({"outcome": "exception", "exception_type": "builtins.FileNotFoundError"})
    assert (decide(ending, RetryPolicy(1, chosen), []) is not None) == repeated


def test_the_bases_of_the_users_own_exceptions_are_on_record() -> None:
    types = ["mine.Late", "mine.Late.Base", "builtins.Exception"]
    ending = Ending.of({"outcome": "exception", "exception_types": types})
    assert decide(ending, RetryPolicy(1, ("Base",)), []) is not None
    assert decide(ending, RetryPolicy(1, ("late",)), []) is None


@pytest.mark.parametrize(
    ("fields", "by_itself"),
    [
        ({"signal": 9}, False),
        ({"signal": 15}, False),
        ({"signal": 11}, True),
        ({"exit_code": 3}, True),
        ({"exit_code": 137, "signal": 9}, False),
        ({}, False),
    ],
)
def test_a_crash_is_the_jobs_own_doing_and_a_kill_is_not(
    fields: dict[str, int], by_itself: bool
) -> None:
    ending = Ending.of({"outcome": "died", **fields})
    assert ending.by_itself == by_itself
    assert (decide(ending, TWICE, []) is None) == by_itself
    assert decide(ending, RetryPolicy(2, exceptions=True), []) is not None


def test_a_word_of_a_later_version_counts_as_a_death() -> None:
    assert Ending.of({"outcome": "abducted"}).outcome is Outcome.DIED
    assert Ending.of({}).outcome is Outcome.DIED


def test_memory_grows_with_each_shortage_of_it_and_time_with_each_of_that() -> None:
    asked = {"memory_max": 2, "run_time_max": 100, "cores": 1}
    past = [Outcome.OUT_OF_MEMORY, Outcome.TIMEOUT, Outcome.OUT_OF_MEMORY, Outcome.LOST]
    assert resources_of_attempt(asked, RetryPolicy(5), past) == {
        "memory_max": 8,
        "run_time_max": 200,
        "cores": 1,
    }
    assert resources_of_attempt(asked, RetryPolicy(5), [Outcome.NODE_FAILURE]) == asked
    grown = resources_of_attempt(asked, RetryPolicy(5, memory_factor=1.25, time_factor=1.003), past)
    assert grown["memory_max"] == 3.125
    assert grown["run_time_max"] == 101
    assert asked["memory_max"] == 2


def test_what_was_not_asked_for_does_not_grow() -> None:
    asked = {"memory_max": None, "run_time_max": None}
    past = [Outcome.OUT_OF_MEMORY, Outcome.TIMEOUT]
    assert resources_of_attempt(asked, TWICE, past) == asked


_POLICIES = st.builds(
    RetryPolicy,
    st.integers(0, 4),
    st.booleans() | st.tuples(st.sampled_from(["OSError", "ValueError"])),
    st.floats(1, 8),
    st.floats(1, 8),
    st.integers(0, 4),
)


@given(_POLICIES)
def test_a_policy_comes_back_from_its_record(policy: RetryPolicy) -> None:
    assert RetryPolicy.from_header({"retry": policy.record()}) == policy


def test_where_nothing_was_said_nothing_is_repeated() -> None:
    assert RetryPolicy.from_header({}) == RetryPolicy()
    assert not RetryPolicy().repeats


@given(_POLICIES, st.lists(st.sampled_from(list(Outcome))))
def test_whatever_happens_attempts_come_to_an_end(
    policy: RetryPolicy, outcomes: list[Outcome]
) -> None:
    past: list[Outcome] = []
    for outcome in outcomes:
        if decide(Ending(outcome), policy, past) is None:
            break
        past.append(outcome)
    assert len(past) <= max(policy.retries, policy.deaths) + FREE_REPEATS


@pytest.mark.parametrize("by_itself", [True, False])
def test_a_task_is_made_again_as_often_as_its_worker_is_replaced(*, by_itself: bool) -> None:
    policy = RetryPolicy(deaths=2)
    died = Ending(Outcome.DIED, by_itself=by_itself)
    assert policy.repeats
    assert decide(died, policy, []) is not None
    assert decide(died, policy, [Outcome.DIED]) is not None
    assert decide(died, policy, [Outcome.DIED, Outcome.DIED]) is None
    assert decide(Ending(Outcome.EXCEPTION, ("builtins.ValueError",)), policy, []) is None
    more = RetryPolicy(retries=3, deaths=2)
    assert decide(Ending(Outcome.DIED), more, [Outcome.DIED] * 2) is not None
