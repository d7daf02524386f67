"""From verdict to exception, whatever the user's classes do."""

from __future__ import annotations

import asyncio
import base64
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from dask_batch.backends.logs import AGAIN
from dask_batch.code import pickling
from dask_batch.errors import (
    DependencyFailedError,
    DiedTaskError,
    RemoteError,
    RemoteTraceback,
    TaskError,
)
from dask_batch.verdicts.failures import dependency_failure, failure_of
from dask_batch.verdicts.follow import Outcome, Verdict
from dask_batch.verdicts.tail import tail_of

ABOUT: dict[str, Any] = {
    "key": "a" * 64,
    "function": "fit",
    "job_id": "7",
    "state": "FAILED",
    "log": None,
}


class TwoArguments(Exception):
    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


class Trap:
    """Does something when it is unpickled."""

    def __init__(self, action: Any, *args: Any) -> None:
        self.action, self.args = action, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.action, self.args


def leave(status: int) -> None:
    raise SystemExit(status)


def interrupt() -> None:
    raise KeyboardInterrupt


def refuse() -> None:
    raise ZeroDivisionError("not here")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Closed(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("closed")


def raised(value: Any, **more: Any) -> BaseException:
    """Return what a caller is told of an exception that a job pickled."""
    pickled = base64.b64encode(pickling.dumps(value).data).decode()
    end = {
        "outcome": "exception",
        "message": "what it said",
        "exception_type": "mine.Odd",
        "traceback": "the frames in fit",
        "exception": pickled,
        "host": "n1",
        **more,
    }
    return failure_of(Verdict(Outcome.EXCEPTION, "what it said"), **ABOUT, end=end)


def test_the_users_own_exception_keeps_its_type_arguments_and_frames() -> None:
    error = raised(TwoArguments(3, "bad"))
    assert isinstance(error, TwoArguments)
    assert (error.code, error.detail, error.args) == (3, "bad", ("3: bad",))
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "the frames in fit" in str(error.__cause__)
    assert any("job 7" in note and "n1" in note for note in error.__notes__)


@pytest.mark.parametrize("trap", [Trap(leave, 3), Trap(interrupt), Trap(refuse)])
def test_an_exception_that_cannot_be_unpickled_has_a_stand_in(trap: Trap) -> None:
    error = raised(trap)
    assert isinstance(error, RemoteError)
    assert error.type_name == "mine.Odd"
    assert "what it said" in str(error)
    assert "cannot be unpickled here" in str(error)
    assert isinstance(error.__cause__, RemoteTraceback)


@pytest.mark.parametrize(
    "order", [SystemExit(0), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()]
)
def test_an_order_to_the_interpreter_of_a_job_is_none_to_this_one(order: BaseException) -> None:
    error = raised(order, message="Order: 0")
    assert isinstance(error, RemoteError)
    assert isinstance(error, TaskError)  # a job that has ended without a result, as others have
    assert "raised Order: 0" in str(error)
    assert type(error.__cause__) is type(order)
    assert error.__cause__.args == order.args
    assert isinstance(error.__cause__.__cause__, RemoteTraceback)
    assert (error.job_id, error.type_name) == ("7", "mine.Odd")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.type_name) == (type(error), str(error), "mine.Odd")


def test_one_that_never_comes_to_an_end_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask_batch.verdicts.raised._UNPICKLING_S", 0.2)
    error = raised(Trap(time.sleep, 5.0))
    assert isinstance(error, RemoteError)
    assert "has not come to an end" in str(error)


def test_one_that_is_no_exception_or_not_even_a_pickle() -> None:
    assert isinstance(raised([1, 2]), RemoteError)
    assert isinstance(raised(ValueError(), exception="!"), RemoteError)
    assert isinstance(raised(ValueError(), exception=base64.b64encode(b"x").decode()), RemoteError)
    lost = raised(ValueError(), exception=None, exception_lost="TypeError: a socket")
    assert isinstance(lost, RemoteError)
    assert "a socket" in str(lost)


def test_one_that_lets_no_attribute_be_set_has_a_stand_in_with_its_frames() -> None:
    error = raised(Closed("x"))
    assert isinstance(error, (Closed, RemoteError))
    assert isinstance(error.__cause__, RemoteTraceback)


def test_one_without_words_still_takes_its_dependents_down() -> None:
    error = dependency_failure(
        Unspeakable(), key="b" * 64, function="child", root="a" * 64, root_function="fit"
    )
    assert isinstance(error, DependencyFailedError)
    assert "Unspeakable" in str(error)


