"""Configuration directories as pysqa has them: a template and limits for each queue of a site.

``queue.yaml`` names the type of the batch system and its queues; each queue has a template, a
file beside it, and limits. ``clusters.yaml`` names several such files, of which the primary one is
read::

    queue_type: SGE
    queue_primary: small
    queues:
      small: {cores_max: 40, cores_min: 1, run_time_max: 604800, script: small.sh}

A queue is chosen by ``resource_dict={"queue": ...}``. What it does not allow is an error that
names the limit: nothing is cut down to it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from dask_batch.backends.command import run
from dask_batch.errors import (
    BackendUnavailableError,
    CommandError,
    ConfigurationError,
    ResourceError,
)

__all__ = ["Queue", "Queues", "backend_of", "read_queues"]

logger = logging.getLogger(__name__)

QUEUE: Final = "queue"
"""The key of ``resource_dict`` that chooses one."""

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


class NormalForm(Protocol):
    """What brings resources to their normal form, at one of the doors."""

    def __call__(
        self, mapping: Mapping[str, Any], /, *, template_variables: frozenset[str]
    ) -> dict[str, Any]:
        """Return the resources in normal form."""


@dataclass(frozen=True, slots=True)
class Queue:
    """One queue: its template and its limits; None where it has none."""

    name: str
    template: str | None = None
    cores_min: int | None = None
    cores_max: int | None = None
    run_time_max: float | None = None
    """Seconds."""
    memory_max: float | None = None
    """Gigabytes."""

    def check(self, normal: Mapping[str, Any], where: Path) -> None:
        """Compare resources in normal form with the limits.

        Raises
        ------
        ResourceError
            Names the limit.
        """
        cores = normal["cores"] * normal["threads_per_core"]
        for what, asked, limit, bad in (
            ("cores", cores, "cores_min", self.cores_min is not None and cores < self.cores_min),
            ("cores", cores, "cores_max", _above(cores, self.cores_max)),
            *(
                (name, normal.get(name), name, _above(normal.get(name), getattr(self, name)))
                for name in ("run_time_max", "memory_max")
            ),
        ):
            if bad:
                raise ResourceError(
                    f"resource {what!r}: {asked} is asked for, but the queue {self.name!r} in "
                    f"{where} has {limit}: {getattr(self, limit)}. Ask for something else, or "
                    "choose another queue: resource_dict={'queue': ...}"
                )

    def within(self, normal: Mapping[str, Any]) -> dict[str, Any]:
        """Keep the time of several tasks in one job within the limit of each of them."""
        time = normal.get("run_time_max")
        if _above(time, self.run_time_max):
            return {**normal, "run_time_max": self.run_time_max}
        return dict(normal)


def _above(asked: float | None, limit: float | None) -> bool:
    return asked is not None and limit is not None and asked > limit


@dataclass(frozen=True, slots=True)
class Queues:
    """What a configuration directory says.

    Attributes
    ----------
    path
        The file.
    backend
        The backend that its ``queue_type`` stands for.
    primary
        The queue that is taken when none is chosen.
    queues
        By name.
    """

    path: Path
    backend: str
    primary: str
    queues: Mapping[str, Queue]

    def resources(self, asked: Mapping[str, Any], normal_form: NormalForm) -> dict[str, Any]:
        """Return the resources of one task in normal form, with the template of its queue.

        Raises
        ------
        ResourceError
            There is no such queue, it does not allow what is asked for, or the resources are
            wrong by themselves.
        """
        queue = self._queue(asked.get(QUEUE))
        whole = {**asked, QUEUE: queue.name}
        if queue.template is not None and not whole.get("submission_template"):
            whole["submission_template"] = queue.template
        template = whole.get("submission_template")
        printed = _variables(template) if isinstance(template, str) else frozenset()
        normal = normal_form(whole, template_variables=printed | {QUEUE})
        queue.check(normal, self.path)
        return normal

    def within(self, normal: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what one job for several tasks needs within the limits of their queue."""
        return self._queue(normal.get(QUEUE)).within(normal)

    def _queue(self, name: Any) -> Queue:
        queue = self.queues.get(self.primary if name is None else name)
        if queue is None:
            raise ResourceError(
                f"resource 'queue': {self.path} has no queue {name!r}. There are: "
                f"{', '.join(self.queues)}."
            )
        return queue


_ANY: Final = frozenset({None, "pysqa", "slurm", "flux"})
"""Names that leave the choice to a configuration: executorlib's users give it to the executors for
Slurm and Flux, whatever batch system it is for."""


def backend_of(name: str | None, queues: Queues | None) -> str | None:
    """Return the backend to use where one was named, or a configuration was.

    Raises
    ------
    ConfigurationError
        They contradict each other.
    """
    if queues is None:
        if name == "pysqa":
            raise ConfigurationError(
                "backend='pysqa' needs a configuration: pysqa_config_directory=..."
            )
        return name
    if name not in _ANY and name != queues.backend:
        raise ConfigurationError(
            f"backend={name!r} was asked for, but {queues.path} is for {queues.backend!r}; "
            "leave backend out"
        )
    if name in ("slurm", "flux") and name != queues.backend:
        logger.info("backend %r, as %s says, and not %r", queues.backend, queues.path, name)
    return queues.backend


# ---- reading ---------------------------------------------------------------------------------


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
        _variables(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}: {error}") from error
    return text


def _variables(template: str) -> frozenset[str]:
    from dask_batch.backends.templating import template_variables  # and Jinja2: few need it

    return template_variables(template)


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
