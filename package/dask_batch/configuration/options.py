"""The options of an executor, or of one ``cluster_get``: what there are, and what makes sense."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from dask_batch.backends.gpus import Declared, declared
from dask_batch.backends.registry import Setup
from dask_batch.configuration.queues import Queues
from dask_batch.configuration.resource_values import Check, count, flag, natural
from dask_batch.errors import ConfigurationError

__all__ = ["KEYWORDS", "Options", "checked"]


@dataclass(frozen=True, slots=True)
class Options:
    """The options of an executor, or of one ``cluster_get``; complete and checked.

    Attributes
    ----------
    backend : str
        The batch system: ``"local"``, ``"slurm"``, ``"pbs"``, ``"sge"``, ``"lsf"``, ...
    cache_directory : Path
        Absolute.
    resource_dict : mapping
        Resources of every task that does not say otherwise; configuration included.
    resource_rules : mapping
        From patterns of task names to resources.
    pysqa_config_directory : Path or None
        A directory with a ``queue.yaml``: the site's queues, their templates and limits, and what
        batch system they belong to.
    max_jobs : int or None
        The largest graph that is handed over, in jobs; None: what the backend says.
    max_workers : int or None
        How many jobs of this executor may run at a time; None: as many as there is room for.
    fuse : {"auto", "linear", "none"}
        Which chains of tasks become one job.
    key_versions : {"minor", "exact", "none"}
        What of a library's version enters a key.
    shortest_poll_s, longest_poll_s : float
        How often the batch system is asked, early and late in a run.
    input_grace_s, output_grace_s, failure_grace_s : float
        How long files that must be there may take to become visible.
    retry_memory_factor, retry_time_factor : float
        How much more a repeated job gets of what its last attempt had too little of.
    steward : bool
        Whether jobs may be handed over that repeat and hand over what needs it when no client
        is there.
    max_cores : int or None
        On how many CPUs the jobs of this executor may run at the same time, where the backend can
        bound that.
    block_allocation : bool
        Whether tasks run on long-lived workers, rather than as a job each.
    init_function : callable or None
        Called once by each worker; the dictionary that it returns gives arguments by name.
    restart_limit : int
        How often the process of a worker is replaced that has died.
    hostname_localhost : bool or None
        Whether workers find their client at 127.0.0.1 only.
    local_gpus : Declared or None
        What is said of the GPUs of this machine, where jobs run on it.
    flux_uri : str or None
        The Flux instance that jobs go to, as ``FLUX_URI`` has it; None: the enclosing one.
    refresh_rate : float or None
        Seconds between two looks at the store; None: as often as they are worth their cost. The
        batch system is never asked more often for it.
    disable_dependencies : bool
        Whether a future among the arguments is an error.
    log_obj_size : bool
        Whether to log how large calls and graphs are, pickled.
    queues : Queues or None
        What ``pysqa_config_directory`` says.
    """

    backend: str
    cache_directory: Path
    resource_dict: Mapping[str, Any] = field(default_factory=dict)
    resource_rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pysqa_config_directory: Path | None = None
    max_jobs: int | None = None
    max_workers: int | None = None
    fuse: Literal["auto", "linear", "none"] = "auto"
    key_versions: Literal["minor", "exact", "none"] = "minor"
    shortest_poll_s: float = 5.0
    longest_poll_s: float = 120.0
    input_grace_s: float = 60.0
    output_grace_s: float = 30.0
    failure_grace_s: float = 5.0
    retry_memory_factor: float = 2.0
    retry_time_factor: float = 2.0
    steward: bool = True
    max_cores: int | None = None
    block_allocation: bool = False
    init_function: Callable[[], Any] | None = None
    restart_limit: int = 0
    hostname_localhost: bool | None = None
    local_gpus: Declared | None = None
    flux_uri: str | None = None
    refresh_rate: float | None = None
    disable_dependencies: bool = False
    log_obj_size: bool = False
    queues: Queues | None = None

    @property
    def setup(self) -> Setup:
        """What is said of the backend as a whole."""
        return Setup(**{said.name: getattr(self, said.name) for said in fields(Setup)})


KEYWORDS: Final = tuple(option.name for option in fields(Options) if option.name != "queues")


def checked(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Check the values of options, and return them in their own types.

    Raises
    ------
    ConfigurationError
        Names the option, what it must be, and what it was given.
    """
    return {name: _checked(name, value) for name, value in chosen.items()}


def _checked(name: str, value: Any) -> Any:
    check = _CHECKS.get(name)
    if check is None:
        return value
    try:
        return check(value)
    except ValueError as error:
        raise ConfigurationError(f"{name} {error}, not {value!r}") from None


def _one_of(*choices: str) -> Check:
    def check(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return str(value)

    return check


def _factor(value: Any) -> float:
    try:
        factor = float(value)
    except (TypeError, ValueError):
        factor = 0.0
    if isinstance(value, (bool, str)) or not 1 <= factor < float("inf"):
        raise ValueError("must be a number from 1")
    return factor


def _duration(value: Any) -> float:
    """Read seconds, or what Dask reads as a time: ``"5s"``, ``"2 min"``."""
    from dask.utils import parse_timedelta

    try:
        seconds = float(parse_timedelta(value))
    except (TypeError, ValueError, KeyError, AttributeError):
        seconds = -1.0
    if isinstance(value, bool) or not 0 <= seconds < float("inf"):
        raise ValueError("must be a time such as 5, '5s' or '2m'")
    return seconds


def _interval(value: Any) -> float:
    seconds = _duration(value)
    if seconds == 0:
        raise ValueError("must be more than 0 seconds")
    return seconds


def _uri(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text as FLUX_URI has it")
    return value


def _function(value: Any) -> Any:
    if not callable(value):
        raise ValueError("must be callable")
    return value


_CHECKS: Final[Mapping[str, Check]] = {
    "block_allocation": flag,
    "disable_dependencies": flag,
    "failure_grace_s": _duration,
    "flux_uri": _uri,
    "fuse": _one_of("auto", "linear", "none"),
    "hostname_localhost": flag,
    "init_function": _function,
    "input_grace_s": _duration,
    "key_versions": _one_of("minor", "exact", "none"),
    "local_gpus": declared,
    "log_obj_size": flag,
    "longest_poll_s": _duration,
    "max_cores": count,
    "max_jobs": count,
    "max_workers": count,
    "output_grace_s": _duration,
    "refresh_rate": _interval,
    "restart_limit": natural,
    "retry_memory_factor": _factor,
    "retry_time_factor": _factor,
    "shortest_poll_s": _duration,
    "steward": flag,
}
