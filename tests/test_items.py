"""Parts of results as futures: split, taken by key, and passed on."""

from __future__ import annotations

import concurrent.futures
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest

from bodies import add, fail, gated, noted, open_gate, traces
from dask_batch import (
    SingleNodeExecutor,
    SlurmClusterExecutor,
    get_cache_data_queue,
    get_future_from_cache,
    get_item_from_future,
    split_future,
)
from dask_batch.cache.store import Cache
from dask_batch.errors import DependencyFailedError


@pytest.fixture
def exe(tmp_path: Path) -> Iterator[SingleNodeExecutor]:
    with SingleNodeExecutor(cache_directory=tmp_path / "cache") as executor:
        yield executor


def triple(folder: Path, i: int) -> tuple[str, str, int]:
    noted(folder, "triple")
    return "a", "b", i


def nested(i: int) -> dict[str, Any]:
    return {"a": 1, "b": [10, {"deep": i}], 3: None}


def nothing() -> None:
    return None


def gated_pair(folder: Path) -> tuple[int, int]:
    gated(folder, "pair")
    return 40, 2


def test_the_items_of_a_tuple_and_of_a_dictionary(exe: SingleNodeExecutor, tmp_path: Path) -> None:
    first, second, third = split_future(future=exe.submit(triple, tmp_path, 15), n=3)
    assert (first.result(60), second.result(60), third.result(60)) == ("a", "b", 15)
    whole = exe.submit(nested, 7)
    assert get_item_from_future(future=whole, key="a").result(60) == 1
    assert get_item_from_future(whole, 3).result(60) is None
    deep = get_item_from_future(get_item_from_future(get_item_from_future(whole, "b"), 1), "deep")
    assert deep.result(60) == 7
    assert deep.job_id == whole.job_id
    assert deep.stderr() == whole.stderr()


def test_a_child_depends_on_the_whole_and_takes_the_item_in_its_job(
    exe: SingleNodeExecutor, tmp_path: Path
) -> None:
    whole = exe.submit(gated_pair, tmp_path)
    left, right = split_future(whole, 2)
    child = exe.submit(add, left, b=right)
    inside = exe.submit(sum, [left, right, 1])
    exe._session.engine.flush()
    # Handed over before the whole has a value: the batch system waits, not this process.
    assert child.job_id is not None
    assert not whole.done()
    open_gate(tmp_path)
    assert (child.result(60), inside.result(60)) == (42, 43)
    # Nothing was loaded here for it.
    assert "_Unread" in repr(whole)


def test_the_item_is_part_of_the_key(exe: SingleNodeExecutor, tmp_path: Path) -> None:
    whole = exe.submit(triple, tmp_path, 15)
    early = [exe.submit(noted, tmp_path, "child", part) for part in split_future(whole, 3)]
    assert len({child.key for child in early}) == 3
    assert [child.result(60) for child in early] == ["a", "b", 15]
    # After the whole has ended, and for an item that was taken in another way, it is the same.
    again = [exe.submit(noted, tmp_path, "child", get_item_from_future(whole, i)) for i in range(3)]
    assert [child.key for child in again] == [child.key for child in early]
    assert exe.submit(noted, tmp_path, "child", get_item_from_future(whole, -1)).result(60) == 15
    assert traces(tmp_path) == {"triple": 1, "child": 4}


def test_an_item_that_is_not_there_is_an_error_that_names_it(exe: SingleNodeExecutor) -> None:
    whole = exe.submit(nested, 1)
    missing = get_item_from_future(whole, "c")
    child = exe.submit(add, missing, 1)
    with pytest.raises(KeyError) as caught:
        missing.result(60)
    assert "asked for item 'c' of a dict" in caught.value.__notes__
    assert isinstance(missing.exception(), KeyError)
    assert isinstance(child.exception(60), KeyError)
    assert exe.submit(add, missing, 2).exception(60) is not None


def test_what_is_split_into_too_many_says_how_many_there_are(
    exe: SingleNodeExecutor, tmp_path: Path
) -> None:
    *_, missing = split_future(exe.submit(triple, tmp_path, 1), 4)
    child = exe.submit(add, missing, 1)
    for future in (missing, child):
        with pytest.raises(IndexError, match=r"item 3 .*tuple of 3 item\(s\)"):
            future.result(60)


