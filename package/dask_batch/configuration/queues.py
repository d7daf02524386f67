"""Configuration directories as pysqa has them: a template and limits for each queue of a site.

``queue.yaml`` names the type of the batch system and its queues; each queue has a template, a
file beside it, and limits. ``clusters.yaml`` names several such files, of which the primary one is
read::

    queue_type: SGE
    queue_primary: small
    queues:
      small: {cores_max: 40, cores_min: 1, run_time_max: 604800, script: small.sh}

A queue is chosen by ``resource_dict={"queue": ...}``. What it does not allow is an error that
names the limit: nothing is cut down to it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from dask_batch.errors import ConfigurationError, ResourceError

__all__ = ["NormalForm", "Queue", "Queues", "backend_of", "variables_of"]

logger = logging.getLogger(__name__)

QUEUE: Final = "queue"
"""The key of ``resource_dict`` that chooses one."""


class NormalForm(Protocol):
    """What brings resources to their normal form, at one of the doors."""

    def __call__(
        self, mapping: Mapping[str, Any], /, *, template_variables: frozenset[str]
    ) -> dict[str, Any]:
        """Return the resources in normal form."""


@dataclass(frozen=True, slots=True)
class Queue:
    """One queue: its template and its limits; None where it has none."""

    name: str
    template: str | None = None
    cores_min: int | None = None
    cores_max: int | None = None
    run_time_max: float | None = None
    """Seconds."""
    memory_max: float | None = None
    """Gigabytes."""

    def check(self, normal: Mapping[str, Any], where: Path) -> None:
        """Compare resources in normal form with the limits.

        Raises
        ------
        ResourceError
            Names the limit.
        """
        cores = normal["cores"] * normal["threads_per_core"]
        for what, asked, limit, bad in (
            ("cores", cores, "cores_min", self.cores_min is not None and cores < self.cores_min),
            ("cores", cores, "cores_max", _above(cores, self.cores_max)),
            *(
                (name, normal.get(name), name, _above(normal.get(name), getattr(self, name)))
                for name in ("run_time_max", "memory_max")
            ),
        ):
            if bad:
                raise ResourceError(
                    f"resource {what!r}: {asked} is asked for, but the queue {self.name!r} in "
                    f"{where} has {limit}: {getattr(self, limit)}. Ask for something else"
                    f"{_how_many(limit, self.cores_min)}, or choose another queue: "
                    "resource_dict={'queue': ...}"
                )

    def within(self, normal: Mapping[str, Any]) -> dict[str, Any]:
        """Keep the time of several tasks in one job within the limit of each of them."""
        time = normal.get("run_time_max")
        if _above(time, self.run_time_max):
            return {**normal, "run_time_max": self.run_time_max}
        return dict(normal)


def _how_many(limit: str, cores_min: int | None) -> str:
    """Say how one process asks for more CPUs: at an executor ``cores`` are MPI ranks."""
    return f" ('threads_per_core': {cores_min} for one process)" if limit == "cores_min" else ""


def _above(asked: float | None, limit: float | None) -> bool:
    return asked is not None and limit is not None and asked > limit


@dataclass(frozen=True, slots=True)
class Queues:
    """What a configuration directory says.

    Attributes
    ----------
    path
        The file.
    backend
        The backend that its ``queue_type`` stands for.
    primary
        The queue that is taken when none is chosen.
    queues
        By name.
    """

    path: Path
    backend: str
    primary: str
    queues: Mapping[str, Queue]

    def resources(self, asked: Mapping[str, Any], normal_form: NormalForm) -> dict[str, Any]:
        """Return the resources of one task in normal form, with the template of its queue.

        Raises
        ------
        ResourceError
            There is no such queue, it does not allow what is asked for, or the resources are
            wrong by themselves.
        """
        queue = self._queue(asked.get(QUEUE))
        whole = {**asked, QUEUE: queue.name}
        if queue.template is not None and not whole.get("submission_template"):
            whole["submission_template"] = queue.template
        template = whole.get("submission_template")
        printed = variables_of(template) if isinstance(template, str) else frozenset()
        normal = normal_form(whole, template_variables=printed | {QUEUE})
        queue.check(normal, self.path)
        return normal

    def within(self, normal: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what one job for several tasks needs within the limits of their queue."""
        return self._queue(normal.get(QUEUE)).within(normal)

    def variables(self, name: Any) -> frozenset[str]:
        """Return what may be said beside resources that are known: what any template uses.

        Raises
        ------
        ResourceError
            There is no queue of that name.
        """
        self._queue(name)
        templates = (queue.template for queue in self.queues.values())
        return frozenset({QUEUE}).union(*(variables_of(text) for text in templates if text))

    def _queue(self, name: Any) -> Queue:
        queue = self.queues.get(self.primary if name is None else name)
        if queue is None:
            raise ResourceError(
                f"resource 'queue': {self.path} has no queue {name!r}. There are: "
                f"{', '.join(self.queues)}."
            )
        return queue


_ANY: Final = frozenset({None, "pysqa", "slurm", "flux"})
"""Names that leave the choice to a configuration: executorlib's users give it to the executors for
Slurm and Flux, whatever batch system it is for."""


def backend_of(name: str | None, queues: Queues | None) -> str | None:
    """Return the backend to use where one was named, or a configuration was.

    Raises
    ------
    ConfigurationError
        They contradict each other.
    """
    if queues is None:
        if name == "pysqa":
            raise ConfigurationError(
                "backend='pysqa' needs a configuration: pysqa_config_directory=..."
            )
        return name
    if name not in _ANY and name != queues.backend:
        raise ConfigurationError(
            f"pysqa_config_directory: {queues.path} is for {queues.backend!r}, and jobs were to go "
            f"to {name!r}. Use ClusterExecutor, or cluster_get with backend='pysqa'; or leave "
            "pysqa_config_directory out (in Dask's configuration batch.pysqa-config-directory)"
        )
    if name in ("slurm", "flux") and name != queues.backend:
        logger.info("backend %r, as %s says, and not %r", queues.backend, queues.path, name)
    return queues.backend


def variables_of(template: str) -> frozenset[str]:
    """Return the names that a template uses."""
    from dask_batch.backends.templating import template_variables  # and Jinja2: few need it

    return template_variables(template)
