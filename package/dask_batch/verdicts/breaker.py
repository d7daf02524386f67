"""When to give a whole hand-over up: the first jobs all died of one cause before they began.

A graph whose interpreter is missing on the nodes fails as often as it has tasks, each after its
wait in the queue. Five jobs are enough to know. Fewer than five are never cut short: a small graph
fails by itself as soon as its few roots have, and one bad node can take a handful of jobs.
"""

from __future__ import annotations

from dataclasses import dataclass

from dask_batch.verdicts.follow import Outcome

__all__ = ["THRESHOLD", "Breaker", "Fall"]

THRESHOLD = 5
"""So many distinct jobs must have died alike."""
_QUICK_S = 60.0
"""A job that was at work for longer had surroundings to work in."""


@dataclass(frozen=True, slots=True)
class Fall:
    """How a job's last attempt ended, as far as it tells of its surroundings.

    Attributes
    ----------
    key
        Its task.
    outcome, cause
        The verdict, and what is alike where the cause is the same.
    began
        Whether it left the record of its start.
    lasted_s
        How long it was at work, None if that is not known.
    host, job_id
        Where it ran, empty if that is not known, and its id.
    """

    key: str
    outcome: Outcome
    cause: str
    began: bool
    lasted_s: float | None = None
    host: str = ""
    job_id: str = ""

    @property
    def of_the_surroundings(self) -> bool:
        """Whether it died of its surroundings, before its function was called."""
        if self.outcome is Outcome.ENVIRONMENT:
            return self.lasted_s is None or self.lasted_s < _QUICK_S
        return self.outcome is Outcome.DIED and not self.began


class Breaker:
    """Counts how the first jobs of one hand-over end.

    Attributes
    ----------
    tripped
        Whether the rest of the hand-over is to be given up.
    """

    def __init__(self) -> None:
        self.tripped = False
        self._sound = False
        self._fallen: dict[tuple[Outcome, str], dict[str, Fall]] = {}

    @property
    def decided(self) -> bool:
        """Whether nothing that comes changes anything any more."""
        return self._sound or self.tripped

    @property
    def count(self) -> int:
        """How many jobs died of the commonest cause."""
        return max(map(len, self._fallen.values()), default=0)

    @property
    def hosts(self) -> list[str]:
        """On which nodes the jobs died, as far as that is known of all of them."""
        hosts = {fall.host for alike in self._fallen.values() for fall in alike.values()}
        return [] if "" in hosts else sorted(hosts)

    @property
    def job_ids(self) -> list[str]:
        """The ids of the jobs that died."""
        return [fall.job_id for alike in self._fallen.values() for fall in alike.values()]

    def worked(self) -> None:
        """Note that a job has worked, well or not: the surroundings are sound."""
        self._sound = True

    def fell(self, fall: Fall) -> bool:
        """Note a failure that is final; return whether it is the one that trips.

        A failure of the function itself, or any other that comes after a job's beginning, shows
        that the surroundings are sound.
        """
        if self.decided:
            return False
        if not fall.of_the_surroundings:
            # Not told apart from a job that never was: cancelled, lost, or fallen with an input.
            self._sound = fall.began
            return False
        alike = self._fallen.setdefault((fall.outcome, fall.cause), {})
        alike[fall.key] = fall
        self.tripped = len(alike) >= THRESHOLD and len(self._fallen) == 1
        return self.tripped
