"""Which stewards a run needs, as jobs to be: pure.

The jobs of a run that may be repeated are shared out into *lanes* of some hundred each, since a
batch system cannot wait for any number of jobs at once. One more lane belongs to what a full queue
left of the run; of a window of a few jobs one lane does it all. Each lane has one steward at a time
and, where there is room, a *second*: it waits for the same, begins with the first, and takes its
place if that is killed. The *n*-th steward of a run belongs to lane ``n % lanes``, and those of odd
``n // lanes`` are seconds. So names tell which steward is whose successor, and two processes that
hand over the same steward give it the same name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from dask_batch.backends.base import Job

__all__ = ["LANE_SIZE", "Lanes", "may_be_steward", "steward_name"]

_STEWARD: Final = "steward"
LANE_SIZE: Final = 500
"""How many jobs one steward waits for at most."""
_FEW: Final = 8
"""A window of fewer jobs has one lane: places are worth more than a quick eye on failures."""
_VERY_FEW: Final = 4
"""In a window of fewer jobs nobody stands by, either."""
_PROGRAM: Final = "dask_batch.steward"
_MEMORY_GB: Final = 1
RUN_TIME_S: Final = 900
_NOT_ITS_OWN: Final = (
    "constraint", "cwd", "error_log_file", "exclusive", "gpu_request", "gpus_per_core", "job_name",
    "num_nodes", "priority",
)  # fmt: skip
"""Resources of a task that its steward has no use for. Whose account it runs on it takes over, and
the user's template with its variables: that knows what the site wants of a job."""


def steward_name(run_id: str, number: int) -> str:
    """Return the unique name of a steward."""
    return f"{_STEWARD}-{run_id}-{number}"


def may_be_steward(name: str) -> bool:
    """Whether a job of that name, as a batch system tells it, may be one; it may tell none.

    A controller that has lost its memory gives a steward's id to another job.
    """
    return not name or name.startswith(f"{_STEWARD}-")


@dataclass(frozen=True, slots=True)
class Lanes:
    """The lanes of one run.

    Attributes
    ----------
    repeatable
        The names of the jobs that were accepted and may be repeated, in the order of the run.
    left
        Whether something of the run was left by a full queue.
    accepted
        How many jobs were not.
    """

    repeatable: tuple[str, ...]
    left: bool
    accepted: int

    @property
    def of_failures(self) -> int:
        """How many lanes wait for failures: the first ones."""
        return 0 if self._single else -(-len(self.repeatable) // LANE_SIZE)

    @property
    def _single(self) -> bool:
        return self.left and self.accepted < _FEW

    @property
    def count(self) -> int:
        """How many lanes there are."""
        return self.of_failures + self.left

    @property
    def places(self) -> int:
        """How many places in the queue the stewards should have."""
        alone = self._single and self.accepted < _VERY_FEW
        return self.count if alone else 2 * self.count

    def of(self, number: int) -> int:
        """Return the lane of a steward."""
        return number % max(self.count, 1)

    def hands_over(self, number: int) -> bool:
        """Whether a steward is the one that hands over what was left."""
        return self.left and self.of(number) == self.of_failures

    def members(self, number: int) -> tuple[str, ...]:
        """Return the names of the jobs whose failures a steward sees to."""
        begin = 0 if self._single else self.of(number) * LANE_SIZE
        return self.repeatable[begin : begin + LANE_SIZE]

    def other(self, number: int) -> int:
        """Return the number of the steward that stands by for a steward, or by which it stands."""
        return number - self.count if self.is_second(number) else number + self.count

    def is_second(self, number: int) -> bool:
        """Whether a steward stands by while the first of its lane is at work."""
        return number // max(self.count, 1) % 2 == 1

    def successor(self, number: int) -> int:
        """Return the number of the steward that follows a steward and its second."""
        first = self.other(number) if self.is_second(number) else number
        return first + 2 * self.count

    def stewards(self, run_id: str, like: Job, ids: Mapping[str, str]) -> list[Job]:
        """Return the stewards that are handed over with a run, one for each lane.

        Parameters
        ----------
        run_id, like
            The run, and its first job.
        ids
            The ids of what was accepted, by name, in the order of the run.
        """
        jobs = [
            steward_job(
                run_id, like, number, after_failure=[ids[name] for name in self.members(number)]
            )
            for number in range(self.of_failures)
        ]
        if self.left:
            jobs.append(
                steward_job(
                    run_id, like, self.of_failures, after_end=first_half(list(ids.values()))
                )
            )
        return jobs

    def seconds(self, run_id: str, stewards: Sequence[Job]) -> list[Job]:
        """Return those who stand by for stewards."""
        return [
            replace(job, name=steward_name(run_id, number), index=number)
            for job, number in ((job, self.other(job.index)) for job in stewards)
        ]


def first_half(ids: Sequence[str]) -> Sequence[str]:
    """Return after which jobs of a window the next one is handed over.

    Half of them: then the queue does not run dry while the steward itself waits for its turn, and
    a steward that has half a window to hand over is worth its place in the queue. The first half,
    since parents come first, and end first.
    """
    return ids[: -(-len(ids) // 2)][-LANE_SIZE:]


def steward_job(
    run_id: str,
    like: Job,
    number: int,
    *,
    after_failure: Collection[str] = (),
    after_end: Collection[str] = (),
) -> Job:
    """Return a steward as a job to be.

    Parameters
    ----------
    run_id
        The run that it looks after.
    like
        A job of that run, by whose rules it runs.
    number
        Which of the run's stewards it is.
    after_failure, after_end
        When it begins: see :class:`~dask_batch.backends.base.Job`.
    """
    return Job(
        name=steward_name(run_id, number),
        definition=like.definition,
        index=number,
        resources=_resources(like.resources),
        log_directory=like.log_directory / "stewards",
        working_directory=like.working_directory,
        environment=like.environment,
        program=_PROGRAM,
        after_failure=tuple(after_failure),
        after_end=tuple(after_end),
    )


def _resources(of_task: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **of_task,
        **{name: None for name in _NOT_ITS_OWN if name in of_task},
        "cores": 1,
        "threads_per_core": 1,
        "memory_max": _MEMORY_GB,
        "run_time_max": RUN_TIME_S,
    }
