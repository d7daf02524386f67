"""How an attempt ends without a result: what its end record says of it.

Exceptions come from users' code, and anything about them may fail: ``__str__``, ``__reduce__``,
the constructor. Whatever fails, the record is made, of what is left.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

from dask_batch.job.exit_codes import FAILED
from dask_batch.job.portable import portable

__all__ = [
    "ARGUMENTS",
    "EndedError",
    "NoRecordError",
    "clipped",
    "described",
    "left_by_itself",
    "summary",
    "trace_of",
]

ARGUMENTS = "arguments"
"""The field that tells what the function was called with: for the user's own log alone."""
_MESSAGE_CHARS = 20_000
_TRACE_CHARS = 400_000
_BASES = 50
_GROUP_WIDTH = 200
_GROUP_DEPTH = 20


class EndedError(Exception):
    """The attempt is over without a result; carries the fields of its end record."""

    def __init__(
        self, outcome: str, message: str, *, exit_code: int = FAILED, **fields: Any
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.fields = {"outcome": outcome, "message": clipped(message, _MESSAGE_CHARS), **fields}

    @property
    def message(self) -> str:
        """What happened, in one sentence."""
        return str(self.fields["message"])

    @property
    def log_text(self) -> str:
        """What the log says: the message last, where readers of logs look first."""
        trace = clipped(str(self.fields.get("traceback", "")), _MESSAGE_CHARS)
        return f"it ended without a result\n{trace}{self.fields['message']}"


class NoRecordError(Exception):
    """The attempt is over, and the batch system knows better than the job why: nothing is recorded.

    What a job's processes were killed for (their time, their memory, a cancellation) the job
    itself does not learn.
    """

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def left_by_itself(code: int) -> EndedError:
    """Return how an attempt ends whose function leaves the process by ``os._exit``."""
    ended = EndedError(
        "died" if code else "no output",
        f"the function ended its process by os._exit({code}): exit code {code}, no result",
    )
    ended.fields["exit_code"] = code
    return ended


def summary(error: BaseException) -> str:
    """Return type and message of an exception, as the last lines of its traceback."""
    text = _attempted(lambda: "".join(traceback.format_exception_only(error)).strip())
    return clipped(text or _type_name(error), _MESSAGE_CHARS)


def trace_of(error: BaseException) -> str:
    """Return an exception's traceback with all that led to it, causes and groups included."""
    text = _attempted(lambda: "".join(_formatted(error)))
    if text is None:
        frames = _attempted(lambda: "".join(traceback.format_tb(error.__traceback__))) or ""
        text = f"Traceback (most recent call last):\n{frames}{_type_name(error)}\n"
    return clipped(text, _TRACE_CHARS)


def described(error: BaseException) -> dict[str, Any]:
    """Return the fields of an end record that let a client raise an exception again."""
    fields: dict[str, Any] = {
        "exception_type": _type_name(error),
        "exception_types": _type_names(error),
        "traceback": trace_of(error),
    }
    if isinstance(error, MemoryError):
        # Its frames hold what there was no room for.
        traceback.clear_frames(error.__traceback__)
    try:
        fields["exception"] = portable(error)
    except BaseException as refusal:  # a __reduce__ may raise anything
        fields["exception_lost"] = summary(refusal)
    return fields


def clipped(text: str, limit: int) -> str:
    """Return a text with its middle left out, if it is long."""
    if len(text) <= limit:
        return text
    head, tail = limit // 3, limit - limit // 3
    return f"{text[:head]}\n... ({len(text) - limit} characters left out) ...\n{text[-tail:]}"


def _formatted(error: BaseException) -> Iterator[str]:
    # Of a group Python shows fifteen exceptions; those in it are tasks of the user's.
    return traceback.TracebackException.from_exception(
        error, compact=True, max_group_width=_GROUP_WIDTH, max_group_depth=_GROUP_DEPTH
    ).format()


def _attempted(make: Callable[[], str]) -> str | None:
    """Return a text; None if making it fails, in whatever way."""
    try:
        return make()
    except BaseException:
        return None


def _type_name(error: BaseException) -> str:
    return _name(type(error))


def _type_names(error: BaseException) -> list[str]:
    """Return the names of an exception's class and of its bases, by which it can be asked for."""
    return [_name(kind) for kind in type(error).__mro__ if kind is not object][:_BASES]


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
