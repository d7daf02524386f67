"""Options: what a keyword says, else what Dask's configuration says, else the default.

Our section of Dask's configuration is ``batch``; ``batch.yaml`` beside this module documents it
and holds the defaults. It is copied, commented out, to where Dask's other files are. An existing
section ``jobqueue.slurm`` (of dask-jobqueue) gives defaults for account, partition, prologue and
interpreter.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from dask_batch.backends.command import client_environment
from dask_batch.backends.gpus import Declared, declared
from dask_batch.backends.registry import Setup, choose_backend
from dask_batch.errors import ConfigurationError
from dask_batch.foreign_options import without_foreign
from dask_batch.queue_files import read_queues
from dask_batch.queues import Queues, backend_of
from dask_batch.resource_values import count, flag, lines, natural
from dask_batch.resources import merge_resources

__all__ = ["Options", "client_environment", "register_defaults", "resolve"]

logger = logging.getLogger(__name__)

_SECTION = "batch"
_DEFAULTS_FILE = Path(__file__).with_name("batch.yaml")


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

_CHOICES: Final[Mapping[str, Collection[str]]] = {
    "fuse": ("auto", "linear", "none"),
    "key_versions": ("minor", "exact", "none"),
}


def _setting(keyword: str) -> str:
    """Return what an option is called in the configuration."""
    return keyword.removesuffix("_s").replace("_", "-")


_OF_WORKERS: Final = ("init_function", "restart_limit")
_KEYWORDS_ONLY: Final = frozenset(
    {
        *("block_allocation", "disable_dependencies", "flux_uri", "hostname_localhost"),
        *("log_obj_size", "max_cores", "max_workers", "refresh_rate", *_OF_WORKERS),
    }
)
SETTINGS: Final = {
    _setting(keyword): keyword for keyword in KEYWORDS if keyword not in _KEYWORDS_ONLY
}
"""Settings of the section ``batch``, and the keywords they stand for."""


def resolve(**keywords: Any) -> Options:
    """Return the options: explicit keywords before Dask's configuration before the defaults.

    A keyword that is None counts as not given; the caller's dictionaries are copied.

    Raises
    ------
    ConfigurationError
        A keyword or a setting is unknown, or its value makes no sense.
    BackendUnavailableError
        A batch system is asked for that this version does not know yet.
    """
    explicit = _with_resources(without_foreign(keywords))
    for name in explicit:
        if name not in KEYWORDS:
            raise ConfigurationError(_unknown("option", name, KEYWORDS))
    configured = _configured()
    chosen = {name: value for name, value in configured.items() if value is not None}
    chosen.update({name: value for name, value in explicit.items() if value is not None})
    if chosen.get("pysqa_config_directory") is not None:
        chosen["queues"] = read_queues(chosen["pysqa_config_directory"])
        chosen["pysqa_config_directory"] = chosen["queues"].path.parent
    chosen["backend"] = choose_backend(backend_of(chosen.get("backend"), chosen.get("queues")))
    if explicit.get("local_gpus") is not None and chosen["backend"] != "local":
        raise ConfigurationError(
            f"local_gpus={explicit['local_gpus']!r}: it is the batch system that knows the GPUs of "
            "its nodes; this is an option of the local queue"
        )
    chosen["resource_dict"] = merge_resources(
        _from_jobqueue() if chosen["backend"] == "slurm" else {},
        _mapping("resource_dict", configured.get("resource_dict")),
        _mapping("resource_dict", explicit.get("resource_dict")),
    )
    # Where it stands among the resources it means those of every task: all of them.
    folder = chosen["resource_dict"].pop("cache_directory", chosen["cache_directory"])
    chosen["cache_directory"] = _folder(folder)
    chosen["resource_rules"] = {
        str(pattern): dict(_mapping(f"resource_rules[{pattern!r}]", rule))
        for pattern, rule in _mapping("resource_rules", chosen.get("resource_rules")).items()
    }
    options = Options(**_checked(chosen))
    for name in () if options.block_allocation else _OF_WORKERS:
        if getattr(options, name):
            raise ConfigurationError(
                f"{name} is for workers that stay: say block_allocation=True as well"
            )
    return options


_RESOURCES: Final = ("pmi_mode", "openmpi_oversubscribe")
"""Resources that executorlib's users know as parameters of an executor."""


