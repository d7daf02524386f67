"""What a job says for itself: lines in its log, and nothing that could stop it."""

from __future__ import annotations

import contextlib
import os

__all__ = ["say"]


def say(text: str) -> None:
    """Write a line to the job's stderr, whatever a function has done to ``sys.stderr``."""
    with contextlib.suppress(OSError):  # closed, or a full disk: the records say it as well
        os.write(2, f"dask-batch: {text}\n".encode("utf-8", "backslashreplace"))
