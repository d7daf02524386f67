"""Exceptions that leave a job: tried in a fork before a client unpickles them."""

from __future__ import annotations

import base64
import os
import signal
import threading
import time
from typing import Any

import pytest

from dask_batch.code import pickling
from dask_batch.job import portable as portable_module
from dask_batch.job.endings import described
from dask_batch.job.portable import portable
from dask_batch.verdicts.retry import Ending, RetryPolicy, decide


class Trap(Exception):
    """Does something when it is unpickled."""

    def __init__(self, action: Any, *args: Any) -> None:
        super().__init__("a trap")
        self.action, self.with_ = action, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.action, self.with_


class Sound(OSError):
    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class Very(Sound, ConnectionError):
    pass


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def speak() -> Exception:
    print("heard", flush=True)
    return ValueError("spoken")


def refuse() -> None:
    raise ZeroDivisionError("not here")


@pytest.mark.parametrize(
    ("trap", "said"),
    [
        (Trap(os._exit, 0), "ends the process"),
        (Trap(os._exit, 3), "ends the process"),
        (Trap(kill_me), "ends the process"),
        (Trap(os.getpid), "something else"),
        (Trap(refuse), "ZeroDivisionError: not here"),
    ],
)
def test_what_would_end_a_client_does_not_leave_the_job(trap: Trap, said: str) -> None:
    fields = described(trap)
    assert said in fields["exception_lost"]
    assert "exception" not in fields
    assert fields["exception_type"].endswith("Trap")


def test_one_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable_module, "_TRIAL_S", 0.3)
    assert "takes more than" in described(Trap(time.sleep, 60))["exception_lost"]


def test_a_sound_one_comes_back_although_other_threads_are_at_work() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        error = pickling.loads(base64.b64decode(portable(Sound(4))))
    finally:
        stop.set()
        thread.join()
    assert isinstance(error, Sound)
    assert error.code == 4
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # nothing of the trial is left


def test_the_trial_writes_nothing_of_the_jobs(capfd: pytest.CaptureFixture[str]) -> None:
    print("once", end="")
    assert portable(Trap(speak))
    assert capfd.readouterr().out == "once"


def test_where_no_process_can_be_made_it_is_tried_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", no_room)
    assert portable(Sound(1))
    assert "ZeroDivisionError" in described(Trap(refuse))["exception_lost"]


def test_the_bases_of_a_class_are_on_record_so_that_it_is_asked_for_by_any() -> None:
    fields = described(Very(1))
    types = fields["exception_types"]
    assert types[0] == fields["exception_type"] == f"{__name__}.Very"
    assert {"builtins.OSError", "builtins.ConnectionError", "builtins.BaseException"} <= set(types)
    ending = Ending.of({"outcome": "exception", **fields})
    for name in ("OSError", "ConnectionError", "Very", f"{__name__}.Sound", "builtins.OSError"):
        assert decide(ending, RetryPolicy(1, exceptions=(name,)), []) is not None
    for name in ("ValueError", "object", "Soun"):
        assert decide(ending, RetryPolicy(1, exceptions=(name,)), []) is None
