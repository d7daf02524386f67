"""Files that a network file system shows late: waited for, and for how long."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dask_batch.backends.base import JobState
from dask_batch.cache import attempts
from dask_batch.cache.opening import look_again
from dask_batch.cache.store import Cache
from dask_batch.configuration.config import resolve
from dask_batch.configuration.options import Options
from dask_batch.errors import (
    ConfigurationError,
    DependencyFailedError,
    DiedTaskError,
    NoOutputTaskError,
)
from dask_batch.inputs import InputFile, input_file
from dask_batch.job.checks import file_changes
from dask_batch.session import Session
from scripted import Clock, Scripted, awaited, handed_over

LONG_S = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


OPTIONS = {
    "shortest_poll_s": 0.02,
    "longest_poll_s": 0.02,
    "output_grace_s": LONG_S,
    "failure_grace_s": LONG_S,
}


@pytest.fixture
def session(tmp_path: Path, clock: Clock) -> Iterator[Session]:
    options = Options("scripted", tmp_path / "cache", **OPTIONS)
    session = Session(Cache(tmp_path / "cache"), Scripted(), options)
    yield session
    session.close(wait=False, cancel=True)


def submitted(session: Session, *args: Any) -> Any:
    """Hand in a call and return its future, once it is under way."""
    future = session.call(max, args, {}, {})
    handed_over(session, future)
    return future


def published_late(session: Session, key: str, value: Any) -> None:
    """Let a result appear as a rename shows it to a client: from one moment to the next."""
    Cache(session.cache.path).publish(key, value, {})


# ---- results -----------------------------------------------------------------------------------


def test_a_result_that_is_seen_only_after_the_job_has_ended(session: Session) -> None:
    future = submitted(session, 1, 2)
    session.backend.say("1", JobState.COMPLETED)
    assert not future.done()
    published_late(session, future.key, 2)
    assert future.result(30) == 2


def test_a_result_that_does_not_come(session: Session, clock: Clock) -> None:
    future = submitted(session, 1, 2)
    session.backend.say("1", JobState.COMPLETED)
    clock.ahead_s += 0.9 * LONG_S
    session.backend.heard()
    assert not future.done()
    clock.ahead_s += 0.2 * LONG_S
    error = future.exception(30)
    assert type(error) is NoOutputTaskError
    assert "output_grace_s" in str(error)


def test_the_grace_begins_with_the_end_of_the_job(session: Session, clock: Clock) -> None:
    """Not with its submission, nor with the moment at which somebody began to wait."""
    future = submitted(session, 1, 2)
    session.backend.say("1", JobState.RUNNING)
    clock.ahead_s += 5 * LONG_S
    session.backend.say("1", JobState.COMPLETED)
    assert not future.done()
    published_late(session, future.key, 2)
    assert future.result(30) == 2


def test_a_job_that_runs_again_has_its_grace_again(session: Session, clock: Clock) -> None:
    future = submitted(session, 1, 2)
    session.backend.say("1", JobState.COMPLETED)
    clock.ahead_s += 0.9 * LONG_S
    session.backend.say("1", JobState.RUNNING)
    session.backend.say("1", JobState.COMPLETED)
    clock.ahead_s += 0.9 * LONG_S
    session.backend.heard()
    assert not future.done()
    published_late(session, future.key, 2)
    assert future.result(30) == 2


def test_a_result_that_comes_and_goes_was_there(session: Session) -> None:
    """Servers that disagree: what has been seen once counts."""
    future = submitted(session, 1, 2)
    published_late(session, future.key, 2)
    assert future.result(30) == 2
    session.cache.path_of(future.key).rename(session.cache.path / "hidden")
    assert future.result(30) == 2


# ---- end records -------------------------------------------------------------------------------

ENDED = {"outcome": "exception", "message": "KeyError: 'a'", "exception_type": "builtins.KeyError"}


def test_an_end_record_that_is_seen_only_after_the_job_has_ended(session: Session) -> None:
    future = submitted(session, 1, 2)
    session.backend.say("1", JobState.FAILED)
    assert not future.done()
    attempts.end(Cache(session.cache.path), future.key, 0, ENDED)
    assert "KeyError" in str(future.exception(30))


def test_an_end_record_that_does_not_come(session: Session, clock: Clock) -> None:
    future = submitted(session, 1, 2)
    session.backend.say("1", JobState.FAILED)
    clock.ahead_s += 1.1 * LONG_S
    assert type(future.exception(30)) is DiedTaskError


def test_a_result_counts_whatever_the_batch_system_says(session: Session, clock: Clock) -> None:
    future = submitted(session, 1, 2)
    session.backend.say("1", JobState.TIMEOUT)
    clock.ahead_s += 0.5 * LONG_S
    published_late(session, future.key, 2)
    assert future.result(30) == 2


# ---- what a job needs --------------------------------------------------------------------------


def pair(session: Session) -> tuple[Any, Any, list[str]]:
    """Hand in two tasks, one after the other; return their futures and the second's command."""
    first = submitted(session, 1, 2)
    second = session.call(divmod, (first, 2), {}, {})
    backend: Any = session.backend
    job = backend.jobs[handed_over(session, second)]
    argv = [sys.executable, "-P", "-m", "dask_batch.job", str(job.definition), str(job.index)]
    return first, second, argv


