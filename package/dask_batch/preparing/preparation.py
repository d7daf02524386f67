"""What happens in the calling thread: a graph or a call becomes jobs that are ready to go.

Keys and bytes are taken together, here, before control returns to the caller: what is edited or
mutated afterwards changes neither. A prepared job holds no reference to the caller's objects.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask_batch.backends.base import Backend
from dask_batch.backends.templating import template_variables
from dask_batch.cache.store import Cache
from dask_batch.configuration import resources
from dask_batch.configuration.options import Options
from dask_batch.configuration.queues import NormalForm, Queues
from dask_batch.errors import ConfigurationError, UncacheableWarning, warn
from dask_batch.future import Home
from dask_batch.graph import plan
from dask_batch.graph.dask_spec import Graph
from dask_batch.graph.keys import Keyed, Keys
from dask_batch.graph.writers import after_writing
from dask_batch.preparing.hits import Hits
from dask_batch.preparing.outside import Outside
from dask_batch.preparing.packing import CALL, Pack, PreparedJob, function_name, name_of
from dask_batch.preparing.surroundings import Surroundings
from dask_batch.spec import Call, Task, references

__all__ = ["PreparedGraph", "PreparedJob", "Preparer", "call_resources", "name_of"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedGraph:
    """A graph, ready to go.

    Attributes
    ----------
    jobs
        What has to run, parents first.
    keys
        The key of every task, by its name.
    hits
        How many tasks need not run.
    """

    jobs: tuple[PreparedJob, ...]
    keys: Mapping[Hashable, str]
    hits: int


class Preparer:
    """Prepares what one session is asked for.

    Parameters
    ----------
    cache
        Where results are looked up.
    backend
        Its bound on the number of jobs holds where the user gave none.
    options
        The session's options.
    """

    def __init__(self, cache: Cache, backend: Backend, options: Options) -> None:
        self.cache = cache
        self.backend = backend
        self.options = options
        self.initial = ""
        """The key of the function that workers begin with, where tasks run on such."""
        self.home: Home | None = None
        """Whose futures need not be found in the cache to be known."""

    # ---- a call ------------------------------------------------------------------------------

    def call(
        self,
        function: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        asked: Mapping[str, Any],
        surroundings: Surroundings,
    ) -> PreparedJob:
        """Prepare one call of ``submit``, with resources that have been merged.

        Raises
        ------
        dask_batch.preparing.outside.NotYet, dask_batch.preparing.outside.ParentFailed
            About a future in the arguments.
        SerializationError
            Something in it cannot be pickled.
        """
        normal = call_resources(asked, self.options.queues)
        said = {**asked, "ranks": normal["cores"]}  # what cores are at an executor
        task = Task(CALL, Call(function, args, kwargs), self.annotations(said))
        outside = self._outside()
        keys = self._keys(outside)
        keyed = keys.of({CALL: task}, [CALL])
        _warn_uncacheable([task], keyed)
        options = resources.task_options(asked)
        self._name(options, keyed[CALL].key)
        hits = Hits(self.cache)
        if options.refresh:
            self.cache.retire(keyed[CALL].key)
        elif hits.among((keyed[CALL].key,)):
            hits.warn_outdated({CALL: task}, keyed)
        pack = Pack(outside, keys.hasher, keyed, surroundings)
        job = pack.job([task], normal, self._retry([options]), wanted=True)
        self._tell_size(f"the call of {job.function}", [job], outside)
        return job

    def annotations(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is said of a task by those who ask for it."""
        said: dict[str, Any] = {"resources": asked}
        return {**said, "init_function": self.initial} if self.initial else said

    # ---- a graph -----------------------------------------------------------------------------

    def graph(
        self,
        graph: Graph,
        surroundings: Surroundings,
        *,
        refresh: bool = False,
    ) -> PreparedGraph:
        """Prepare a graph.

        Parameters
        ----------
        graph
            What was ingested, with all that was said about its tasks.
        surroundings
            The client's.
        refresh
            Set results aside that are there, and run everything again.

        Raises
        ------
        ResourceError, SerializationError, TooManyJobsError
            Before anything is submitted.
        """
        outside = self._outside()
        keys = self._keys(outside)
        keyed = keys.of(graph.tasks, graph.required)
        _warn_uncacheable(graph.tasks.values(), keyed)
        by_name = {name: found.key for name, found in keyed.items()}
        queues = self.options.queues
        needs = _Needs(queues)
        for task in graph.tasks.values():
            self._name(needs.options(task), by_name[task.name])
        if refresh:
            for key in set(by_name.values()):
                self.cache.retire(key)
        hits = Hits(self.cache)
        planned = plan.plan(
            graph.tasks,
            keyed,
            graph.required,
            hits.among,
            fuse=self.options.fuse,
            equal=lambda one, other: resources.can_chain(needs.of(one), needs.of(other)),
        )
        hits.warn_outdated(graph.tasks, keyed)
        plan.check_count(planned, self.options.max_jobs or self.backend.default_max_jobs)
        written = after_writing(graph.tasks)
        pack = Pack(outside, keys.hasher, keyed, surroundings, written)
        wanted = {by_name[name] for name in graph.required}
        jobs = []
        for job in planned:
            tasks = [graph.tasks[name] for name in job.names]
            normal = resources.chain_resources([needs.of(task) for task in tasks])
            normal = queues.within(normal) if queues else normal
            retry = self._retry([needs.options(task) for task in tasks])
            jobs.append(pack.job(tasks, normal, retry, wanted=job.key in wanted))
        self._tell_size(f"a graph of {len(graph.tasks)} tasks", jobs, outside)
        running = sum(len(job.names) for job in planned)
        return PreparedGraph(tuple(jobs), by_name, len(graph.tasks) - running)

    def _outside(self) -> Outside:
        return Outside(
            self.cache, dependencies=not self.options.disable_dependencies, home=self.home
        )

    def _tell_size(self, what: str, jobs: Sequence[PreparedJob], outside: Outside) -> None:
        """Say how much there is to write, for who asked for that; a warning, so that it is seen."""
        if self.options.log_obj_size:
            pickled = sum(job.payload.nbytes for job in jobs)
            logger.warning("%s is %d bytes pickled", what, pickled + outside.argument_bytes)

    def _name(self, options: resources.TaskOptions, key: str) -> None:
        """Give an entry the name that the user wants for it."""
        if options.cache_key is None:
            return
        other = self.cache.bind_name(options.cache_key, key)
        if other is not None and other != key:
            raise ConfigurationError(
                f"cache_key={options.cache_key!r} names another entry ({other[:12]}): its function "
                f"or arguments differ from those of this task ({key[:12]}). Take another name, or "
                "leave it to the content."
            )

    def _retry(self, chain: Sequence[resources.TaskOptions]) -> dict[str, Any]:
        return resources.retry_policy(
            chain,
            memory_factor=self.options.retry_memory_factor,
            time_factor=self.options.retry_time_factor,
            restarts=self.options.restart_limit,
        )

    def _keys(self, outside: Outside) -> Keys:
        return Keys(
            key_versions=self.options.key_versions,
            nonce=secrets.token_hex(16),
            reference=outside.reference,
        )


