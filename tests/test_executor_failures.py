"""Calls that end badly: each ends its future, says what happened, and leaves no result."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest

from bodies import fail, kill_myself
from clients import poll
from dask_batch import SingleNodeExecutor, SlurmClusterExecutor
from dask_batch.errors import (
    DependencyFailedError,
    DiedTaskError,
    ExitedTaskError,
    OutOfMemoryTaskError,
    RemoteError,
    RemoteTraceback,
    TaskError,
    TimeoutTaskError,
    UnstorableResultError,
)


@pytest.fixture(
    params=[
        pytest.param(SingleNodeExecutor, id="local"),
        pytest.param(SlurmClusterExecutor, id="slurm", marks=pytest.mark.slurm),
    ]
)
def exe(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    # Slurm is asked as often as it may be, so that the tests are quick.
    pace = {"shortest_poll_s": 0.3, "failure_grace_s": 0.5, "output_grace_s": 0.5}
    with request.param(cache_directory=tmp_path / "cache", **pace) as executor:
        yield executor


class TwoPartError(Exception):
    """Its pickle calls it with one argument too few."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class UnpicklableError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.handle = open(os.devnull)  # noqa: SIM115

    def __str__(self) -> str:
        return "it holds a file"


class Custom(BaseException):
    pass


def raise_two_parts() -> None:
    raise TwoPartError(7, "bad luck")


def raise_unpicklable() -> None:
    raise UnpicklableError("x")


def raise_chained() -> None:
    try:
        {}["missing"]
    except KeyError as error:
        raise ValueError("no such setting") from error


def raise_base(kind: str) -> None:
    raise {"exit": SystemExit(3), "interrupt": KeyboardInterrupt("by hand"), "own": Custom(1)}[kind]


def test_exceptions_come_back_as_they_were(exe: Any) -> None:
    plain = exe.submit(fail, "of mine")
    chained = exe.submit(raise_chained)
    two = exe.submit(raise_two_parts)
    unpicklable = exe.submit(raise_unpicklable)

    error = plain.exception(120)
    assert type(error) is LookupError
    assert error.args == ("of mine",)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in fail" in str(error.__cause__)
    assert plain.job_id in "".join(error.__notes__)

    error = chained.exception(120)
    assert type(error) is ValueError
    assert "KeyError: 'missing'" in str(error.__cause__)

    error = two.exception(120)
    assert "7: bad luck" in str(error)
    assert type(error) in (TwoPartError, RemoteError)
    if isinstance(error, RemoteError):
        assert error.type_name.endswith("TwoPartError")

    error = unpicklable.exception(120)
    assert isinstance(error, RemoteError)
    assert "it holds a file" in str(error)
    assert error.type_name.endswith("UnpicklableError")
    # A failure is not kept as a result.
    assert exe.get_cache_data() == []


def test_base_exceptions_are_failures_like_others(exe: Any) -> None:
    futures = {kind: exe.submit(raise_base, kind) for kind in ("exit", "interrupt", "own")}
    errors = {kind: future.exception(120) for kind, future in futures.items()}
    # As they are these would be orders to this process; one of the user's own means nothing to it.
    own = errors.pop("own")
    assert type(own) is Custom
    assert {type(error) for error in errors.values()} == {ExitedTaskError}
    causes = {kind: error.__cause__ for kind, error in errors.items()}
    assert type(causes["exit"]) is SystemExit
    assert causes["exit"].code == 3
    assert type(causes["interrupt"]) is KeyboardInterrupt
    assert exe.get_cache_data() == []


def leave(code: int) -> None:
    import sys

    print("last words", file=sys.stderr, flush=True)
    os._exit(code)


def test_a_process_that_dies_ends_its_future(exe: Any) -> None:
    deaths = {
        exe.submit(kill_myself, int(signal.SIGKILL)): "signal 9",
        exe.submit(kill_myself, int(signal.SIGSEGV)): "signal 11",
        exe.submit(leave, 3): "exit code 3",
        exe.submit(leave, 0): "",
    }
    for future, words in deaths.items():
        error = future.exception(120)
        assert isinstance(error, TaskError), words
        assert words in str(error)
        assert error.job_id == future.job_id
        assert error.key == future.key
        assert error.advice
        assert error.log is not None
    assert all(isinstance(f.exception(), DiedTaskError) for f, words in deaths.items() if words)
    assert any("last words" in f.exception().tail for f in deaths)
    assert exe.get_cache_data() == []


