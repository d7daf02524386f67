"""Dask's configuration: our section of it, its defaults, and what dask-jobqueue's says.

Our section is ``batch``; ``batch.yaml`` beside this module documents it and holds the defaults. It
is copied, commented out, to where Dask's other files are. An existing section ``jobqueue.slurm``
(of dask-jobqueue) gives defaults for account, partition, prologue and interpreter.
"""

from __future__ import annotations

import difflib
import functools
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from dask_batch.configuration.options import KEYWORDS
from dask_batch.configuration.resource_values import lines
from dask_batch.errors import ConfigurationError

__all__ = [
    "SETTINGS",
    "configured",
    "default",
    "from_jobqueue",
    "mapping",
    "register_defaults",
    "unknown",
]

logger = logging.getLogger(__name__)

_SECTION = "batch"
_DEFAULTS_FILE = Path(__file__).with_name("batch.yaml")
_KEYWORDS_ONLY: Final = frozenset(
    {
        *("block_allocation", "disable_dependencies", "flux_uri", "hostname_localhost"),
        *("init_function", "log_obj_size", "max_cores", "max_workers", "refresh_rate"),
        "restart_limit",
    }
)
"""What is said of one executor, rather than by a site or a user once for all."""


def _setting(keyword: str) -> str:
    """Return what an option is called in the configuration."""
    return keyword.removesuffix("_s").replace("_", "-")


SETTINGS: Final = {
    _setting(keyword): keyword for keyword in KEYWORDS if keyword not in _KEYWORDS_ONLY
}
"""Settings of the section ``batch``, and the keywords they stand for."""


def configured() -> dict[str, Any]:
    """Return our section of Dask's configuration, by keyword."""
    import dask

    register_defaults()
    found: dict[str, Any] = {}
    for name, value in mapping(_SECTION, dask.config.get(_SECTION)).items():
        keyword = SETTINGS.get(str(name).replace("_", "-"))
        if keyword is None:
            known = [f"{_SECTION}.{setting}" for setting in SETTINGS]
            raise ConfigurationError(
                unknown("setting in Dask's configuration:", f"{_SECTION}.{name}", known)
            )
        found[keyword] = value
    return found


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    """Return a mapping; an empty one for None, and an error for anything else."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{name} must be a mapping, not {value!r}")
    return value


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """Return what to say of a name that is not known."""
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {what} {name!r}.{hint} Known are: {', '.join(sorted(known))}."


@functools.cache
def _defaults() -> Mapping[str, Any]:
    import yaml

    return mapping(_SECTION, yaml.safe_load(_DEFAULTS_FILE.read_text(encoding="utf-8"))[_SECTION])


def default(keyword: str) -> Any:
    """Return what ``batch.yaml`` says where nobody has said anything else."""
    return _defaults()[_setting(keyword)]


_registered = False


def register_defaults() -> None:
    """Enter our defaults in Dask's configuration, and lay ``batch.yaml`` beside its other files."""
    global _registered
    if _registered:
        return
    import dask

    dask.config.update_defaults({_SECTION: dict(_defaults())})
    # A home that cannot be written to is no reason to fail: Dask itself looks away, too.
    dask.config.ensure_file(source=str(_DEFAULTS_FILE))
    _registered = True


_jobqueue_reported = False


def from_jobqueue() -> dict[str, Any]:
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
