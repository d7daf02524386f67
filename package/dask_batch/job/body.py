"""The body of a job: unpickle the task, load its inputs, compute it."""

from __future__ import annotations

import os
import resource
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from dask_batch.cache.definitions import Definition
from dask_batch.code import pickling
from dask_batch.errors import UnreadableResultError
from dask_batch.job import checks
from dask_batch.job.endings import ARGUMENTS, EndedError, described, summary
from dask_batch.job.exit_codes import NO_MODULE
from dask_batch.job.inputs import Inputs
from dask_batch.job.kept import NOTHING, Kept
from dask_batch.job.shortened import arguments_of
from dask_batch.job.surroundings import CHECKPOINT_VARIABLE
from dask_batch.spec import Step, evaluate

__all__ = ["Body"]


class Body:
    """What a task computes.

    Parameters
    ----------
    definition
        The task.
    inputs
        What it loads from the store.
    checkpoints
        Where it may leave what its next attempt is to find.
    kept
        Gives the arguments that a call has left open.
    """

    def __init__(
        self, definition: Definition, inputs: Inputs, checkpoints: Path, kept: Kept = NOTHING
    ) -> None:
        self._definition = definition
        self._inputs = inputs
        self._checkpoints = checkpoints
        self._kept = kept
        # Asked for before the function can set one for itself.
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        self._space_limited = soft != resource.RLIM_INFINITY

    def value(self) -> Any:
        """Unpickle the task and compute it, a chain step by step."""
        steps = self._loaded(self._steps)
        value: Any = None
        values: dict[Hashable, Any] = {}
        for behind, step in zip(range(len(steps))[::-1], steps, strict=True):
            # Only the step before is kept: a long chain holds two values, not all.
            values.update(self._loaded(self._inputs_of, step))
            value = self._computed(step, values, behind)
            values = {step.name: value}
        return value

    def _steps(self) -> tuple[Step, ...]:
        steps: tuple[Step, ...] = pickling.loads(
            self._definition.data,
            self._definition.buffers,
            persistent_load=self._inputs.referenced,
            install=True,
        )
        return steps

    def _inputs_of(self, step: Step) -> dict[Hashable, Any]:
        return {name: self._inputs.load(key) for name, key in step.inputs.items()}

    def _loaded(self, load: Any, *what: Any) -> Any:
        """Unpickle, where what is missing is this interpreter's fault and not the function's."""
        try:
            return load(*what)
        except EndedError:
            raise
        except BaseException as error:
            found = error.__cause__ if isinstance(error, UnreadableResultError) else error
            if not isinstance(found, ImportError):
                raise self._failed(error) from error
            raise EndedError(
                "environment",
                checks.missing_module(found),
                exit_code=NO_MODULE,
                module=found.name,
                **described(found),
            ) from error

    def _computed(self, step: Step, values: Mapping[Hashable, Any], behind: int) -> Any:
        """Compute one step, with checkpoints of its own: ``behind`` is how many are to follow."""
        checkpoints = self._checkpoints
        if behind:
            checkpoints /= f"before-{behind}"
        os.environ[CHECKPOINT_VARIABLE] = str(checkpoints)
        try:
            return evaluate(self._kept.filled(step.expression), values)
        except BaseException as error:
            if isinstance(error, ModuleNotFoundError):
                error.add_note(f"The job ran {checks.where()}; {checks.REMEDY}.")
            ended = self._failed(error)
            if self._definition.header.get("error_log_file"):
                ended.fields[ARGUMENTS] = arguments_of(step.expression)
            raise ended from error

    def _failed(self, error: BaseException) -> EndedError:
        """Return how the attempt ends with an exception.

        Python's own MemoryError is an exception like others: who asks for a terabyte would not
        get it with twice the memory. Where the address space is limited from outside, it is how
        that limit shows.
        """
        short = isinstance(error, MemoryError) and self._space_limited
        outcome = "out of memory" if short else "exception"
        return EndedError(outcome, summary(error), **described(error))
