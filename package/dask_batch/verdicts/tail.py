"""The last lines of a job's log, as they can be shown to people."""

from __future__ import annotations

import re
from pathlib import Path

from dask_batch.backends.logs import last_attempt

__all__ = ["tail_of"]

_TAIL_LINES = 20
_TAIL_BYTES = 8192
_CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, movements of the cursor
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"  # titles, links
    r"|\x1b[ -/]*[0-~]"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)
"""What a terminal obeys: its control sequences and characters, and marks that reverse a text."""


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
