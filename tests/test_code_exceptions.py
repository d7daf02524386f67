"""Exceptions travel with their type, arguments and attributes, however they are constructed."""

from __future__ import annotations

import copyreg
import json
import pickle
from typing import Any

import numpy as np
import pytest

from dask_batch.code import pickling
from dask_batch.job.endings import described, summary


class TwoPartError(Exception):
    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class DefaultedError(Exception):
    """Made with its one argument, it would say something else."""

    def __init__(self, code: object, detail: str = "none") -> None:
        super().__init__(f"{code}: {detail}")
        self.detail = detail


class NewError(ValueError):
    def __new__(cls, first: int, second: int) -> NewError:
        return super().__new__(cls, first + second)

    def __init__(self, first: int, second: int) -> None:
        self.sum = first + second


class OwnGroup(ExceptionGroup[Exception]):
    def __new__(cls, errors: list[Exception]) -> OwnGroup:
        return super().__new__(cls, "own", errors)

    def __init__(self, errors: list[Exception]) -> None:
        self.count = len(errors)


class OwnReduceError(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__("own")
        self.a, self.b = a, b

    def __reduce__(self) -> Any:
        return OwnReduceError, (self.a, self.b)


def journey(error: Any) -> Any:
    pickled = pickling.dumps(error)
    return pickling.loads(pickled.data, pickled.buffers)


@pytest.mark.parametrize(
    "error",
    [
        *(TwoPartError(7, "bad luck"), DefaultedError(7, "x"), NewError(1, 2)),
        OwnGroup([TwoPartError(1, "a"), KeyError("b")]),
        *(OSError(2, "gone", "/path"), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")),
        *(SystemExit(3), StopIteration(5), KeyError("k"), np.exceptions.AxisError(3, 2)),
    ],
)
def test_an_exception_comes_back_as_it_was(error: Any) -> None:
    error.add_note("a note")
    error.array = np.arange(3)
    back = journey(error)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert repr(back.args) == repr(error.args)
    assert {k: repr(v) for k, v in vars(back).items()} == {
        k: repr(v) for k, v in vars(error).items()
    }


def test_a_class_that_says_itself_how_it_is_reduced_is_asked() -> None:
    back = journey(OwnReduceError(1, 2))
    assert (back.a, back.b, back.args) == (1, 2, ("own",))


def test_an_exception_may_hold_itself() -> None:
    error: Any = TwoPartError(1, "x")
    error.itself = error
    back = journey(error)
    assert back.itself is back


def test_what_python_restores_itself_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(copyreg.dispatch_table, ValueError, raising=False)  # tblib's, if any
    assert pickling.dumps(ValueError("x")).data == pickle.dumps(ValueError("x"), 5)


class RudeError(Exception):
    """Everything about it raises."""

    def __str__(self) -> str:
        raise SystemExit("str")

    def __repr__(self) -> str:
        raise KeyboardInterrupt

    def __reduce__(self) -> Any:
        raise SystemExit("reduce")


class UnpickledError(Exception):
    def __reduce__(self) -> Any:
        return _exit, ()


def _exit() -> None:
    raise SystemExit("while unpickling")


class HandleError(Exception):
    def __init__(self) -> None:
        super().__init__("it has a handle")
        self.handle = (i for i in range(3))


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize("kind", [RudeError, UnpickledError, HandleError])
def test_whatever_fails_about_an_exception_it_is_described(kind: type[Exception]) -> None:
    error = raised(kind())
    fields = json.loads(json.dumps(described(error)))
    assert fields["exception_type"].endswith(kind.__qualname__)
    assert "in raised" in fields["traceback"]
    assert kind.__qualname__ in summary(error)
    assert "exception" not in fields
    assert fields["exception_lost"]


def test_an_exception_with_large_arrays_is_described() -> None:
    import base64

    error: Any = ValueError("with data")
    error.data = np.arange(50_000)
    fields = described(raised(error))
    back = pickling.loads(base64.b64decode(fields["exception"]))
    assert np.array_equal(back.data, error.data)
    error.data = np.zeros(4_000_000)
    fields = described(error)
    assert "exception" not in fields
    assert "bytes" in fields["exception_lost"]


def test_what_tblib_registers_for_all_exceptions_is_passed_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lossy(error: BaseException) -> Any:
        return type(error).__new__, (type(error),)

    lossy.__module__ = "tblib.pickling_support"
    monkeypatch.setitem(copyreg.dispatch_table, UnicodeDecodeError, lossy)
    monkeypatch.setitem(copyreg.dispatch_table, TwoPartError, lossy)
    error = UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")
    assert str(journey(error)) == str(error)
    assert journey(TwoPartError(7, "bad luck")).args == TwoPartError(7, "bad luck").args