def test_none_has_only_none_in_it(exe: SingleNodeExecutor) -> None:
    (part,) = split_future(exe.submit(nothing), 1)
    assert part.result(60) is None
    assert exe.submit(str, part).result(60) == "None"


def test_an_item_ends_as_its_whole_does(exe: SingleNodeExecutor, tmp_path: Path) -> None:
    failed = split_future(exe.submit(fail, "no"), 2)
    done, not_done = concurrent.futures.wait(failed, 60)
    assert not not_done
    assert all(isinstance(part.exception(), LookupError) for part in done)
    assert isinstance(exe.submit(add, failed[0], 1).exception(60), DependencyFailedError)
    running = exe.submit(gated_pair, tmp_path)
    held = exe.submit(add, running, 1)
    part = get_item_from_future(held, 0)
    seen: list[Any] = []
    part.add_done_callback(seen.append)
    assert not part.running()
    assert part.cancel()
    assert part.cancelled()
    assert held.cancelled()
    assert seen == [part]
    assert list(concurrent.futures.as_completed([part], 10)) == [part]
    open_gate(tmp_path)


def test_the_items_of_others_futures_enter_by_their_value(exe: SingleNodeExecutor) -> None:
    foreign: concurrent.futures.Future[Any] = concurrent.futures.Future()
    left, right = split_future(foreign, 2)
    child = exe.submit(add, left, right)
    assert not child.done()
    foreign.set_running_or_notify_cancel()
    assert left.running()
    foreign.set_result([1, 2])
    assert child.result(60) == 3
    assert (left.job_id, left.stdout(), left.stderr()) == (None, "", "")


def test_an_item_of_a_result_in_another_cache_is_found(
    exe: SingleNodeExecutor, tmp_path: Path
) -> None:
    with SingleNodeExecutor(cache_directory=tmp_path / "other") as other:
        whole = other.submit(triple, tmp_path, 5)
        part = get_item_from_future(whole, 2)
        assert exe.submit(add, part, 1).result(60) == 6
    assert Cache(tmp_path / "cache").load(whole.key) == ("a", "b", 5)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: split_future([1, 2], 2), TypeError),
        (lambda: split_future(concurrent.futures.Future(), "2"), TypeError),
        (lambda: split_future(concurrent.futures.Future(), -1), ValueError),
        (lambda: get_item_from_future({"a": 1}, "a"), TypeError),
    ],
)
def test_what_cannot_be_split_is_said_at_once(call: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        call()


def test_an_item_in_a_graph_is_its_value(exe: SingleNodeExecutor, tmp_path: Path) -> None:
    part = get_item_from_future(exe.submit(triple, tmp_path, 5), 2)
    lazy = dask.delayed(add)(part, dask.delayed(add)(1, [part][0]))
    assert dask.compute(lazy, scheduler=exe) == (11,)


@pytest.mark.slurm
def test_on_slurm_the_child_waits_for_the_job_of_the_whole(tmp_path: Path, slurm: Any) -> None:
    cache = tmp_path / "cache"
    with SlurmClusterExecutor(cache_directory=cache, shortest_poll_s=0.5) as exe:
        whole = exe.submit(gated_pair, tmp_path)
        left, right = split_future(whole, 2)
        child = exe.submit(add, left, right, resource_dict={"cache_key": "child"})
        exe._session.engine.flush()
        argv = ["scontrol", "-o", "show", "job", str(child.job_id)]
        shown = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
        assert f"Dependency=afterok:{whole.job_id}" in shown
        # Another client, which knows nothing but the name.
        found = get_future_from_cache(cache, "child")
        assert not found.done()
        status = {entry["function"]: entry["status"] for entry in get_cache_data_queue(cache)}
        assert status["add"] == "pending"
        open_gate(tmp_path)
        assert found.result(120) == 42
        assert found.job_id == child.job_id
        assert child.result(120) == 42
    assert traces(tmp_path)["pair"] == 1
