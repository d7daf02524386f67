"""How long a silent batch system is waited for: growing pauses, and an end to them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["CANCEL_PATIENCE_S", "PATIENCE_S", "Patience", "Waiting"]

logger = logging.getLogger(__name__)

PATIENCE_S = 600.0
"""A restart of a controller (slurmctld) on a large machine takes minutes."""
CANCEL_PATIENCE_S = 120.0
"""Somebody waits for a cancellation at a keyboard."""
_PAUSES_S = (2.0, 4.0, 8.0, 15.0, 30.0)
_WARN_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """How to wait.

    Attributes
    ----------
    pause
        Waits for some seconds; returns True if that was cut short and there is no going on.
    clock
        Tells the time in seconds.
    """

    pause: Callable[[float], bool]
    clock: Callable[[], float] = time.monotonic


class Patience:
    """The pauses between the repetitions of one command.

    Parameters
    ----------
    waiting
        How to wait.
    what
        What is waited for, for the log: "submitting job x".
    total_s
        For how long in all.
    """

    def __init__(self, waiting: Waiting, what: str, *, total_s: float = PATIENCE_S) -> None:
        self._waiting = waiting
        self._what = what
        self._began = waiting.clock()
        self._total_s = total_s
        self._count = 0

    def pause(self, why: str) -> bool:
        """Wait a little; return whether to try again."""
        spent_s = self._waiting.clock() - self._began
        left_s = self._total_s - spent_s
        if left_s <= 0:
            return False
        pause_s = min(_PAUSES_S[min(self._count, len(_PAUSES_S) - 1)], left_s)
        self._count += 1
        logger.log(
            logging.WARNING if spent_s > _WARN_AFTER_S else logging.INFO,
            "%s: the batch system says %r; trying again in %.0f s, for %.0f more seconds at most",
            self._what,
            why.strip().splitlines()[-1] if why.strip() else "nothing",
            pause_s,
            left_s,
        )
        return not self._waiting.pause(pause_s)
