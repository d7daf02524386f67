"""Functions that tests submit: they leave traces to be counted, and wait at gates."""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from pathlib import Path
from typing import Any

PATIENCE_S = 60.0


def trace(folder: Path, name: str) -> None:
    """Leave a trace of a body that runs, under a name of its own."""
    (folder / f"{name}.{secrets.token_hex(8)}").touch()


def traces(folder: Path) -> Counter[str]:
    """Count the traces in a folder by name."""
    return Counter(path.stem for path in folder.glob("*.*"))


def noted(folder: Path, name: str, value: Any = None) -> Any:
    """Leave a trace and return the value."""
    trace(folder, name)
    return value


def gated(folder: Path, name: str, *parents: Any) -> str:
    """Leave a trace, wait until the file ``open`` is in the folder, and return the name."""
    trace(folder, name)
    deadline = time.monotonic() + PATIENCE_S
    while not (folder / "open").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{folder} was not opened")
        time.sleep(0.01)
    trace(folder, f"{name}-ended")
    return name


def open_gate(folder: Path) -> None:
    """Let what waits in :func:`gated` go on."""
    (folder / "open").touch()


def add(a: int, b: int) -> int:
    return a + b


def fail(message: str) -> None:
    raise LookupError(message)


def kill_myself(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(PATIENCE_S)
