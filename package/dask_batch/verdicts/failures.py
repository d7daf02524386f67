"""From verdict to exception: what a caller is told."""

from __future__ import annotations

import base64
import contextlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dask_batch.backends.logs import last_attempt
from dask_batch.code import pickling
from dask_batch.errors import (
    CancelledTaskError,
    ChangedSinceSubmissionError,
    DependencyFailedError,
    DiedTaskError,
    EnvironmentTaskError,
    GivenUpTaskError,
    LostTaskError,
    NodeFailureTaskError,
    NoOutputTaskError,
    NoWorkerError,
    OutOfMemoryTaskError,
    PreemptedTaskError,
    RemoteError,
    RemoteTraceback,
    SubmissionError,
    TaskError,
    TimeoutTaskError,
    UnstorableResultError,
)
from dask_batch.verdicts.diagnosis import hint
from dask_batch.verdicts.follow import Outcome, Verdict

__all__ = ["dependency_failure", "failure_of", "tail_of"]

_TAIL_LINES = 20
_TAIL_BYTES = 8192
_UNPICKLING_S = 10.0
_CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, movements of the cursor
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"  # titles, links
    r"|\x1b[ -/]*[0-~]"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)
"""What a terminal obeys: its control sequences and characters, and marks that reverse a text."""

_ERRORS: Mapping[Outcome, type[TaskError]] = {
    Outcome.TIMEOUT: TimeoutTaskError,
    Outcome.OUT_OF_MEMORY: OutOfMemoryTaskError,
    Outcome.NODE_FAILURE: NodeFailureTaskError,
    Outcome.PREEMPTED: PreemptedTaskError,
    Outcome.CANCELLED: CancelledTaskError,
    Outcome.DIED: DiedTaskError,
    Outcome.NO_OUTPUT: NoOutputTaskError,
    Outcome.UNSTORABLE: UnstorableResultError,
    Outcome.DEPENDENCY: DependencyFailedError,
    Outcome.CHANGED: ChangedSinceSubmissionError,
    Outcome.EXCEPTION: DiedTaskError,
    Outcome.ENVIRONMENT: EnvironmentTaskError,
    Outcome.LOST: LostTaskError,
    Outcome.GIVEN_UP: GivenUpTaskError,
}


_CUT_SHORT = frozenset({Outcome.TIMEOUT, Outcome.PREEMPTED, Outcome.CANCELLED})


def failure_of(
    verdict: Verdict,
    *,
    key: str,
    function: str,
    job_id: str | None,
    state: str,
    log: Path | None,
    end: Mapping[str, Any] | None,
    cut: Mapping[str, Any] | None = None,
    unbegun: Exception | None = None,
) -> BaseException:
    """Return the exception that a verdict other than *done* becomes.

    Parameters
    ----------
    verdict
        What was concluded.
    key, function, job_id, state, log
        What the error will carry: see :class:`~dask_batch.errors.TaskError`.
    end
        The attempt's end record.
    cut
        Where it stood when it was warned of its end, if it was.
    unbegun
        Why it never began, if that is known: it has no log. A refusal is told as it is.

    Returns
    -------
    BaseException
        For an exception of the user's function, that exception itself, with its remote traceback
        as ``__cause__``; a :class:`~dask_batch.errors.RemoteError` that stands in for it where it
        cannot be unpickled, or is an order to an interpreter (``SystemExit``); else a leaf of
        :class:`~dask_batch.errors.TaskError`.
    """
    error = _failure(
        *(verdict, unbegun),
        key=key,
        function=function,
        job_id=job_id,
        state=state,
        log=log,
        end=end,
        cut=cut,
    )
    if end is not None and end.get("error_log"):
        with contextlib.suppress(Exception):  # its class may not let a note be added
            error.add_note(str(end["error_log"]))
    return error


def _failure(
    verdict: Verdict,
    unbegun: Exception | None,
    *,
    key: str,
    function: str,
    job_id: str | None,
    state: str,
    log: Path | None,
    end: Mapping[str, Any] | None,
    cut: Mapping[str, Any] | None,
) -> BaseException:
    if verdict.outcome is Outcome.EXCEPTION and end is not None:
        return _users_own(end, key=key, function=function, job_id=job_id, log=log)
    if isinstance(unbegun, SubmissionError):
        return unbegun
    log = log if unbegun is None else None
    error = _ERRORS[verdict.outcome](
        f"{function or 'a task'}: {verdict.message}{_where_it_stood(verdict, cut)}",
        key=key,
        function=function,
        job_id=job_id,
        state=state,
        evidence=verdict.evidence,
        log=log,
        tail=tail_of(log),
        advice=_advice(verdict, end, unbegun),
    )
    if isinstance(error, DependencyFailedError) and end is not None:
        error.root = str(end.get("root", ""))
    trace = (end or {}).get("traceback") or (_trace(cut) if verdict.outcome in _CUT_SHORT else "")
    if trace:
        error.__cause__ = RemoteTraceback(str(trace))
    return error


def _advice(verdict: Verdict, end: Mapping[str, Any] | None, unbegun: Exception | None) -> str:
    """Say what to try where that is more special than what the error says by itself; else ''."""
    if isinstance(unbegun, NoWorkerError):
        return unbegun.advice
    if verdict.outcome is Outcome.NO_OUTPUT and end is not None:  # it has told so itself
        return (
            "Let the function return, or raise: os._exit ends its process before there is a value."
        )
    return ""


