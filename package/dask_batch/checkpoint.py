"""A directory in which a function that is cut short finds again what it had."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

from dask_batch.cache.files import check_directory, make_directory
from dask_batch.job.surroundings import CHECKPOINT_VARIABLE, inside_job

__all__ = ["checkpoint_directory"]


def checkpoint_directory() -> Path:
    """Return a directory that the next attempt at the same task finds again.

    A job that reaches its time limit, is preempted, or dies with its node leaves its checkpoints
    behind: the attempt that follows it gets the same directory, be it a retry of the same run or
    the next computation of the same task. Once the task has a result, the directory is removed.

    Returns
    -------
    Path
        A directory of this task alone, which nobody else may read. It exists. Outside a job it
        is a temporary one of this process, removed when the process ends.

    Raises
    ------
    CacheError
        The directory cannot be made, or others may write to it.

    Notes
    -----
    Write a checkpoint under another name, and rename it when it is whole: a job can be killed in
    the middle of a write. A task whose arguments have no stable content (:class:`File` tells what
    has) is another task in every computation; only retries of the same run find its checkpoints.

    Examples
    --------
    >>> import json
    >>> from dask_batch import checkpoint_directory
    >>> def simulate(steps):
    ...     saved = checkpoint_directory() / "state.json"
    ...     step, total = json.loads(saved.read_text()) if saved.exists() else (0, 0)
    ...     while step < steps:
    ...         step, total = step + 1, total + step
    ...         part = saved.with_suffix(".part")
    ...         part.write_text(json.dumps([step, total]))
    ...         part.rename(saved)
    ...     return total
    >>> simulate(5)
    10
    """
    given = os.environ.get(CHECKPOINT_VARIABLE)
    if not inside_job() or not given:
        return _temporary(os.getpid())
    path = Path(given)
    make_directory(path)
    check_directory(path)
    return path


@functools.lru_cache(maxsize=1)  # keyed by pid: a forked child is another process
def _temporary(pid: int) -> Path:
    path = Path(tempfile.mkdtemp(prefix="dask-batch-checkpoints-"))
    atexit.register(_remove, path, pid)
    return path


def _remove(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child runs what its parent has registered
        shutil.rmtree(path, ignore_errors=True)
