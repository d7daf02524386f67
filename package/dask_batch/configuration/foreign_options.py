"""Options of executorlib's executors that have no meaning here: refused by name, never ignored."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from dask_batch.errors import ConfigurationError

__all__ = ["without_foreign"]

logger = logging.getLogger(__name__)

_FOREIGN: Final[Mapping[str, tuple[tuple[Any, ...], str]]] = {
    "export_workflow_filename": ((None,), "an executor exports the calls of its submit"),
    "flux_executor": ((None,), "set FLUX_URI to the instance that the jobs are to go to"),
    # Every job has its logs: future.stdout() and future.stderr().
    "flux_log_files": ((None, False, True), "it must be True or False"),
    "plot_dependency_graph": ((None, False), "dask.visualize draws a graph"),
    "plot_dependency_graph_filename": ((None,), "dask.visualize draws a graph"),
    "wait": ((None, True), "executor.compute returns at once, and shutdown(wait=False) leaves"),
}
"""For each the values that ask for nothing, and what to say to any other."""


def without_foreign(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Take out the options of executorlib that are at their defaults.

    Raises
    ------
    ConfigurationError
        One of them asks for something.
    """
    ours = {}
    for name, value in keywords.items():
        if name not in _FOREIGN:
            ours[name] = value
            continue
        harmless, reason = _FOREIGN[name]
        alike = (value is one or (type(value) is type(one) and value == one) for one in harmless)
        if not any(alike) and not (name == "flux_executor" and _is_of_flux(value)):
            raise ConfigurationError(f"{name}={value!r} cannot be met here: {reason}")
        if name == "flux_log_files" and value:
            logger.warning(
                "flux_log_files=True: every job has logs anyway, future.stdout() and "
                "future.stderr(); there will be no flux_0.out and flux_0.err"
            )
    return ours


def _is_of_flux(value: Any) -> bool:
    """Whether this is an executor of Flux's own bindings.

    It hands jobs to the instance that encloses this process, and so do our executors; that it has
    threads of its own for that makes no difference to the jobs.
    """
    kind = type(value)
    return kind.__name__ == "FluxExecutor" and kind.__module__.partition(".")[0] == "flux"