def _with_resources(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Put parameters that are resources of every task among the resources."""
    rest = {name: value for name, value in keywords.items() if name not in _RESOURCES}
    given = {name: keywords[name] for name in _RESOURCES if keywords.get(name) is not None}
    if given:
        rest["resource_dict"] = {
            **given,
            **_mapping("resource_dict", rest.get("resource_dict")),
        }
    return rest


def _unknown(what: str, name: str, known: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {what} {name!r}.{hint} Known are: {', '.join(sorted(known))}."


def _configured() -> dict[str, Any]:
    """Return our section of Dask's configuration, by keyword."""
    import dask

    register_defaults()
    configured: dict[str, Any] = {}
    for name, value in _mapping(_SECTION, dask.config.get(_SECTION)).items():
        keyword = SETTINGS.get(str(name).replace("_", "-"))
        if keyword is None:
            known = [f"{_SECTION}.{setting}" for setting in SETTINGS]
            raise ConfigurationError(
                _unknown("setting in Dask's configuration:", f"{_SECTION}.{name}", known)
            )
        configured[keyword] = value
    return configured


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{name} must be a mapping, not {value!r}")
    return value


def _folder(value: Any) -> Path:
    """Make a path absolute: a later change of directory must not move the cache."""
    try:
        path = Path(value).expanduser()
    except (TypeError, RuntimeError) as error:
        raise ConfigurationError(f"cache_directory must be a path, not {value!r}") from error
    if not str(path).isprintable():
        raise ConfigurationError(f"cache_directory has control characters in it: {value!r}")
    return path.absolute()


_FLAGS: Final = (
    *("block_allocation", "disable_dependencies", "hostname_localhost", "log_obj_size"),
    "steward",
)


def _checked(chosen: Mapping[str, Any]) -> dict[str, Any]:
    checked = dict(chosen)
    for name, value in chosen.items():
        if name in ("max_cores", "max_jobs", "max_workers"):
            checked[name] = _count(name, value)
        elif name == "local_gpus":
            checked[name] = _gpus(name, value)
        elif name == "flux_uri" and not isinstance(value, str):
            raise ConfigurationError(f"flux_uri must be a text as FLUX_URI has it, not {value!r}")
        elif name in _FLAGS:
            checked[name] = _flag(name, value)
        elif name == "refresh_rate":
            checked[name] = _interval(name, value)
        elif name == "restart_limit":
            checked[name] = _natural(name, value)
        elif name == "init_function" and not callable(value):
            raise ConfigurationError(f"init_function must be callable, not {value!r}")
        elif name.endswith("_factor"):
            checked[name] = _factor(name, value)
        elif name.endswith("_s"):
            checked[name] = _duration(name, value)
        elif name in _CHOICES and value not in _CHOICES[name]:
            raise ConfigurationError(
                f"{name} must be one of {', '.join(_CHOICES[name])}, not {value!r}"
            )
    return checked


def _count(name: str, value: Any) -> int:
    try:
        return count(value)
    except ValueError as error:
        raise ConfigurationError(f"{name} {error}, not {value!r}") from None


def _natural(name: str, value: Any) -> int:
    try:
        return natural(value)
    except ValueError as error:
        raise ConfigurationError(f"{name} {error}, not {value!r}") from None


def _flag(name: str, value: Any) -> bool:
    try:
        return flag(value)
    except ValueError as error:
        raise ConfigurationError(f"{name} {error}, not {value!r}") from None


def _gpus(name: str, value: Any) -> Declared | None:
    try:
        return declared(value)
    except ValueError as error:
        raise ConfigurationError(f"{name} {error}, not {value!r}") from None


def _factor(name: str, value: Any) -> float:
    try:
        factor = float(value)
    except (TypeError, ValueError):
        factor = 0.0
    if isinstance(value, (bool, str)) or not 1 <= factor < float("inf"):
        raise ConfigurationError(f"{name} must be a number from 1, not {value!r}")
    return factor


def _interval(name: str, value: Any) -> float:
    seconds = _duration(name, value)
    if seconds == 0:
        raise ConfigurationError(f"{name} must be more than 0 seconds, not {value!r}")
    return seconds


def _duration(name: str, value: Any) -> float:
    """Read seconds, or what Dask reads as a time: ``"5s"``, ``"2 min"``."""
    from dask.utils import parse_timedelta

    try:
        seconds = float(parse_timedelta(value))
    except (TypeError, ValueError, KeyError, AttributeError):
        seconds = -1.0
    if isinstance(value, bool) or not 0 <= seconds < float("inf"):
        raise ConfigurationError(f"{name} must be a time such as 5, '5s' or '2m', not {value!r}")
    return seconds


# ---- Dask's configuration --------------------------------------------------------------------

_registered = False


def register_defaults() -> None:
    """Enter our defaults in Dask's configuration, and lay ``batch.yaml`` beside its other files."""
    global _registered
    if _registered:
        return
    import dask
    import yaml

    defaults = yaml.safe_load(_DEFAULTS_FILE.read_text(encoding="utf-8"))
    dask.config.update_defaults(defaults)
    # A home that cannot be written to is no reason to fail: Dask itself looks away, too.
    dask.config.ensure_file(source=str(_DEFAULTS_FILE))
    _registered = True


_jobqueue_reported = False


def _from_jobqueue() -> dict[str, Any]:
    """Return the resources that an existing section of dask-jobqueue stands for."""
    global _jobqueue_reported
    import dask

    section = dask.config.get("jobqueue.slurm", None)
    if not isinstance(section, Mapping):
        return {}
    given = {str(name).replace("_", "-"): value for name, value in section.items()}
    taken = {
        "account": given.get("account") or given.get("project"),
        "partition": given.get("queue"),
        "python": given.get("python"),
        "job_script_prologue": _prologue(
            given.get("job-script-prologue") or given.get("env-extra")
        ),
    }
    resources = {name: value for name, value in taken.items() if value}
    if resources and not _jobqueue_reported:
        _jobqueue_reported = True
        logger.info(
            "defaults taken from jobqueue.slurm in Dask's configuration: %s", ", ".join(resources)
        )
    return resources


def _prologue(value: Any) -> tuple[str, ...] | None:
    if not value:
        return None
    try:
        return lines(value)
    except ValueError as error:
        raise ConfigurationError(f"jobqueue.slurm.job-script-prologue {error}") from None
