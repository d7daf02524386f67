"""What a worker keeps between its tasks: what its ``init_function`` returned.

It returned a mapping; a task's function gets from it, by name, the arguments that its call left
open. Which function that is stands in the task: only the outermost call of a step is filled in.

One name is filled in everywhere, as executorlib does: ``executorlib_worker_id`` is the worker's
place among those of its client, and 0 in a job of its own.
"""

from __future__ import annotations

import inspect
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dask_batch.job.endings import EndedError, described, summary
from dask_batch.job.surroundings import WORKER_VARIABLE
from dask_batch.spec import Call, Expression

if TYPE_CHECKING:
    from dask_batch.job.ranks.crew import Crew

__all__ = ["NOTHING", "Kept", "named"]

_WORKER = "executorlib_worker_id"
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a worker begins its tasks with.

    Attributes
    ----------
    named
        Values for arguments, by name.
    failure
        How the ``init_function`` ended, if it did not return a mapping: so end all tasks.
    crew
        The MPI ranks that tasks run on, where a worker has several.
    settled
        Whether this process has taken what it was given, its share of the devices.
    """

    named: Mapping[str, Any] = field(default_factory=dict)
    failure: EndedError | None = None
    crew: Crew | None = None
    settled: bool = False

    def check(self) -> None:
        """Raise what the ``init_function`` ended with.

        Raises
        ------
        EndedError
            It has failed.
        """
        if self.failure is not None:
            raise self.failure

    def filled(self, expression: Expression) -> Expression:
        """Return a call with the arguments that it left open, as far as they are kept here."""
        if not isinstance(expression, Call):
            return expression
        values = self.named
        if _asks_for_its_worker(expression.function):
            values = {_WORKER: int(os.environ.get(WORKER_VARIABLE, "0")), **values}
        if not values:
            return expression
        given = {name: values[name] for name in _open_names(expression) if name in values}
        return replace(expression, kwargs={**expression.kwargs, **given}) if given else expression


def _asks_for_its_worker(function: Any) -> bool:
    """Whether a function has a parameter for the worker that it runs on.

    That is asked of every function, so none of the user's code may run for it.
    """
    if not isinstance(function, types.FunctionType):
        return False
    code = function.__code__
    return _WORKER in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _open_names(call: Call) -> list[str]:
    """Return the names of a function's parameters that a call gives no argument for."""
    try:
        parameters = inspect.signature(call.function).parameters.values()
    except (TypeError, ValueError):  # not every builtin tells
        return []
    named = list(parameters)[len(call.args) :]
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        named = [p for p in named if p.kind is inspect.Parameter.KEYWORD_ONLY]
    return [p.name for p in named if p.kind in _BY_NAME and p.name not in call.kwargs]


def named(value: Any) -> Mapping[str, Any]:
    """Return what an ``init_function`` returned, if it is what it must be.

    Raises
    ------
    EndedError
        It is not.
    """
    if value is None:
        return {}
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return value
    error = TypeError(
        "init_function must return a dictionary from names of arguments to their values, or "
        f"nothing; it returned {type(value).__qualname__}"
    )
    raise EndedError("exception", summary(error), **described(error))


NOTHING = Kept()
