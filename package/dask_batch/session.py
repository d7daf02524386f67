"""A session: one cache, one backend, one engine, and the two things that can be asked of them."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_batch.backends import open_backend
from dask_batch.backends.base import Backend, Job, tells_at_once
from dask_batch.backends.command import client_environment
from dask_batch.backends.reach import Reach, ends_with_client, reach_of
from dask_batch.backends.within.extent import spans_machines
from dask_batch.cache.claims import Claims
from dask_batch.cache.filesystem import why_not_shared
from dask_batch.cache.store import Cache
from dask_batch.configuration import resource_values, resources
from dask_batch.configuration.options import Options
from dask_batch.engine.engine import Engine
from dask_batch.engine.request import Request
from dask_batch.errors import ConfigurationError, SerializationError
from dask_batch.evidence.standing import Standings
from dask_batch.following.watch import Pace, Watch
from dask_batch.future import BatchFuture
from dask_batch.graph.dask_spec import ingest
from dask_batch.graph.writers import let_go
from dask_batch.graphrun import GraphRun
from dask_batch.preparing.deferred import Deferred
from dask_batch.preparing.outside import Barred, NotYet, ParentFailed, check_parent
from dask_batch.preparing.packing import PreparedJob
from dask_batch.preparing.preparation import Preparer, call_resources, name_of
from dask_batch.preparing.surroundings import Surroundings, make_below_here
from dask_batch.submitting.defining import safe_name
from dask_batch.submitting.handover import HandOver
from dask_batch.verdicts.failures import dependency_failure

if TYPE_CHECKING:
    from dask_batch.backends.workers.pool import WorkerPool
    from dask_batch.workforce import Workforce

__all__ = ["Session", "open_session"]

logger = logging.getLogger(__name__)


def open_session(options: Options) -> Session:
    """Open the cache and the backend that the options name."""
    cache = Cache(options.cache_directory)
    if options.block_allocation:
        return _with_workers(cache, options)
    backend = open_backend(options.backend, options.setup)
    if backend.shared or spans_machines(options.backend):
        _warn_of_local_files(cache.path)
    return Session(cache, backend, options)


def _with_workers(cache: Cache, options: Options) -> Session:
    """Open a session whose tasks run on long-lived workers."""
    from dask_batch.backends.within.backend import WithinBackend
    from dask_batch.workforce import BACKEND, open_workforce

    if _elsewhere(options):
        _warn_of_local_files(cache.path)
    force = open_workforce(cache, options, _common(options))
    session = Session(cache, WithinBackend(force.pool, name=BACKEND), force.options)
    session.employ(force)
    return session


@functools.cache
def _warn_of_local_files(folder: Path) -> None:
    """Say once that jobs on other machines may not see the cache."""
    why = why_not_shared(folder)
    if why:
        logger.warning(
            "jobs on other nodes may not see the cache %s: %s. Choose a folder on a file system "
            "that the nodes share: cache_directory=, or batch.cache-directory.",
            folder, why,
        )  # fmt: skip


class Session:
    """What an executor, or one call of ``cluster_get``, works with.

    Parameters
    ----------
    cache, backend
        Where results are, and where jobs go.
    options
        Everything else that was chosen.
    """

    def __init__(self, cache: Cache, backend: Backend, options: Options) -> None:
        self.cache = cache
        self.backend = backend
        self.options = options
        standings = Standings(cache, Claims(cache), backend, open_backend)
        pace = _pace(backend, options)
        # Where jobs end with their client, there is nobody to go on without it.
        alone = ends_with_client(backend.name)
        self.engine = Engine(
            HandOver(standings, common=_common(options), steward=options.steward and not alone),
            Watch(cache, backend, pace, standings),
        )
        self.deferred = Deferred()
        self.workers: WorkerPool | None = None
        self._check_workers: Callable[[int], None] = lambda _: None
        self._preparer = Preparer(cache, backend, options)
        self._preparer.home = self.engine

    def employ(self, force: Workforce) -> None:
        """Have tasks run on workers."""
        self.workers = force.pool
        self._check_workers = force.check
        self._preparer.initial = force.initial

    def resize(self, number: int) -> None:
        """Have another number of workers.

        Raises
        ------
        ConfigurationError
            It is no number of workers, or there is no room for so many.
        """
        assert self.workers is not None, "who has none is not asked to have more"
        try:
            count = resource_values.count(number)
        except ValueError as error:
            raise ConfigurationError(f"max_workers {error}, not {number!r}") from None
        self._check_workers(count)
        self.workers.resize(count)

    def surroundings(self) -> Surroundings:
        """Take the surroundings of this moment."""
        return Surroundings.current(client_environment())

    # ---- plain calls -------------------------------------------------------------------------

    def call(
        self,
        function: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        resource_dict: Mapping[str, Any],
    ) -> BatchFuture:
        """Hand in a call.

        Raises
        ------
        ConfigurationError
            About its resources.
        RuntimeError
            The interpreter ends. Whatever else is wrong goes into the future.
        """
        self.engine.check_time()
        if not callable(function):
            raise TypeError(f"{function!r} is not callable")
        asked = resources.merge_resources(self.options.resource_dict, resource_dict)
        normal = call_resources(asked, self.options.queues)
        make_below_here(normal["cwd"])
        self._check(normal, name_of(function))
        future = BatchFuture(self.engine)
        attempt = functools.partial(
            self._attempt, future, function, args, kwargs, asked, self.surroundings()
        )
        attempt()
        return future

    def _attempt(
        self,
        future: BatchFuture,
        function: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        asked: Mapping[str, Any],
        surroundings: Surroundings,
    ) -> None:
        """Prepare a call and request it, or put it off; whatever is wrong goes into the future."""
        if future.cancelled():
            return
        try:
            job = self._preparer.call(function, args, kwargs, asked, surroundings)
            future.key = job.key
            future.ephemeral = bool(job.header["attributes"]["ephemeral"])
            self._request(future, job, job.unknown)
        except NotYet as not_yet:
            again = functools.partial(
                self._attempt, future, function, args, kwargs, asked, surroundings
            )
            self.deferred.after(not_yet.future.add_done_callback, again)
        except ParentFailed as failed:
            future._fail(_failed_parent(failed, name_of(function)))
        except Barred as barred:
            future._fail(_barred(barred, name_of(function)))
        except Exception as error:
            future._fail(error)

    def _request(
        self, future: BatchFuture, job: PreparedJob, unknown: Sequence[BatchFuture]
    ) -> None:
        """Request a call whose parents in other sessions are known in the cache, or put it off."""
        try:
            if unknown:
                again = functools.partial(self._request, future, job, unknown[1:])
                self.deferred.after(unknown[0].add_known_callback, again)
                return
            for parent in job.unknown:
                if parent.done():
                    check_parent(parent)
            self.engine.request(Request((replace(job, unknown=()),), (future,), gather=True))
        except ParentFailed as failed:
            future._fail(_failed_parent(failed, job.function))
        except Exception as error:
            future._fail(error)

    @functools.cached_property
    def _checked(self) -> set[str]:
        return set()

    def _check(self, normal: Mapping[str, Any], name: str) -> None:
        """Check resources and template, once for all calls that ask for the same."""
        known = repr(sorted(normal.items(), key=str))
        if known not in self._checked:
            self.backend.check([self._job(normal, name)])
            self._checked.add(known)

    def _job(self, normal: Mapping[str, Any], name: str) -> Job:
        """Return a job as an example: nothing in it exists."""
        folder = self.cache.path / "logs" / "RUN"
        surroundings = self.surroundings()
        return Job(
            name=safe_name(name),
            definition=self.cache.path / "definitions" / "RUN.h5",
            index=0,
            resources=normal,
            log_directory=folder,
            working_directory=surroundings.working_directory,
            environment=surroundings.environment,
        )

    def script(self, resource_dict: Mapping[str, Any]) -> str:
        """Return the script that a call with these resources would be submitted with."""
        asked = resources.merge_resources(self.options.resource_dict, resource_dict)
        normal = call_resources(asked, self.options.queues)
        self._check(normal, "function")
        return self.backend.script(self._job(normal, "function"))

    # ---- graphs ------------------------------------------------------------------------------

    def graph(
        self,
        dsk: Any,
        keys: Any,
        resource_dict: Mapping[str, Any],
        *,
        refresh: bool = False,
        callbacks: bool = False,
    ) -> GraphRun:
        """Hand in a graph, as Dask gives it to a scheduler.

        Raises
        ------
        KeyError
            A wanted key is not in the graph.
        GraphError, ConfigurationError
            Before anything is submitted.
        """
        import dask

        asked = resources.merge_resources(self.options.resource_dict, resource_dict)
        said = dask.get_annotations()
        graph = ingest(
            dsk,
            keys,
            annotations={
                **said,
                **self._preparer.annotations({**asked, **(said.get("resources") or {})}),
            },
            resource_rules=self.options.resource_rules,
        )
        let_go(graph.tasks.values())
        try:
            prepared = self._preparer.graph(graph, self.surroundings(), refresh=refresh)
        except NotYet as not_yet:
            raise ConfigurationError(
                f"the graph holds {not_yet.future!r}, which has not ended: wait for it first, or "
                "pass it to executor.submit"
            ) from None
        except ParentFailed as failed:
            raise SerializationError(
                f"the graph holds {failed.future!r}, which has no value"
            ) from failed.error
        except Barred as barred:
            raise _barred(barred, "the graph") from None
        for directory in {job.resources["cwd"] for job in prepared.jobs}:
            make_below_here(directory)
        self.backend.check(self._examples(prepared.jobs))
        for future in {future for job in prepared.jobs for future in job.unknown}:
            future.wait_until_known()
        return GraphRun(self.engine, graph, prepared, callbacks=callbacks)

    def _examples(self, jobs: Any) -> list[Job]:
        """Return one job for each distinct set of resources, to be checked."""
        distinct = {repr(sorted(job.resources.items(), key=str)): job for job in jobs}
        return [self._job(job.resources, job.function) for job in distinct.values()]

    # ---- the end -----------------------------------------------------------------------------

    def idle(self) -> bool:
        """Whether nothing is under way, and no call waits for others."""
        return not self.deferred and self.engine.idle()

    def close(self, *, wait: bool, cancel: bool) -> None:
        """End as ``executor.shutdown`` says."""
        engine = self.engine
        if cancel and wait:
            engine.cancel_waiting()
        elif cancel:
            engine.cancel_all()
        elif wait:
            self.deferred.wait()
        else:
            engine.flush()
        # Calls that wait for futures of others are handed over even after a detached shutdown.
        self.deferred.when_empty(engine.close)
        if wait:
            self.deferred.wait()
            engine.join()


def _common(options: Options) -> dict[str, Any]:
    """Return what all jobs of all runs share, as JSON data."""
    return {
        "python": list(sys.version_info[:2]),
        "key_versions": options.key_versions,
        "input_grace_s": options.input_grace_s,
        "output_grace_s": options.output_grace_s,
        "failure_grace_s": options.failure_grace_s,
    }


def _failed_parent(failed: ParentFailed, function: str) -> BaseException:
    parent = failed.future
    key = parent.key if isinstance(parent, BatchFuture) else ""
    return dependency_failure(failed.error, key="", function=function, root=key, root_function="")


def _elsewhere(options: Options) -> bool:
    """Whether jobs run on machines that may see files later than this one."""
    return reach_of(options.backend) is Reach.CLUSTER or spans_machines(options.backend)


def _barred(barred: Barred, where: str) -> ConfigurationError:
    return ConfigurationError(
        f"among the arguments of {where} is a {type(barred.future).__name__}, and with "
        "disable_dependencies=True there may be no futures: pass its result(), or leave "
        "dependencies on"
    )


def _pace(backend: Backend, options: Options) -> Pace:
    """Return how often to ask: politely where others ask the same batch system."""
    if not (backend.shared or _elsewhere(options)):
        return Pace(
            0.0, 0.0, output_grace_s=1.0, failure_grace_s=0.0, fixed_look_s=options.refresh_rate
        )
    prompt = not backend.shared or tells_at_once(backend)
    return Pace(
        0.0 if prompt else options.shortest_poll_s,
        0.0 if prompt else options.longest_poll_s,
        output_grace_s=options.output_grace_s,
        failure_grace_s=options.failure_grace_s,
        fixed_look_s=options.refresh_rate,
    )
