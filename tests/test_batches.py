"""Batches: what finishes first is first together, and nobody waits for ever."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bodies import add, noted, traces
from dask_batch import SingleNodeExecutor
from dask_batch.errors import DependencyFailedError


@pytest.fixture
def exe(tmp_path: Path) -> Iterator[SingleNodeExecutor]:
    with SingleNodeExecutor(cache_directory=tmp_path / "cache") as executor:
        yield executor


@pytest.fixture
def futures() -> list[concurrent.futures.Future[Any]]:
    return [concurrent.futures.Future() for _ in range(7)]


def test_batches_fill_in_the_order_of_finishing(exe: SingleNodeExecutor, futures: Any) -> None:
    batches = exe.batched(futures, 3)
    assert len(batches) == 3
    for index in (6, 0):
        futures[index].set_result(index)
    assert not any(batch.done() for batch in batches)
    for index in (3, 1, 2, 5):
        futures[index].set_result(index)
    assert [batch.done() for batch in batches] == [True, True, False]
    futures[4].set_result(4)
    assert [batch.result(0) for batch in batches] == [[6, 0, 3], [1, 2, 5], [4]]


def test_what_fails_comes_last_and_fails_its_batch(exe: SingleNodeExecutor, futures: Any) -> None:
    batches = exe.batched(futures, 3)
    futures[0].set_exception(LookupError("no"))
    futures[1].cancel()
    for index in (2, 3, 4, 5):
        futures[index].set_result(index)
    assert batches[0].result(0) == [2, 3, 4]
    assert not batches[1].done()
    futures[6].set_result(6)
    # Two that are well and one that failed; and the one that was cancelled.
    assert isinstance(batches[1].exception(0), LookupError)
    assert isinstance(batches[2].exception(0), concurrent.futures.CancelledError)


def test_batches_are_arguments_of_further_calls(exe: SingleNodeExecutor, tmp_path: Path) -> None:
    firsts = [exe.submit(noted, tmp_path, "first", i) for i in range(10)]
    sums = [exe.submit(sum, batch) for batch in exe.batched(firsts, n=3)]
    assert len(sums) == 4
    assert exe.submit(sum, sums).result(120) == 45
    assert traces(tmp_path) == {"first": 10}


def test_leaving_waits_for_what_needs_a_batch(tmp_path: Path) -> None:
    with SingleNodeExecutor(cache_directory=tmp_path / "cache") as exe:
        batch, rest = exe.batched([exe.submit(add, i, i) for i in range(3)], 2)
        child = exe.submit(max, batch)
    assert child.done()
    assert child.result() == max(batch.result())
    assert sorted([*batch.result(), *rest.result()]) == [0, 2, 4]


def test_a_failed_batch_fails_what_needs_it(exe: SingleNodeExecutor, futures: Any) -> None:
    (batch,) = exe.batched(futures[:1], 5)
    child = exe.submit(sum, batch)
    futures[0].set_exception(LookupError("no"))
    assert isinstance(child.exception(60), DependencyFailedError)


@pytest.mark.parametrize("n", [0, -2, "3", 1.5, True, None])
def test_a_size_that_makes_no_sense_is_refused(
    exe: SingleNodeExecutor, futures: Any, n: Any
) -> None:
    with pytest.raises(ValueError, match="n="):
        exe.batched(futures, n)


def test_what_is_no_future_is_refused_and_nothing_makes_no_batch(exe: SingleNodeExecutor) -> None:
    with pytest.raises(TypeError, match="3"):
        exe.batched([3], 1)
    assert exe.batched([], 3) == []
