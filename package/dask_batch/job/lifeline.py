"""A task whose result nobody but its client could fetch ends when that client has gone.

An executor that keeps nothing has a folder for its jobs and itself, which says whose it is. The
queue of this machine goes on when a client is killed, and would compute for nobody.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from pathlib import Path
from types import TracebackType
from typing import Final

from dask_batch.cache.owner import Owner
from dask_batch.job.say import say

__all__ = ["OWNER_FILE", "PRIVATE_PREFIX", "Lifeline"]

PRIVATE_PREFIX: Final = ".dask-batch-private-"
"""What the name of a folder begins with that goes with its client; the cache is in it."""
OWNER_FILE: Final = "owner.json"

_LOOK_S: Final = 1.0
_TERM_S: Final = 5.0


class Lifeline:
    """Ends this job once its client is known to have ended; for the ``with`` statement.

    Parameters
    ----------
    cache
        The cache directory.

    Notes
    -----
    Where the cache is not one client's alone it does nothing, nor where nobody can tell from here
    whether the client lives: on another node of an allocation, whose steps end with it anyway.
    """

    def __init__(self, cache: Path) -> None:
        self._owner = _owner_of(cache.parent)
        self._over = threading.Event()

    def __enter__(self) -> Lifeline:
        if self._owner is not None and self._owner.alive() is not None:
            threading.Thread(target=self._watch, name="dask-batch-lifeline", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()

    def _watch(self) -> None:
        assert self._owner is not None
        while self._owner.alive() is not False:
            if self._over.wait(_LOOK_S):
                return
        say("the client has ended, and nobody else could fetch the result: this job ends as well")
        for number in (signal.SIGTERM, signal.SIGKILL):
            _signal_job(number)
            if self._over.wait(_TERM_S):
                return


def _owner_of(folder: Path) -> Owner | None:
    """Return whose a folder is; None if it does not say so, or not in so many words."""
    if not folder.name.startswith(PRIVATE_PREFIX):
        return None
    try:
        record = json.loads((folder / OWNER_FILE).read_text(encoding="utf-8"))
        return Owner(**{name: record[name] for name in ("host", "boot_id", "pid", "started")})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _signal_job(number: int) -> None:
    """Signal what the function has started, too, where this job is a group of its own."""
    with contextlib.suppress(ProcessLookupError):
        if os.getpgrp() == os.getpid():
            os.killpg(0, number)
        else:
            os.kill(os.getpid(), number)
