"""What the executors share: one door for plain calls, and a Dask scheduler each."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from dask_batch.compat.parameters import Parameters, checked_workers, refuse_swallowed
from dask_batch.compat.surface import FixedWorkersError, Surface
from dask_batch.configuration.config import resolve
from dask_batch.configuration.options import Options
from dask_batch.configuration.resources import asked_for, merge_resources
from dask_batch.errors import ConfigurationError
from dask_batch.future import BatchFuture
from dask_batch.preparing.preparation import call_resources, check_call_resources
from dask_batch.private import PrivateCache, unnamed
from dask_batch.session import Session
from dask_batch.sessions import Sessions
from dask_batch.upkeep.runs import CacheEntry, get_cache_data

__all__ = ["BatchExecutor"]


class BatchExecutor(Surface):
    """What the executors share: calls and graphs become jobs of one batch system.

    An executor is also a Dask scheduler: ``dask.compute(x, scheduler=executor)``.

    Parameters
    ----------
    max_workers
        How many jobs of this executor may run at the same time; None: as many as the batch system
        lets.
    cache_directory
        Where results are kept. Default: Dask's setting ``batch.cache-directory``.
    max_cores
        On how many CPUs its jobs may run together, where that can be bounded.
    resource_dict
        Resources of every call that does not say otherwise. It is not changed.
    **options
        Any other option of Dask's section ``batch``, with underscores: ``resource_rules``,
        ``max_jobs``, ``fuse``, ``key_versions``, ... See ``docs/configuration.md``. And the
        parameters of executorlib's executors, as ``docs/migrating-from-executorlib.md`` has them:
        ``wait``, ``refresh_rate``, ``disable_dependencies``, ``log_obj_size``,
        ``plot_dependency_graph``, ``plot_dependency_graph_filename``,
        ``export_workflow_filename``, ...

    Raises
    ------
    ConfigurationError
        An option or a resource is unknown or makes no sense.
    CacheError
        The cache directory cannot be used.
    BackendUnavailableError
        The batch system is not there.
    """

    backend: ClassVar[str] = ""
    keeps_results: ClassVar[bool] = True
    """Whether results are kept, and found again, where nobody has named a cache directory."""

    # Positions are those of executorlib's parameters.
    def __init__(
        self,
        max_workers: int | None = None,
        cache_directory: str | Path | None = None,
        max_cores: int | None = None,
        resource_dict: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        said, options = Parameters.taken(options)
        self._options: Options = self._resolve(
            cache_directory=cache_directory,
            resource_dict=resource_dict,
            max_workers=checked_workers(max_workers),
            max_cores=max_cores,
            **options,
        )
        check_call_resources(self._options.resource_dict, self._options.queues)
        self._shut_down = False
        self._calls = weakref.WeakSet()
        self._wait, self._drawing = said.wait, said.drawing
        self._private: PrivateCache | None = None
        if self._drawing is not None:
            said.refuse_drawing(self._options)
            return  # nothing runs: neither a batch system nor a cache is needed
        self._sessions = self._open(
            nothing_kept=not self.keeps_results
            and unnamed(self._options, cache_directory, resource_dict)
        )
        self._session: Session = self._sessions.main
        # Without shutdown the jobs go on, and so do the futures as long as the process lives.
        self._finalizer = weakref.finalize(self, self._sessions.let_go)
        self._finalizer.atexit = False

    def _open(self, *, nothing_kept: bool) -> Sessions:
        if not nothing_kept:
            return Sessions(self._options)
        elsewhere, self._private = self._options, PrivateCache.where(self._options.backend)
        self._options = self._private.options(elsewhere)
        try:
            sessions = Sessions(self._options, elsewhere)
        except BaseException:
            self._private.remove()
            raise
        sessions.outlast(self._private.remove)
        return sessions

    def _resolve(self, **options: Any) -> Options:
        if options.pop("backend", None) not in (None, self.backend):
            raise ConfigurationError(
                f"the backend of a {type(self).__name__} is {self.backend!r}: take the executor of "
                "another one, or ClusterExecutor(backend=...)"
            )
        return resolve(backend=self.backend, **options)

    # ---- concurrent.futures ------------------------------------------------------------------

    def submit(  # type: ignore[override]
        self,
        fn: Any,
        /,
        *args: Any,
        resource_dict: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> BatchFuture:
        """Hand in a call; it becomes a job, unless its result is in the cache already.

        Parameters
        ----------
        fn
            Any callable that can be pickled; the user's own code travels with it.
        *args, **kwargs
            Its arguments. Futures may stand anywhere in them.
        resource_dict
            Resources of this call; they prevail over the executor's.

        Returns
        -------
        BatchFuture
            Equal calls are one task, with a future each.

        Raises
        ------
        ResourceError, TemplateError
            An unknown resource, or a template that does not render.
        RuntimeError
            The executor has been shut down.
        """
        if self._shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        asked = asked_for(resource_dict)
        if resource_dict is not None:
            refuse_swallowed(fn, len(args))
        if self._drawing is not None:
            call_resources(
                merge_resources(self._options.resource_dict, asked), self._options.queues
            )
            return self._drawing.call(fn, args, kwargs)
        future = self._remember(self._sessions.of(asked).call(fn, args, kwargs, asked))
        if self._private is not None:
            self._private.serve([future])
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls.

        ================  =======================================================================
        wait, cancel      what happens
        ================  =======================================================================
        True, False       waits for all; what leaving ``with`` does
        True, True        cancels what has not started, waits for the rest
        False, True       cancels everything of this executor, running jobs too
        False, False      returns once all is handed over; jobs and futures go on
        ================  =======================================================================

        Parameters
        ----------
        wait, cancel_futures
            See the table. An executor that was created with ``wait=False`` does not wait.

        Notes
        -----
        Where no cache directory is named and nothing is kept, what is left running goes on while
        this process lives; at its end it is waited for, as the standard library does.
        """
        again, self._shut_down = self._shut_down, True
        if self._drawing is not None:
            if not again:
                self._drawing.finish()
            return
        self._sessions.close(wait=wait and self._wait, cancel=cancel_futures)
        if wait and self._wait and self._private is not None:
            self._private.remove()

    def _running(self) -> Session:
        """Return the session, where there is one."""
        if self._drawing is not None:
            raise ConfigurationError(
                "this executor draws the calls of submit, as plot_dependency_graph or the name of "
                "a file asked for, and runs nothing; dask.visualize draws a graph"
            )
        return self._session

    # ---- Dask --------------------------------------------------------------------------------

    def __call__(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        """Compute a graph: the contract of Dask's schedulers."""
        return self.get(dsk, keys, **kwargs)

    def get(
        self,
        dsk: Any,
        keys: Any,
        *,
        resource_dict: Mapping[str, Any] | None = None,
        refresh: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Compute a graph and return the results in the shape of ``keys``.

        Parameters
        ----------
        dsk, keys
            What Dask hands to a scheduler.
        resource_dict
            Resources of this graph's tasks; annotations prevail over them.
        refresh
            Run everything again, and publish the new results.
        **kwargs
            What callers pass to Dask's own schedulers is accepted and has no meaning here.
        """
        if self._shut_down:
            raise RuntimeError("cannot compute after shutdown")
        from dask_batch.get import check_foreign_options, wait_for

        check_foreign_options(kwargs)
        return wait_for(self._running(), dsk, keys, asked_for(resource_dict), refresh=refresh)

    def compute(
        self,
        *collections: Any,
        resource_dict: Mapping[str, Any] | None = None,
        refresh: bool = False,
        optimize_graph: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Hand in Dask collections and return at once.

        Parameters
        ----------
        *collections
            Arrays, dataframes, bags, delayed objects.
        resource_dict, refresh
            As in :meth:`get`.
        optimize_graph
            As in :func:`dask.compute`.

        Returns
        -------
        BatchFuture or list of BatchFuture
            One for one collection, a list for several.
        """
        if self._shut_down:
            raise RuntimeError("cannot compute after shutdown")
        from dask_batch.get import capture

        dsk, keys = capture(collections, optimize_graph=optimize_graph, **kwargs)
        futures = (
            self._running().graph(dsk, keys, asked_for(resource_dict), refresh=refresh).futures()
        )
        if self._private is not None:
            self._private.serve(futures)
        return futures[0] if len(collections) == 1 else futures

    @contextlib.contextmanager
    def as_default(self) -> Iterator[BatchExecutor]:
        """Make this executor Dask's scheduler within a ``with`` block."""
        import dask

        with dask.config.set(scheduler=self.get):
            yield self

    # ---- about it ----------------------------------------------------------------------------

    def job_script(self, resource_dict: Mapping[str, Any] | None = None) -> str:
        """Return the script that a call with these resources would be submitted with."""
        return self._running().script(asked_for(resource_dict))

    def get_cache_data(self) -> list[CacheEntry]:
        """Return what the cache knows of every result: see :func:`dask_batch.get_cache_data`."""
        return get_cache_data(self.cache_directory)

    @property
    def max_workers(self) -> int | None:
        """How many jobs of this executor may run at a time; None: no bound of its own.

        After the shutdown it is None.

        With ``block_allocation`` it is the number of workers, and can be set: more are started, or
        some end, those that are busy after their task.

        Raises
        ------
        ConfigurationError
            It is set, and there are no workers; or to what is no number of workers, or more than
            there is room for.
        RuntimeError
            It is set, and the executor has been shut down.
        """
        if self._shut_down:
            return None
        pool = None if self._drawing is not None else self._session.workers
        return self._options.max_workers if pool is None else pool.count

    @max_workers.setter
    def max_workers(self, number: int) -> None:
        if self._drawing is not None or self._session.workers is None:
            raise FixedWorkersError(
                f"max_workers={number!r}: the number of workers can only be changed where there "
                "are workers, with block_allocation=True; without them, create another executor"
            )
        if self._shut_down:
            raise RuntimeError("there are no workers after shutdown")
        self._session.resize(number)

    @property
    def _max_workers(self) -> int:
        """For how many calls there is room: Dask reads it off a pool that it is given to use.

        Its own schedulers do (``dask.config.set(pool=executor)``), and hand in so many at a time.
        """
        bound = self.max_workers or self._running().backend.default_max_jobs
        return bound or os.cpu_count() or 1

    @property
    def cache_directory(self) -> Path:
        """Where the results are."""
        return self._options.cache_directory

    def __reduce__(self) -> Sequence[Any] | str:  # type: ignore[override]
        raise TypeError(
            f"a {type(self).__name__} cannot travel into a job; create one inside the function"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} cache={str(self.cache_directory)!r}>"
