"""How an attempt ends without a result: what its end record says of it.

Exceptions come from users' code, and anything about them may fail: ``__str__``, ``__reduce__``,
the constructor. Whatever fails, the record is made, of what is left.
"""

from __future__ import annotations

import base64
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from dask_batch.code import pickling
from dask_batch.job.exit_codes import FAILED

__all__ = ["EndedError", "clipped", "described", "summary", "trace_of"]

_MESSAGE_CHARS = 20_000
_TRACE_CHARS = 400_000
_PICKLE_BYTES = 8 << 20
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
    def log_text(self) -> str:
        """What the log says: the message last, where readers of logs look first."""
        trace = clipped(str(self.fields.get("traceback", "")), _MESSAGE_CHARS)
        return f"it ended without a result\n{trace}{self.fields['message']}"


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
    fields: dict[str, Any] = {"exception_type": _type_name(error), "traceback": trace_of(error)}
    if isinstance(error, MemoryError):
        # Its frames hold what there was no room for.
        traceback.clear_frames(error.__traceback__)
    try:
        fields["exception"] = _portable(error)
    except BaseException as refusal:  # a __reduce__ may raise anything
        fields["exception_lost"] = summary(refusal)
    return fields


def clipped(text: str, limit: int) -> str:
    """Return a text with its middle left out, if it is long."""
    if len(text) <= limit:
        return text
    head, tail = limit // 3, limit - limit // 3
    return f"{text[:head]}\n... ({len(text) - limit} characters left out) ...\n{text[-tail:]}"


def _portable(error: BaseException) -> str:
    """Pickle an exception, in base64, and see that it can be unpickled."""
    pickled = pickling.dumps(_Whole(pickling.dumps(error))).data
    if len(pickled) > _PICKLE_BYTES:
        raise ValueError(f"its pickle has {len(pickled)} bytes, more than {_PICKLE_BYTES}")
    if not isinstance(pickling.loads(pickled), BaseException):
        raise TypeError("its pickle is that of something else")
    return base64.b64encode(pickled).decode("ascii")


class _Whole:
    """Stands for what was pickled with buffers out of band, in a pickle that has none."""

    def __init__(self, pickled: pickling.Pickled) -> None:
        self._pickled = pickled

    def __reduce__(self) -> tuple[Any, ...]:
        buffers = tuple(bytes(buffer) for buffer in self._pickled.buffers)
        return pickling.loads, (self._pickled.data, buffers)


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
    kind = type(error)
    return f"{kind.__module__}.{kind.__qualname__}"
