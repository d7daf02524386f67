"""When the rest of a hand-over is given up."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from dask_batch.verdicts.breaker import THRESHOLD, Breaker, Fall
from dask_batch.verdicts.follow import Outcome

NO_CACHE = Fall("k0", Outcome.ENVIRONMENT, "no cache", began=False)


def falls(fall: Fall, count: int) -> list[Fall]:
    return [dataclasses.replace(fall, key=f"k{n}") for n in range(count)]


def trips(*many: Fall) -> bool:
    breaker = Breaker()
    return sum(breaker.fell(fall) for fall in many) > 0


def test_the_last_of_enough_jobs_trips_and_only_that_one() -> None:
    breaker = Breaker()
    said = [breaker.fell(fall) for fall in falls(NO_CACHE, THRESHOLD + 3)]
    assert said.index(True) == THRESHOLD - 1
    assert sum(said) == 1
    assert breaker.count == THRESHOLD


def test_the_nodes_are_named_where_all_are_known() -> None:
    breaker = Breaker()
    for number, fall in enumerate(falls(NO_CACHE, THRESHOLD)):
        breaker.fell(dataclasses.replace(fall, host=f"n{number % 2}", job_id=str(number)))
    assert breaker.hosts == ["n0", "n1"]
    assert breaker.job_ids == [str(number) for number in range(THRESHOLD)]
    assert breaker.decided
    other = Breaker()
    other.fell(dataclasses.replace(NO_CACHE, host="n0"))
    other.fell(dataclasses.replace(NO_CACHE, key="k1"))
    assert other.hosts == []


def test_fewer_do_not_nor_does_one_job_again_and_again() -> None:
    assert not trips(*falls(NO_CACHE, THRESHOLD - 1))
    assert not trips(*[NO_CACHE] * 20)


def test_dying_before_the_start_was_recorded_counts() -> None:
    died = dataclasses.replace(NO_CACHE, outcome=Outcome.DIED)
    assert trips(*falls(died, THRESHOLD))
    assert not trips(*falls(dataclasses.replace(died, began=True), THRESHOLD))


def test_exceptions_of_the_function_never_do() -> None:
    raised = Fall("k", Outcome.EXCEPTION, "ValueError", began=True)
    assert not trips(*falls(raised, 50))
    # Where one function could be called, the surroundings are sound.
    assert not trips(raised, *falls(NO_CACHE, 50))


def test_one_that_worked_proves_the_surroundings() -> None:
    breaker = Breaker()
    breaker.worked()
    assert not any(breaker.fell(fall) for fall in falls(NO_CACHE, 50))


def test_two_causes_are_not_one() -> None:
    other = dataclasses.replace(NO_CACHE, key="other", cause="no module")
    assert not trips(other, *falls(NO_CACHE, 50))


def test_what_fell_after_long_work_had_surroundings() -> None:
    late = dataclasses.replace(NO_CACHE, lasted_s=3600.0, began=True)
    assert not trips(*falls(late, 50))


def test_cancelled_and_lost_jobs_prove_nothing() -> None:
    cancelled = Fall("c", Outcome.CANCELLED, "cancelled", began=False)
    assert trips(cancelled, *falls(NO_CACHE, THRESHOLD))


@given(
    st.lists(
        st.builds(
            Fall,
            st.sampled_from("abcdefgh"),
            st.sampled_from(list(Outcome)),
            st.sampled_from(["x", "y"]),
            st.booleans(),
            st.none() | st.floats(0, 1e4),
        )
    )
)
def test_it_trips_at_most_once_and_only_on_enough_distinct_jobs(many: list[Fall]) -> None:
    breaker = Breaker()
    said = [breaker.fell(fall) for fall in many]
    assert sum(said) <= 1
    if any(said):
        before = many[: said.index(True) + 1]
        assert len({f.key for f in before if f.of_the_surroundings}) >= THRESHOLD