class _Needs:
    """The resources of tasks in normal form; equal annotations are checked once."""

    def __init__(self, queues: Queues | None = None) -> None:
        self._queues = queues
        self._checked: dict[str, dict[str, Any]] = {}
        self._options: dict[str, resources.TaskOptions] = {}

    def of(self, task: Task) -> dict[str, Any]:
        """Return what a task of a graph needs."""
        said = said_resources(task.annotations)
        known = repr(said)
        if known not in self._checked:
            asked = resources.merge_resources(said)
            self._checked[known] = _normal(asked, resources.for_dask_task, self._queues)
        return self._checked[known]

    def options(self, task: Task) -> resources.TaskOptions:
        """Return how the result of a task is to be kept."""
        said = said_resources(task.annotations)
        known = repr(said)
        if known not in self._options:
            self._options[known] = resources.task_options(said)
        return self._options[known]


def call_resources(asked: Mapping[str, Any], queues: Queues | None = None) -> dict[str, Any]:
    """Check the resources of a call, and bring them to normal form."""
    return _normal(asked, resources.for_executor_call, queues)


def check_call_resources(asked: Mapping[str, Any], queues: Queues | None = None) -> None:
    """Check the resources of an executor, of which calls and graphs make what they mean there.

    Raises
    ------
    ResourceError, TemplateError
        As for a call.
    """
    printed = _variables(asked)
    if queues is not None:
        printed |= queues.variables(asked.get("queue"))
    resources.check_resources(asked, template_variables=printed)


def said_resources(annotations: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resources among the annotations of a task.

    They stand under ``resources``; known ones are also taken from beside it, as in
    ``dask.annotate(memory_max=4)``. What belongs to other schedulers is left alone.
    """
    beside = {name: annotations[name] for name in annotations.keys() & resources.KNOWN.keys()}
    return {**beside, **(annotations.get("resources") or {})}


def _normal(
    asked: Mapping[str, Any], normal_form: NormalForm, queues: Queues | None
) -> dict[str, Any]:
    """Bring resources to normal form, by the rules of a site's queues where they are known."""
    if queues is not None:
        return queues.resources(asked, normal_form)
    return normal_form(asked, template_variables=_variables(asked))


def _variables(asked: Mapping[str, Any]) -> frozenset[str]:
    """Return the names that the user's own template uses."""
    template = asked.get("submission_template")
    return template_variables(template) if isinstance(template, str) else frozenset()


def _warn_uncacheable(tasks: Iterable[Task], keyed: Mapping[Hashable, Keyed]) -> None:
    """Say once for a hand-over which tasks cannot be found again, and why.

    A writer runs each time anyhow, and so does what comes after it.
    """
    culprits = [
        (task, keyed[task.name].problems)
        for task in tasks
        if keyed[task.name].problems
        and not task.writes
        and not any(keyed[name].ephemeral for name in references(task.expression))
    ]
    if culprits:
        task, problems = culprits[0]
        more = f" (and {len(culprits) - 1} more task(s))" if len(culprits) > 1 else ""
        warn(
            f"{function_name(task)}{more} will run again next time: {problems[0].path} has no "
            f"stable content ({problems[0].reason}). Pass plain data, or say cache=False.",
            UncacheableWarning,
        )
