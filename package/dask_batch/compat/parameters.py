"""Parameters of executorlib's executors that are about the executor, and not about its jobs."""

from __future__ import annotations

import os
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask_batch.compat.drawing import Drawing, wanted_drawing
from dask_batch.configuration.options import Options
from dask_batch.configuration.resource_values import flag, integer
from dask_batch.errors import ConfigurationError

__all__ = ["Parameters", "checked_workers", "refuse_swallowed"]


@dataclass(frozen=True, slots=True)
class Parameters:
    """What was said of an executor as a whole.

    Attributes
    ----------
    wait : bool
        Whether leaving ``with``, or a shutdown, may wait.
    drawing : Drawing or None
        What takes the calls instead of a batch system.
    """

    wait: bool = True
    drawing: Drawing | None = None

    @classmethod
    def taken(cls, options: Mapping[str, Any]) -> tuple[Parameters, dict[str, Any]]:
        """Take them out of the options of an executor; return the rest as well.

        Raises
        ------
        ConfigurationError
            One of them makes no sense, or there is nothing here to draw with.
        """
        rest = dict(options)
        wait = _flag("wait", rest.pop("wait", None), default=True)
        plot = _flag("plot_dependency_graph", rest.pop("plot_dependency_graph", None))
        picture = _file(rest, "plot_dependency_graph_filename")
        workflow = _file(rest, "export_workflow_filename")
        return cls(wait, wanted_drawing(plot=plot, picture=picture, workflow=workflow)), rest

    def refuse_drawing(self, options: Options) -> None:
        """Refuse what has no meaning where calls are drawn.

        Raises
        ------
        ConfigurationError
            Names it.
        """
        if options.disable_dependencies:
            raise ConfigurationError(
                "disable_dependencies=True: the calls are to be drawn, and what is drawn are their "
                "dependencies; leave out one of both"
            )


def checked_workers(number: Any) -> int | None:
    """Check the first parameter of an executor, which others' first parameter may be mistaken for.

    Raises
    ------
    ConfigurationError
        It is no number of workers.
    """
    if number is None:
        return None
    try:
        workers = integer(number)
    except ValueError:
        workers = None
    if workers is not None and workers < 1:
        raise ConfigurationError(f"max_workers must be greater than 0, not {number!r}")
    if workers is not None:
        return workers
    if isinstance(number, (str, os.PathLike)):
        raise ConfigurationError(
            f"max_workers must be a whole number, not {str(number)!r}; a directory for results "
            "goes to cache_directory="
        )
    raise ConfigurationError(f"max_workers must be a whole number, not {number!r}")


def refuse_swallowed(function: Any, given: int) -> None:
    """Refuse a call whose ``resource_dict`` was meant for the function: it would never arrive.

    Parameters
    ----------
    function
        Of the call; only plain functions are looked at.
    given
        How many arguments it has by position.

    Raises
    ------
    ConfigurationError
        The function cannot do without an argument of that name.
    """
    if not isinstance(function, types.FunctionType):
        return
    code = function.__code__
    needed = code.co_varnames[given : code.co_argcount - len(function.__defaults__ or ())]
    optional = function.__kwdefaults__ or {}
    by_name = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    if "resource_dict" in (*needed, *(name for name in by_name if name not in optional)):
        raise ConfigurationError(
            f"resource_dict= are the resources of the call, and {function.__qualname__} needs an "
            "argument of that name: pass its own by position, or by functools.partial"
        )


def _flag(name: str, value: Any, *, default: bool = False) -> bool:
    if value is None:
        return default
    try:
        return flag(value)
    except ValueError as error:
        raise ConfigurationError(f"{name} {error}, not {value!r}") from None


def _file(options: dict[str, Any], name: str) -> Path | None:
    value = options.pop(name, None)
    if value is None:
        return None
    try:
        path = Path(value).expanduser().absolute()  # a later change of directory must not move it
    except (TypeError, RuntimeError):
        raise ConfigurationError(f"{name} must be a path, not {value!r}") from None
    if not path.parent.is_dir():
        raise ConfigurationError(f"{name}={str(value)!r}: there is no directory {path.parent}")
    return path
