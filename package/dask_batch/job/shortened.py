"""What a call was made with, in a few words: for people, and whatever its arguments are."""

from __future__ import annotations

import reprlib
import threading
from typing import Any, Final

from dask_batch.spec import Call

__all__ = ["arguments_of"]

_PATIENCE_S: Final = 5.0
_CHARS: Final = 200
_LINE_CHARS: Final = 2000
_short: Final = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = _CHARS


def arguments_of(expression: Any) -> str:
    """Return two lines that tell the arguments of a call; empty where it is none.

    Their ``__repr__`` is users' code: it may fail, leave, or never come to an end.
    """
    if not isinstance(expression, Call):
        return ""
    positional, named = _told(list(expression.args)), _told(dict(expression.kwargs))
    return f"args: {positional}\nkwargs: {named}\n"


def _told(values: Any) -> str:
    told: list[str] = []

    def tell() -> None:
        try:
            told.append(" ".join(_short.repr(values).split())[:_LINE_CHARS])
        except BaseException as error:
            told.append(f"cannot be told ({type(error).__name__} in a __repr__)")

    thread = threading.Thread(target=tell, name="dask-batch-arguments", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads, or the interpreter ends
        return "cannot be told"
    thread.join(_PATIENCE_S)
    return told[0] if told else f"cannot be told (a __repr__ did not end in {_PATIENCE_S:g} s)"
