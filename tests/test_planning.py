"""In which order jobs are handed over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from dask_batch.submitting.planning import _parents_first


def job(key: str, *inputs: str) -> Any:
    return SimpleNamespace(key=key, inputs=frozenset(inputs))


def keys(*jobs: Any) -> str:
    return "".join(job.key for job in _parents_first(jobs))


def test_what_is_in_order_stays_as_it_is():
    assert keys(job("b"), job("a", "b"), job("d"), job("c", "d", "a")) == "badc"


def test_what_a_later_request_brings_comes_before_what_needs_it():
    assert keys(job("c", "b"), job("x"), job("b", "a"), job("a")) == "abcx"


def test_what_is_made_elsewhere_makes_no_difference():
    assert keys(job("a", "elsewhere"), job("b", "a", "elsewhere")) == "ab"
