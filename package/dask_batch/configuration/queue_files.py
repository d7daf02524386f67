"""Configuration directories are read here: see :mod:`.queues` for what they hold."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from dask_batch.backends.command import run
from dask_batch.configuration.queues import Queue, Queues, variables_of
from dask_batch.errors import BackendUnavailableError, CommandError, ConfigurationError

__all__ = ["read_queues"]

logger = logging.getLogger(__name__)

_BACKENDS: Final[Mapping[str, str]] = {
    "FLUX": "flux",
    "LSF": "lsf",
    "MOAB": "moab",
    "PBS": "pbs",
    "PBSPRO": "pbs",
    "SGE": "sge",
    "SLURM": "slurm",
    "TORQUE": "torque",
    "UGE": "sge",
}
_REFUSED: Final[Mapping[str, str]] = {
    "REMOTE": "jobs and clients meet in the cache directory, which a client on another machine "
    "does not share: run the client on a login node of that cluster, with the configuration that "
    "it has there",
    "GENT": "jobs are followed on one cluster only: use queue_type: SLURM for the one that you "
    "are on",
}
_LIMITS: Final = ("cores_min", "cores_max", "run_time_max", "memory_max")
_UNITS: Final = {"b": 2.0**-30, "k": 2.0**-20, "m": 2.0**-10, "g": 1.0, "t": 2.0**10}
_VERSION_TIMEOUT_S = 20.0
_said: set[str] = set()
"""What was warned of, which is enough for a process."""


def read_queues(directory: str | Path) -> Queues:
    """Read a configuration directory.

    Parameters
    ----------
    directory
        Where ``queue.yaml`` or ``clusters.yaml`` is.

    Raises
    ------
    ConfigurationError
        There is none, or it makes no sense; names the file and the entry.
    """
    folder = Path(directory).expanduser().absolute()
    path = folder / "queue.yaml"
    if not path.is_file():
        path = _primary_cluster(folder)
    content = _mapping(path, _load(path), "the file")
    kind = str(content.get("queue_type", "")).upper()
    if kind in _REFUSED:
        raise ConfigurationError(f"{path}: queue_type {kind} cannot be met here: {_REFUSED[kind]}")
    if kind not in _BACKENDS:
        raise ConfigurationError(
            f"{path}: unknown queue_type {content.get('queue_type')!r}. Known are: "
            f"{', '.join(_BACKENDS)}."
        )
    entries = _mapping(path, content.get("queues"), "queues")
    if not entries:
        raise ConfigurationError(f"{path}: it names no queues")
    queues = {str(name): _queue(path, str(name), entry) for name, entry in entries.items()}
    if _BACKENDS[kind] == "flux":
        queues = {name: _without_template(path, queue, entries) for name, queue in queues.items()}
    primary = str(content.get("queue_primary") or next(iter(queues)))
    if primary not in queues:
        raise ConfigurationError(
            f"{path}: queue_primary is {primary!r}, which is not among the queues: "
            f"{', '.join(queues)}"
        )
    return Queues(path, _flavour(_BACKENDS[kind]), primary, queues)


def _primary_cluster(folder: Path) -> Path:
    path = folder / "clusters.yaml"
    if not path.is_file():
        raise ConfigurationError(
            f"pysqa_config_directory: {folder} has neither a queue.yaml nor a clusters.yaml"
        )
    content = _mapping(path, _load(path), "the file")
    clusters = _mapping(path, content.get("cluster"), "cluster")
    primary = content.get("cluster_primary")
    if primary not in clusters:
        raise ConfigurationError(
            f"{path}: cluster_primary is {primary!r}, which is not among the clusters: "
            f"{', '.join(map(str, clusters))}"
        )
    return folder / str(clusters[primary])


def _load(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def _mapping(path: Path, value: Any, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{path}: {what} must be a mapping, not {value!r}")
    return value


def _queue(path: Path, name: str, entry: Any) -> Queue:
    said = _mapping(path, entry, f"the queue {name!r}")
    limits = {limit: _limit(path, name, limit, said.get(limit)) for limit in _LIMITS}
    return Queue(name, _template(path, name, said.get("script")), **limits)


def _limit(path: Path, name: str, limit: str, value: Any) -> Any:
    """Read a limit: a number; memory also with a unit, megabytes being meant without one."""
    if value is None:
        return None
    if limit == "memory_max" and isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+)\s*([bkmgt]?)b?\s*", value.lower())
        if match:
            return int(match[1]) * _UNITS[match[2] or "m"]
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
        return value
    raise ConfigurationError(f"{path}: the queue {name!r} has {limit}: {value!r}: not a number")


def _template(path: Path, name: str, script: Any) -> str | None:
    """Read the template of a queue; without one, the built-in template is used."""
    if script is None:
        return None
    file = path.parent / str(script)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{path}: the script of the queue {name!r} cannot be read: {error}"
        ) from error
    if not text.strip():
        raise ConfigurationError(f"{file} is empty: the template of the queue {name!r}")
    try:
        variables_of(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}: {error}") from error
    return text


def _without_template(path: Path, queue: Queue, entries: Mapping[Any, Any]) -> Queue:
    """Leave out the template of a queue of Flux, which takes no scripts; say so once."""
    if queue.template is None:
        return queue
    scripts = {str(name): entry["script"] for name, entry in entries.items() if "script" in entry}
    message = (
        f"{path}: the script of the queue {queue.name!r} ({scripts[queue.name]}) is not used: jobs "
        "are handed to Flux without one; what it sets up belongs into job_script_prologue, what it "
        "asks for into resource_dict"
    )
    if message not in _said:
        _said.add(message)
        logger.warning(message)
    return replace(queue, template=None)


def _flavour(backend: str, ask: Callable[..., Any] = run) -> str:
    """Tell PBS from Torque, whose commands have the same names: TORQUE stands for both."""
    if backend != "torque":
        return backend
    try:
        done = ask(["qstat", "--version"], timeout_s=_VERSION_TIMEOUT_S)
    except (BackendUnavailableError, CommandError) as error:
        logger.debug("qstat does not tell its version: %s", error)
        return backend
    if re.search(r"pbs_?version|pbspro|openpbs", done.stdout + done.stderr, re.IGNORECASE):
        logger.info("queue_type TORQUE: the commands here are those of PBS")
        return "pbs"
    return backend
