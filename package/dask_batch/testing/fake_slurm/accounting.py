"""The accounts: a file of lines, written by the controller and read by ``sacct`` alone.

Each line is the state of one run of one job from a moment on, and begins to be seen when the lag
is over. So ``sacct`` goes on working while the controller is away.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

__all__ = ["append", "rows"]


def append(path: str, row: dict[str, Any]) -> None:
    """Write down one change, at once: a line is whole or not there."""
    line = json.dumps({**row, "at": time.time()}) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def rows(path: str, lag_s: float = 0.0) -> list[dict[str, Any]]:
    """Return each run's latest row, the runs in the order of their first rows."""
    found: dict[tuple[int, float], dict[str, Any]] = {}
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    seen_before = time.time() - lag_s
    for line in lines:
        row = json.loads(line)
        if row["at"] <= seen_before:
            found[row["id"], row["submitted"]] = row
    return list(found.values())
