"""Exceptions as text that another process can turn into exceptions again.

Making an exception again calls code of its class, which may refuse, leave the process, or never
return. That a client is not the first to find this out, it is tried in a fork of the job.
"""

from __future__ import annotations

import base64
import contextlib
import os
import select
import signal
import sys
import time
import traceback
import warnings
from typing import Any, Final, NoReturn

from dask_batch.code import pickling

__all__ = ["portable"]

_PICKLE_BYTES: Final = 8 << 20
_TRIAL_S: Final = 10.0
_SOUND: Final = b"sound"
_SAID_BYTES: Final = 4096
_PLAIN: Final = frozenset({str, int, float, bool, bytes, type(None)})


def portable(error: BaseException) -> str:
    """Pickle an exception, in base64, and see that it can be unpickled.

    Raises
    ------
    Exception
        It cannot: says why.
    """
    pickled = pickling.dumps(_Whole(pickling.dumps(error))).data
    if len(pickled) > _PICKLE_BYTES:
        raise ValueError(f"its pickle has {len(pickled)} bytes, more than {_PICKLE_BYTES}")
    if not _is_plain(error):
        _try(pickled)
    return base64.b64encode(pickled).decode("ascii")


class _Whole:
    """Stands for what was pickled with buffers out of band, in a pickle that has none."""

    def __init__(self, pickled: pickling.Pickled) -> None:
        self._pickled = pickled

    def __reduce__(self) -> tuple[Any, ...]:
        buffers = tuple(bytes(buffer) for buffer in self._pickled.buffers)
        return pickling.loads, (self._pickled.data, buffers)


def _is_plain(error: BaseException) -> bool:
    """Whether no code but Python's own makes an exception again."""
    own = type(error).__module__ == "builtins" and not vars(error)
    return own and all(type(value) in _PLAIN for value in error.args)


def _try(pickled: bytes) -> None:
    """Unpickle an exception in a fork of this process."""
    reader, writer = os.pipe()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads: one that is in the way ends the trial
            child = os.fork()
    except OSError:  # no room for another process
        os.close(reader)
        os.close(writer)
        _check(pickled)
        return
    if child == 0:
        _report(pickled, writer)
    os.close(writer)
    try:
        said = _heard(reader)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)  # it has said what it had to say, or never will
        with contextlib.suppress(ChildProcessError):  # who ignores SIGCHLD has nothing to collect
            os.waitpid(child, 0)
    if said != _SOUND:
        raise ValueError(
            said.decode("utf-8", "replace")
            or f"unpickling it ends the process, or takes more than {_TRIAL_S:g} s"
        )


def _check(pickled: bytes) -> None:
    if not isinstance(pickling.loads(pickled), BaseException):
        raise TypeError("its pickle is that of something else")


def _report(pickled: bytes, writer: int) -> NoReturn:
    """Be the fork: unpickle, say what came of it, and end."""
    try:
        silence = open(os.devnull, "w")  # noqa: SIM115  # until this process ends
        for stream in (1, 2):  # what is in their buffers is for the job to write
            os.dup2(silence.fileno(), stream)
        sys.stdout = sys.stderr = silence
        try:
            _check(pickled)
            said = _SOUND
        except BaseException as refusal:  # of the class's own making
            said = "".join(traceback.format_exception_only(refusal)).strip().encode()
        os.write(writer, said[:_SAID_BYTES])
    finally:
        os._exit(0)


def _heard(reader: int) -> bytes:
    """Return what the fork says; nothing if it ends, or does not, without a word."""
    said = b""
    until = time.monotonic() + _TRIAL_S
    while (left_s := until - time.monotonic()) > 0:
        if not select.select([reader], [], [], left_s)[0]:
            break
        part = os.read(reader, _SAID_BYTES)
        if not part:
            break
        said += part
    return said
