"""From verdict to exception: what a caller is told."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    RemoteTraceback,
    SubmissionError,
    TaskError,
    TimeoutTaskError,
    UnstorableResultError,
)
from dask_batch.verdicts.advice import advice_on
from dask_batch.verdicts.follow import Outcome, Verdict
from dask_batch.verdicts.raised import users_own
from dask_batch.verdicts.tail import tail_of

__all__ = ["Fallen", "dependency_failure", "failure_of"]

_LINE_CHARS = 500
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


@dataclass(frozen=True, slots=True)
class Fallen:
    """Why an input will not come.

    Attributes
    ----------
    error
        The failure of its task, or that it has vanished.
    root, function
        The key of the task that failed first, and the name of its function; empty where none has.
    """

    error: BaseException
    root: str = ""
    function: str = ""


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
        return users_own(end, key=key, function=function, job_id=job_id, log=log)
    if isinstance(unbegun, SubmissionError):
        return unbegun
    log = log if unbegun is None else None
    outcome = verdict.outcome
    error = _ERRORS[outcome](
        f"{function or 'a task'}: {verdict.message}{_where_it_stood(verdict, cut)}",
        key=key,
        function=function,
        job_id=job_id,
        state=state or ("ended" if end else ""),
        evidence=verdict.evidence,
        log=log,
        tail=tail_of(log),
        advice=unbegun.advice if isinstance(unbegun, NoWorkerError) else advice_on(outcome, end),
    )
    if isinstance(error, DependencyFailedError) and end is not None:
        error.root = str(end.get("root", ""))
    trace = (end or {}).get("traceback") or (_trace(cut) if verdict.outcome in _CUT_SHORT else "")
    if trace:
        error.__cause__ = RemoteTraceback(str(trace))
    return error


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


def dependency_failure(
    cause: BaseException,
    *,
    key: str,
    function: str,
    root: str,
    root_function: str,
    job_id: str | None = None,
) -> DependencyFailedError:
    """Return the error of a task that did not run because another one failed."""
    which = root_function or "a task"
    if root:
        which += f" ({root[:12]})"
    error = DependencyFailedError(
        f"{function or 'a task'} did not run: it depends on {which}, which failed: "
        f"{_first_line(cause)}",
        key=key,
        function=function,
        job_id=job_id,
        state="not run",
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
    if len(text) > _LINE_CHARS:
        text = f"{text[:_LINE_CHARS]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
