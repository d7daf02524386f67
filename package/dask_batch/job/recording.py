"""The record of how an attempt ended without a result, on the disk before the job exits."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from dask_batch.cache import attempts
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError
from dask_batch.job.endings import ARGUMENTS
from dask_batch.job.exit_codes import NO_SPACE
from dask_batch.job.say import say

__all__ = ["record_end"]

_TRIES = 4
_PAUSE_S = 0.5


class Recorded(Protocol):
    """What is to be known of an attempt."""

    cache: Cache
    key: str
    generation: int
    job_id: str
    started: float
    header: Mapping[str, Any]


def record_end(attempt: Recorded, fields: Mapping[str, Any], exit_code: int) -> int:
    """Record how an attempt ended, and return the exit code that says as much.

    A full disk may have room again in a moment: what the job itself wrote is gone.
    """
    record = {
        "function": attempt.header["attributes"].get("function", ""),
        "job_id": attempt.job_id,
        "host": socket.gethostname(),
        "started": attempt.started,
        "ended": time.time(),
        **{name: value for name, value in fields.items() if name != ARGUMENTS},
    }
    log = attempt.header["error_log_file"]
    unwritten = _log_error(Path(log), attempt.key, record, fields.get(ARGUMENTS, "")) if log else ""
    if unwritten:
        say(unwritten)
        record["error_log"] = unwritten
    for left in range(_TRIES)[::-1]:
        try:
            attempts.end(attempt.cache, attempt.key, attempt.generation, record)
            break
        except CacheError as error:
            if not left:
                say(f"how the job ended cannot be recorded: {error}")
                exit_code = NO_SPACE
        time.sleep(_PAUSE_S)
    return exit_code


def _log_error(path: Path, key: str, record: Mapping[str, Any], arguments: str) -> str:
    """Append to the file that the user wants errors to be collected in; return why it cannot be."""
    text = (
        f"function: {record['function']}\n{arguments}key: {key}\njob: {record['job_id']}\n"
        f"{record['message']}\n{record.get('traceback', '')}\n"
    )
    try:
        # Without O_NONBLOCK a fifo that nobody reads would hold the job for ever.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
        with os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(text)
    except OSError as error:
        missing = "" if path.parent.is_dir() else f": there is no directory {path.parent}"
        return f"error_log_file: {path} cannot be written: {error.strerror}{missing}"
    return ""