def test_a_result_that_cannot_be_stored_says_so(exe: Any) -> None:
    def generator() -> Any:
        return (i for i in range(3))

    error = exe.submit(generator).exception(120)
    assert isinstance(error, UnstorableResultError)
    assert "generator" in str(error)


class OneWay:
    """Can be pickled, and not be unpickled."""

    def __setstate__(self, state: Any) -> None:
        raise ValueError("no way back")

    def __init__(self) -> None:
        self.content = 1


def test_a_result_without_a_way_back_fails_its_own_task(exe: Any) -> None:
    future = exe.submit(OneWay)
    child = exe.submit(str, future)
    error = future.exception(120)
    assert isinstance(error, UnstorableResultError)
    assert "no way back" in str(error)
    fallen = child.exception(120)
    assert isinstance(fallen, DependencyFailedError)
    assert fallen.root == future.key
    assert exe.get_cache_data() == []


def test_an_input_that_fails_before_its_dependents_are_handed_over_takes_no_others_along(
    exe: Any,
) -> None:
    engine = exe._session.engine
    busy, go_on = threading.Event(), threading.Event()

    def long_hand_over() -> None:
        busy.set()
        go_on.wait(120)

    parent = exe.submit(fail, "first")
    engine.flush()
    engine._command(long_hand_over)
    assert busy.wait(120)
    child, other = exe.submit(len, parent), exe.submit(abs, -3)
    grandchild = exe.submit(str, child)
    apart, within = exe.compute(dask.delayed(abs)(-4), dask.delayed(len)(parent))
    poll(lambda: list(exe._session.cache.path.glob("attempts/*/*.end")), 120, "the failure")
    go_on.set()
    assert other.result(120) == 3
    assert apart.result(120) == 4
    assert isinstance(within.exception(120), LookupError), "a graph raises the cause itself"
    for fallen in (child, grandchild):
        error = fallen.exception(120)
        assert isinstance(error, DependencyFailedError)
        assert error.root == parent.key
        assert "fail" in error.message
        assert "first" in error.message


def hog(size_bytes: int) -> int:
    data = bytearray(size_bytes)
    data[::4096] = b"x" * len(data[::4096])
    time.sleep(60)
    return len(data)


def test_limits_end_a_job_with_a_verdict_of_their_own(tmp_path: Path) -> None:
    with SingleNodeExecutor(cache_directory=tmp_path / "cache") as executor:
        slow = executor.submit(time.sleep, 60, resource_dict={"run_time_max": 1})
        large = executor.submit(hog, 400 << 20, resource_dict={"memory_max": 0.2})
        error = slow.exception(60)
        assert isinstance(error, TimeoutTaskError)
        assert "run_time_max" in str(error)
        error = large.exception(60)
        assert isinstance(error, OutOfMemoryTaskError)
        assert "memory_max" in str(error)


def test_a_job_that_is_killed_from_outside_ends_its_future(tmp_path: Path) -> None:
    def tell_and_wait(path: str) -> None:
        with open(path + ".new", "w") as file:
            file.write(str(os.getpid()))
        os.rename(path + ".new", path)
        time.sleep(60)

    with SingleNodeExecutor(cache_directory=tmp_path / "cache") as executor:
        future = executor.submit(tell_and_wait, str(tmp_path / "pid"))
        while not (tmp_path / "pid").exists():
            assert not future.done()
            time.sleep(0.02)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        error = future.exception(60)
        assert isinstance(error, DiedTaskError)
        assert "signal 9" in str(error)


def test_errors_are_collected_in_the_users_own_file(tmp_path: Path) -> None:
    log = tmp_path / "errors.log"
    resources = {"error_log_file": str(log)}
    with SingleNodeExecutor(cache_directory=tmp_path / "cache", resource_dict=resources) as exe:
        futures = [exe.submit(fail, "first"), exe.submit(fail, "second")]
    assert all(isinstance(future.exception(), LookupError) for future in futures)
    assert {"LookupError: first", "LookupError: second"} <= set(log.read_text().splitlines())
