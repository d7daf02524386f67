"""Which arguments a worker fills in from what its ``init_function`` returned."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from dask_batch.job.endings import EndedError
from dask_batch.job.kept import NOTHING, Kept
from dask_batch.spec import Build, Call, Ref, evaluate

KEPT = Kept({"a": 1, "b": 2, "args": 3, "z": 9})


def plain(a: int, b: int, c: int = 30) -> tuple[int, ...]:
    return a, b, c


def defaulted(a: int = 10, *, b: int = 20) -> tuple[int, ...]:
    return a, b


def variadic(a: int, *args: int, b: int, **rest: int) -> Any:
    return a, args, b, rest


def positional(a: int, /, b: int) -> tuple[int, ...]:
    return a, b


@pytest.mark.parametrize(
    ("call", "value"),
    [
        (Call(plain), (1, 2, 30)),
        (Call(plain, (7,)), (7, 2, 30)),
        (Call(plain, (), {"a": 7, "c": 8}), (7, 2, 8)),
        (Call(plain, (7, 8, 9)), (7, 8, 9)),
        (Call(defaulted), (1, 2)),
        (Call(defaulted, (), {"b": 0}), (1, 0)),
        (Call(variadic, (7, 8)), (7, (8,), 2, {})),
        (Call(positional, (7,)), (7, 2)),
        (Call(functools.partial(plain, 7)), (7, 2, 30)),
        (Call(sorted, ([2, 1],)), [1, 2]),
        (Call(len, ("ab",)), 2),
    ],
)
def test_what_a_call_leaves_open_is_filled_in_by_name(call: Call, value: Any) -> None:
    assert evaluate(KEPT.filled(call), {}) == value


@pytest.mark.parametrize("expression", [7, "a", Ref("x"), Build(list, (1, 2)), Call(len, ("ab",))])
def test_all_else_stays_as_it_is(expression: Any) -> None:
    assert KEPT.filled(expression) is expression


def test_only_the_outermost_call_is_filled_in() -> None:
    with pytest.raises(TypeError, match="missing"):
        evaluate(KEPT.filled(Call(tuple, (Call(plain),))), {})


def test_where_nothing_is_kept_nothing_is_filled_in() -> None:
    call = Call(plain)
    assert NOTHING.filled(call) is call
    NOTHING.check()


def test_a_failed_beginning_ends_every_task() -> None:
    failure = EndedError("exception", "ValueError: no")
    with pytest.raises(EndedError, match="no") as caught:
        Kept(failure=failure).check()
    assert caught.value is failure
