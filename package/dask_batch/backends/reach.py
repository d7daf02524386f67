"""From where the jobs of a backend can be asked after: a property of its name.

Claims name the backend that a run went to. Another client has to know, by that name alone, whom it
may ask what became of the run's jobs.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from dask_batch.backends.base import Backend

__all__ = ["WORKERS", "Reach", "can_wait_for", "ends_with_client", "reach_of"]


WORKERS: Final = "workers"
"""What claims call the backend of tasks that run on workers."""


class Reach(enum.Enum):
    """Who can ask after the jobs of a backend."""

    CLUSTER = "cluster"
    """Every machine that has the batch system's commands."""
    HOST = "host"
    """The machine on which they were handed over: its queue is one of that machine."""
    CLIENT = "client"
    """The process that handed them over, in which the queue lives: its jobs end with it."""


_REACH: Final[Mapping[str, Reach]] = {
    "local": Reach.HOST,
    "slurm-step": Reach.CLIENT,
    "flux-step": Reach.CLIENT,
    WORKERS: Reach.CLIENT,
}
"""What is not here is a batch system of a whole cluster."""


def reach_of(backend: str) -> Reach:
    """Return from where the jobs of a backend can be asked after, by its name."""
    return _REACH.get(backend, Reach.CLUSTER)


def ends_with_client(backend: str) -> bool:
    """Whether the jobs of a backend end with the process that handed them over."""
    return reach_of(backend) is Reach.CLIENT


def can_wait_for(backend: Backend, job_id: str | None) -> bool:
    """Whether a backend can have a job wait for the one of that id.

    Two queues in one process know nothing of each other: their ids begin differently.
    """
    return job_id is not None and job_id.startswith(getattr(backend, "prefix", ""))
