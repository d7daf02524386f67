"""Options of executorlib's executors that have no meaning here: refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dask_batch.errors import ConfigurationError

__all__ = ["without_foreign"]

_FOREIGN: Final[Mapping[str, tuple[tuple[Any, ...], str]]] = {
    "disable_dependencies": ((None, False), "futures among the arguments are dependencies"),
    "export_workflow_filename": ((None,), "the graph is not exported in this version"),
    "log_obj_size": ((None, False), "sizes are not logged"),
    "plot_dependency_graph": ((None, False), "the graph is not plotted in this version"),
    "plot_dependency_graph_filename": ((None,), "the graph is not plotted in this version"),
    "pysqa_config_directory": ((None,), "use resource_dict={'submission_template': ...}"),
    "refresh_rate": ((None, 0.01), "use shortest_poll_s and longest_poll_s"),
    "wait": ((None, True), "use shutdown(wait=False)"),
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
        if not any(value is one or (type(value) is type(one) and value == one) for one in harmless):
            raise ConfigurationError(f"{name}={value!r} cannot be met here: {reason}")
    return ours
