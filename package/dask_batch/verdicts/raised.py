"""What the user's function raised, rebuilt from the record of the job's end."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dask_batch.code import pickling
from dask_batch.errors import ExitedTaskError, RemoteError, RemoteTraceback
from dask_batch.verdicts.diagnosis import hint
from dask_batch.verdicts.tail import tail_of

__all__ = ["users_own"]

_UNPICKLING_S = 10.0


def users_own(
    end: Mapping[str, Any], *, key: str, function: str, job_id: str | None, log: Path | None
) -> BaseException:
    """Rebuild the exception that the user's function raised.

    Parameters
    ----------
    end
        The attempt's end record.
    key, function, job_id, log
        Where it was raised.

    Returns
    -------
    BaseException
        That exception, with its remote traceback as ``__cause__``; what stands in for it where it
        cannot be unpickled, cannot be told as it is, or is an order to an interpreter.
    """
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
            told = _said_of(error, end, key=key, function=function, job_id=job_id, log=log)
            return _with_origin(told, error, notes[2 if log is not None else 1 :])
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


def _said_of(
    error: BaseException,
    end: Mapping[str, Any],
    *,
    key: str,
    function: str,
    job_id: str | None,
    log: Path | None,
) -> ExitedTaskError:
    """Stand in for what is an order to an interpreter: it was meant for that of the job.

    Raised here, ``SystemExit(0)`` would end this process as if all had gone well, and
    ``KeyboardInterrupt`` would pass for one of the user's.
    """
    message = f"{function or 'a task'} raised {end.get('message') or type(error).__name__}"
    message += f" on {end['host']}" if end.get("host") else ""
    told = ExitedTaskError(message, key=key, function=function, job_id=job_id, log=log)
    told.evidence = "its own end record"
    told.tail = tail_of(log)
    told.type_name = str(end.get("exception_type", ""))
    return told


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
