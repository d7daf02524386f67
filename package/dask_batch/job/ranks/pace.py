"""How often to look at a file system that many share: at first often, later seldom."""

from __future__ import annotations

import time
from typing import Final

__all__ = ["Pace"]

_SHARE: Final = 0.05
"""The part of a wait that may be lost at its end."""


class Pace:
    """Tells how long to wait until the next look, by how long it has been in vain.

    Parameters
    ----------
    shortest_s, longest_s
        Between these it stays.
    """

    def __init__(self, shortest_s: float, longest_s: float) -> None:
        self._shortest_s = shortest_s
        self._longest_s = longest_s
        self._begun = time.monotonic()

    def wait_s(self) -> float:
        """Return the time to the next look, in seconds."""
        waited_s = time.monotonic() - self._begun
        return min(max(_SHARE * waited_s, self._shortest_s), self._longest_s)