def test_a_long_message_of_an_input_is_told_in_a_line_that_can_be_read() -> None:
    cause = ValueError("x" * 20_000)
    error = dependency_failure(cause, key="", function="child", root="", root_function="")
    assert len(error.message) < 1000
    assert "()" not in error.message, "a task without a key is told without one"
    assert error.__cause__ is cause


@pytest.mark.parametrize(
    ("outcome", "end", "said"),
    [
        (Outcome.DIED, {"signal": 9}, "memory_max"),
        (Outcome.DIED, {"signal": 11}, "compiled library"),
        (Outcome.DIED, {"signal": 12}, "Look into the log"),
        (Outcome.UNSTORABLE, {"unwritten": True}, "space, quota, rights"),
        (Outcome.UNSTORABLE, {"exit_code": 73}, "space, quota, rights"),
        (Outcome.UNSTORABLE, {}, "plain data"),
    ],
)
def test_what_to_try_goes_with_what_happened(
    outcome: Outcome, end: dict[str, Any], said: str
) -> None:
    error = failure_of(Verdict(outcome, "what happened"), **ABOUT, end=end)
    assert isinstance(error, TaskError)
    assert said in error.advice


def test_a_job_that_only_its_own_record_tells_of_has_ended() -> None:
    about = {**ABOUT, "state": ""}
    error = failure_of(Verdict(Outcome.DIED, "so"), **about, end={"outcome": "died"})
    assert isinstance(error, TaskError)
    assert error.state == "ended"


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.DONE])
def test_each_failure_carries_what_is_known(outcome: Outcome, tmp_path: Path) -> None:
    log = tmp_path / "0.err"
    log.write_text("".join(f"line {n}\n" for n in range(100)))
    verdict = Verdict(outcome, "what happened", "who says so")
    error = failure_of(verdict, **{**ABOUT, "log": log}, end=None)
    assert isinstance(error, TaskError)
    assert (error.key, error.function, error.job_id) == ("a" * 64, "fit", "7")
    assert (error.state, error.evidence, error.log) == ("FAILED", "who says so", log)
    assert error.advice
    assert error.tail.endswith("line 99")
    assert len(error.tail.splitlines()) == 20
    assert "fit: what happened" in str(error)


def test_what_went_wrong_around_the_function_has_its_frames_too() -> None:
    verdict = Verdict(Outcome.DIED, "the cache could not be read")
    error = failure_of(verdict, **ABOUT, end={"outcome": "died", "traceback": "frames of ours"})
    assert isinstance(error, DiedTaskError)
    assert "frames of ours" in str(error.__cause__)


@pytest.mark.parametrize(
    ("left_s", "said"),
    [(12.3, ", 12 s before its limit, it"), (0.2, ", at its limit, it"), (None, "warned it")],
)
def test_where_it_stood_is_told_with_the_time_that_was_left(left_s: Any, said: str) -> None:
    verdict = Verdict(Outcome.TIMEOUT, "its time was over")
    cut = {"left_s": left_s, "traceback": '  File "mine.py", line 3, in fit\n'}
    text = str(failure_of(verdict, **ABOUT, end=None, cut=cut))
    assert said in text
    assert "0 s before" not in text


def test_a_log_that_is_not_there_or_not_text_is_no_obstacle(tmp_path: Path) -> None:
    assert tail_of(None) == ""
    assert tail_of(tmp_path / "none") == ""
    assert tail_of(tmp_path) == ""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00ok\n")
    assert tail_of(tmp_path / "binary").endswith("ok")


def test_the_tail_of_a_repeated_job_is_its_last_attempts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(f"slurmstepd: error: *** JOB 1 CANCELLED DUE TO TIME LIMIT ***\n{AGAIN}\nnow\n")
    assert tail_of(log) == "now"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m and \x9b2Jplain\n", "red and plain"),
        ("\x1b]0;a title\x07text \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n", "text link"),
        ("\x1b]52;c;never ends\nnext\n", "\nnext"),
        ("10%\r20%\r100%\r\ndone\n", "100%\ndone"),
        ("bell\x07 back\x08 tab\tnul\x00\n", "bell back tab\tnul"),
        ("\x1b(Bset \x1bcreset \x1b\n", "set reset "),
        ("user\u202etxt.exe\n", "usertxt.exe"),
        ("Grüße, 世界 ∑\n", "Grüße, 世界 ∑"),
        ("one\n\ntwo", "one\n\ntwo"),
    ],
)
def test_a_tail_does_not_command_the_terminal(tmp_path: Path, written: str, shown: str) -> None:
    log = tmp_path / "log"
    log.write_bytes(written.encode())
    assert tail_of(log) == shown