def _trace(cut: Mapping[str, Any] | None) -> str:
    return str((cut or {}).get("traceback") or "")


def _where_it_stood(verdict: Verdict, cut: Mapping[str, Any] | None) -> str:
    """Tell where an attempt was cut short, in a line; the frames are the error's cause."""
    frames = [line.strip() for line in _trace(cut).splitlines() if line.strip().startswith("File ")]
    if verdict.outcome not in _CUT_SHORT or not frames:
        return ""
    left = (cut or {}).get("left_s")
    when = ""
    if isinstance(left, (int, float)):
        when = f", {left:.0f} s before its limit," if left >= 1 else ", at its limit,"
    return f"; when it was warned{when} it stood at {frames[-1]}"


def _users_own(
    end: Mapping[str, Any], *, key: str, function: str, job_id: str | None, log: Path | None
) -> BaseException:
    """Rebuild the exception that the user's function raised."""
    where = f"raised in {function or 'a task'} (key {key[:12]}"
    where += f", job {job_id}" if job_id else ""
    where += f", on {end['host']})" if end.get("host") else ")"
    notes = [where] if log is None else [where, f"log: {log}"]
    if (advice := hint(str(end.get("message", "")))) is not None:
        notes.append(advice)
    trace = RemoteTraceback(str(end.get("traceback", "")))
    error = _unpickled(end)
    try:
        if _is_an_order(error):
            error.__cause__ = trace
            return _with_origin(_said_of(error, end, function), error, notes)
        return _with_origin(error, trace, notes)
    except Exception as refusal:  # its class does not let attributes be set
        said = f"{end.get('message', '')}\n(it cannot be told as it is: {_said(refusal)})"
        stand_in = RemoteError(said, str(end.get("exception_type", "")))
        return _with_origin(stand_in, trace, notes)


def _is_an_order(error: BaseException) -> bool:
    """Whether an interpreter, or an event loop, obeys it when it meets it."""
    own = isinstance(error, (SystemExit, KeyboardInterrupt, GeneratorExit))
    cancelled = type(error).__module__ == "asyncio.exceptions" and not isinstance(error, Exception)
    return own or cancelled


def _said_of(error: BaseException, end: Mapping[str, Any], function: str) -> RemoteError:
    """Stand in for what is an order to an interpreter: it was meant for that of the job.

    Raised here, ``SystemExit(0)`` would end this process as if all had gone well, and
    ``KeyboardInterrupt`` would pass for one of the user's.
    """
    message = f"{function or 'a task'} raised {end.get('message') or type(error).__name__}"
    return RemoteError(message, str(end.get("exception_type", "")))


def _with_origin(error: BaseException, cause: BaseException, notes: Sequence[str]) -> BaseException:
    error.__cause__ = cause
    for note in notes:
        error.add_note(note)
    return error


def _unpickled(end: Mapping[str, Any]) -> BaseException:
    """Unpickle an exception, or stand in for it: its class may refuse, or be unknown here."""
    message = str(end.get("message", ""))
    name = str(end.get("exception_type", ""))
    pickled = end.get("exception")
    if pickled is None:
        if end.get("exception_lost"):
            message += f"\n(it could not be pickled: {end['exception_lost']})"
        return RemoteError(message, name)
    try:
        error = _apart(lambda: pickling.loads(base64.b64decode(pickled), ()))
    except BaseException as refusal:  # of the class's own making, in a thread of its own
        return RemoteError(f"{message}\n(it cannot be unpickled here: {_said(refusal)})", name)
    return error if isinstance(error, BaseException) else RemoteError(message, name)


def _said(error: BaseException) -> str:
    """Return what an exception says; even its words may be the user's code."""
    try:
        return repr(error)
    except Exception:
        return type(error).__name__


def _apart(load: Callable[[], Any]) -> Any:
    """Unpickle in a thread of its own: a class of the user's may leave, or never return."""
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((load(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, name="dask-batch-unpickling", daemon=True)
    thread.start()
    thread.join(_UNPICKLING_S)
    if not outcome:
        raise TimeoutError(f"unpickling it has not come to an end in {_UNPICKLING_S:g} s")
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def dependency_failure(
    cause: BaseException, *, key: str, function: str, root: str, root_function: str
) -> DependencyFailedError:
    """Return the error of a task that did not run because another one failed."""
    error = DependencyFailedError(
        f"{function or 'a task'} did not run: it depends on {root_function or 'a task'} "
        f"({root[:12]}), which failed: {_first_line(cause)}",
        key=key,
        function=function,
        evidence="the failure of the task that it depends on",
    )
    error.root = root
    error.__cause__ = cause
    return error


def _first_line(error: BaseException) -> str:
    try:
        text = str(error).strip().partition("\n")[0]
    except Exception:
        text = ""  # its words are the user's code, and fail; its class tells something
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def tail_of(log: Path | None) -> str:
    """Return the last lines of a log file, the last attempt's; empty where there is none."""
    if log is None:
        return ""
    try:
        with open(log, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(_as_shown(last_attempt(text))[-_TAIL_LINES:])


def _as_shown(text: str) -> list[str]:
    """Return the lines of a log without what would command the terminal of who reads it.

    Of a line that was written over and over (a progress bar) the last words are left.
    """
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    shown = [_CONTROL.sub("", line) for line in lines]
    return shown if shown[-1] else shown[:-1]
