"""What a worker keeps between its tasks: what its ``init_function`` returned.

It returned a mapping; a task's function gets from it, by name, the arguments that its call left
open. Which function that is stands in the task: only the outermost call of a step is filled in.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dask_batch.job.endings import EndedError
from dask_batch.spec import Call, Expression

__all__ = ["NOTHING", "Kept"]

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
    """

    named: Mapping[str, Any] = field(default_factory=dict)
    failure: EndedError | None = None

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
        if not self.named or not isinstance(expression, Call):
            return expression
        open_names = _open_names(expression)
        given = {name: self.named[name] for name in open_names if name in self.named}
        return replace(expression, kwargs={**expression.kwargs, **given}) if given else expression


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


NOTHING = Kept()
