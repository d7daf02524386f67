"""Dask's callbacks: progress bars and profilers see jobs as they see tasks.

A callback is told of every task of the graph, of a chain's members together, and of what the
cache already has at once. It is called in the thread that waits for the graph, at the times at
which the client learns of things.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

from dask.callbacks import local_callbacks

from dask_batch.graph.dask_spec import Graph
from dask_batch.spec import references

__all__ = ["CallbackRun", "Event"]

Event: TypeAlias = Literal["started", "finished"]

_Callback: TypeAlias = tuple[Any, Any, Any, Any, Any]


class CallbackRun:
    """The callbacks that are active where a graph is computed; a context manager around the wait.

    Within it nested computations do not see them, and on leaving it they are told whether the
    graph failed.

    Parameters
    ----------
    graph
        What is being computed.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._callbacks: tuple[_Callback, ...] = ()
        self._begun: list[_Callback] = []
        self._state: dict[str, Any] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            active = stack.enter_context(local_callbacks())
            self._callbacks = tuple(active)
            stack.push(self._finish)
            for callback in self._callbacks:
                if callback[0]:
                    callback[0](self._graph.original)
                self._begun.append(callback)
            if self._callbacks:
                self._state = _state(self._graph)
            for callback in self._callbacks:
                if callback[1]:
                    callback[1](self._graph.original, self._state)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, traceback)

    def _finish(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for callback in self._begun:
            if callback[4]:
                callback[4](self._graph.original, self._state, error is not None)

    def tell(self, event: Event, names: Iterable[Hashable], *, worker: Any = None) -> None:
        """Tell the callbacks that tasks have started, or that they have finished.

        Parameters
        ----------
        event
            ``"started"`` or ``"finished"``; a task that finishes has started, told or not.
        names
            The tasks. What is not of this graph, or was told before, is passed over.
        worker
            Who ran them, as profilers show it.
        """
        if not self._callbacks:
            return
        for name in names:
            if name in self._graph.tasks and name not in self._state["finished"]:
                self._start(name)
                if event == "finished":
                    self._end(name, worker)

    def _start(self, name: Hashable) -> None:
        state = self._state
        if name in state["running"]:
            return
        state["waiting"].pop(name, None)
        state["ready"].pop(name, None)
        state["running"].add(name)
        for callback in self._callbacks:
            if callback[2]:
                callback[2](name, self._graph.original, state)

    def _end(self, name: Hashable, worker: Any) -> None:
        state = self._state
        state["running"].discard(name)
        state["finished"].add(name)
        for dependent in state["dependents"][name]:
            missing = state["waiting"].get(dependent)
            if missing is not None:
                missing.discard(name)
                if not missing:
                    del state["waiting"][dependent]
                    state["ready"][dependent] = None
        for needed in state["dependencies"][name]:
            users = state["waiting_data"].get(needed, set())
            users.discard(name)
            if not users and needed in state["finished"] and needed not in self._graph.required:
                state["waiting_data"].pop(needed, None)
                state["released"].add(needed)
        # The value stays in the cache: whoever wants it reads it there, when it is wanted.
        for callback in self._callbacks:
            if callback[3]:
                callback[3](name, None, self._graph.original, state, worker)


def _state(graph: Graph) -> dict[str, Any]:
    """Make the state that Dask's own schedulers show to callbacks."""
    dependencies = {
        name: {n for n in references(task.expression) if n in graph.tasks}
        for name, task in graph.tasks.items()
    }
    dependents: defaultdict[Hashable, set[Hashable]] = defaultdict(set)
    for name, needed in dependencies.items():
        for one in needed:
            dependents[one].add(name)
    return {
        "dependencies": dependencies,
        "dependents": {name: dependents[name] for name in dependencies},
        "waiting": {name: set(needed) for name, needed in dependencies.items() if needed},
        "waiting_data": {name: set(dependents[name]) for name in dependencies},
        "cache": dict(graph.literals),
        # Dask has a list here; what callbacks do with it is to take its length.
        "ready": {name: None for name, needed in dependencies.items() if not needed},
        "running": set(),
        "finished": set(),
        "released": set(),
    }