def started(argv: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def test_an_input_that_is_seen_only_after_the_job_has_started(session: Session) -> None:
    first, second, argv = pair(session)
    with started(argv) as job:
        awaited(
            lambda: attempts.read_start(session.cache, second.key, 0) is not None,
            "the start of the job",
        )
        published_late(session, first.key, 7)
        assert job.wait(60) == 0, job.stderr and job.stderr.read()
    assert second.result(30) == (3, 1)


def test_an_input_that_does_not_come(tmp_path: Path, clock: Clock) -> None:
    options = Options("scripted", tmp_path / "cache", **OPTIONS, input_grace_s=0.1)
    session = Session(Cache(tmp_path / "cache"), Scripted(), options)
    first, second, argv = pair(session)
    with started(argv) as job:
        assert job.wait(60) != 0
    end = attempts.read_end(session.cache, second.key, 0)
    assert end is not None
    assert end["outcome"] == "dependency"
    assert end["root"] == first.key
    assert first.key[:12] in end["message"]
    assert "input_grace_s" in end["message"]
    session.close(wait=False, cancel=True)


def test_an_input_whose_failure_is_on_record_is_not_waited_for(session: Session) -> None:
    first, second, argv = pair(session)
    attempts.end(Cache(session.cache.path), first.key, 0, ENDED)
    with started(argv) as job:
        assert job.wait(60) != 0
    error = second.exception(30)
    assert isinstance(error, DependencyFailedError)
    assert "KeyError" in str(error)


# ---- how it is looked up -----------------------------------------------------------------------


def test_a_name_that_seemed_absent_is_looked_up_again_in_a_directory_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NFS client remembers absences until its directory is opened."""
    (tmp_path / "late").touch()
    opened: list[str] = []
    true_open = os.open

    def opening(path: Any, flags: int, *args: Any, **named: Any) -> int:
        if flags & os.O_DIRECTORY:
            opened.append(str(path))
        return true_open(path, flags, *args, **named)

    def look() -> os.stat_result:
        if str(tmp_path) not in opened:
            raise FileNotFoundError(2, "remembered as absent")
        return os.stat(tmp_path / "late")

    monkeypatch.setattr(os, "open", opening)
    assert look_again(tmp_path / "late", look).st_size == 0


def test_an_input_file_is_asked_for_anew_before_it_counts_as_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that has looked at a file before remembers for a while what it was."""
    (tmp_path / "data").write_text("new")
    record = input_file(tmp_path / "data")
    opened: list[str] = []
    true_open, true_check = os.open, InputFile.check

    def opening(path: Any, *args: Any, **named: Any) -> int:
        opened.append(str(path))
        return true_open(path, *args, **named)

    def check(file: InputFile) -> str | None:
        return true_check(file) if file.path in opened else f"{file.path} is gone"

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(InputFile, "check", check)
    assert file_changes([asdict(record)]) == ""
    assert opened == [str(tmp_path), record.path]
    (tmp_path / "data").write_text("newer")
    assert "data" in file_changes([asdict(record)])


@pytest.mark.parametrize("name", ["input_grace_s", "output_grace_s", "failure_grace_s"])
def test_the_graces_are_configurable(name: str, tmp_path: Path) -> None:
    import dask

    options = resolve(backend="local", cache_directory=tmp_path, **{name: 7})
    assert getattr(options, name) == 7
    with dask.config.set({f"batch.{name.removesuffix('_s').replace('_', '-')}": "8m"}):
        found = resolve(backend="local", cache_directory=tmp_path)
        assert getattr(found, name) == 480
    with pytest.raises(ConfigurationError, match=name):
        resolve(backend="local", cache_directory=tmp_path, **{name: -1})
