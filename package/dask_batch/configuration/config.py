"""Options: what a keyword says, else what Dask's configuration says, else the default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dask_batch.backends.reach import Reach, reach_of
from dask_batch.backends.registry import choose_backend
from dask_batch.configuration import settings
from dask_batch.configuration.foreign_options import without_foreign
from dask_batch.configuration.options import KEYWORDS, Options, checked
from dask_batch.configuration.queue_files import read_queues
from dask_batch.configuration.queues import backend_of
from dask_batch.configuration.resources import merge_resources
from dask_batch.errors import ConfigurationError

__all__ = ["default_cache_directory", "resolve"]

_OF_WORKERS: Final = ("init_function", "restart_limit", "hostname_localhost")


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
            raise ConfigurationError(settings.unknown("option", name, KEYWORDS))
    configured = settings.configured()
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
        settings.from_jobqueue() if chosen["backend"] == "slurm" else {},
        settings.mapping("resource_dict", configured.get("resource_dict")),
        settings.mapping("resource_dict", explicit.get("resource_dict")),
    )
    # Where it stands among the resources it means those of every task: all of them.
    folder = chosen["resource_dict"].pop("cache_directory", chosen["cache_directory"])
    chosen["cache_directory"] = _folder(folder)
    chosen["resource_rules"] = {
        str(pattern): dict(settings.mapping(f"resource_rules[{pattern!r}]", rule))
        for pattern, rule in settings.mapping(
            "resource_rules", chosen.get("resource_rules")
        ).items()
    }
    options = Options(**checked(chosen))
    for name in () if options.block_allocation else _OF_WORKERS:
        # Without workers nobody looks for the client, at 127.0.0.1 or elsewhere. On one machine and
        # in an allocation executorlib takes it all the same, and scripts for macOS say it.
        idle = name == "hostname_localhost" and reach_of(options.backend) is not Reach.CLUSTER
        if getattr(options, name) and not idle:
            raise ConfigurationError(
                f"{name}={getattr(options, name)!r} is for workers that stay: say "
                "block_allocation=True as well"
            )
    return options


def default_cache_directory() -> Path:
    """Return where results are kept if nobody has said where."""
    return _folder(settings.default("cache_directory"))


_RESOURCES: Final = ("pmi_mode", "openmpi_oversubscribe", "flux_executor_nesting")
"""Resources that executorlib's users know as parameters of an executor."""


def _with_resources(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Put parameters that are resources of every task among the resources."""
    rest = {name: value for name, value in keywords.items() if name not in _RESOURCES}
    given = {name: keywords[name] for name in _RESOURCES if keywords.get(name) not in (None, False)}
    if given:
        rest["resource_dict"] = {
            **given,
            **settings.mapping("resource_dict", rest.get("resource_dict")),
        }
    return rest


def _folder(value: Any) -> Path:
    """Make a path absolute: a later change of directory must not move the cache."""
    try:
        path = Path(value).expanduser()
    except (TypeError, RuntimeError) as error:
        raise ConfigurationError(f"cache_directory must be a path, not {value!r}") from error
    if not str(value):
        raise ConfigurationError("cache_directory is empty: name a directory ('.' is this one)")
    if not str(path).isprintable():
        raise ConfigurationError(f"cache_directory has control characters in it: {value!r}")
    try:
        return path.absolute()
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"cache_directory {value!r} is relative to the working directory, which is not there "
            "any more: give a whole path, or change to another directory (os.chdir)"
        ) from error
