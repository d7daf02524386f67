"""Tasks that write into the world outside, and those that cannot do so from a job."""

from __future__ import annotations

from collections.abc import Iterable

from dask_batch.spec import Expression, Task

__all__ = ["check_writers", "writes"]


def writes(body: Expression) -> bool:
    return False


def check_writers(tasks: Iterable[Task]) -> None:
    return None
