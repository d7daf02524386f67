"""What may be asked for: the known keys of ``resource_dict``, checked, merged, brought to a form.

A *resource* says what a job needs and where it runs; a *task option* says how the task is kept
and repeated. Users write both into one dictionary (or one annotation); the two doors take them
apart: :func:`for_dask_task` and :func:`for_executor_call` return the resources in normal form,
:func:`task_options` the rest.

Merging comes first, the door second: ``merge_resources(configuration, executor, compute, rule,
annotation)``. No function here changes the dictionaries it is given.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from dask_batch.configuration import resource_values as values
from dask_batch.errors import ResourceError

__all__ = [
    "KNOWN",
    "Key",
    "TaskOptions",
    "asked_for",
    "can_chain",
    "chain_resources",
    "check_resources",
    "for_dask_task",
    "for_executor_call",
    "merge_resources",
    "retry_policy",
    "task_options",
]


@dataclass(frozen=True, slots=True)
class Key:
    """One key of ``resource_dict``."""

    name: str
    scope: Literal["resource", "task"]
    check: values.Check
    unit: str
    meaning: str
    default: Any = None


def _resource(name: str, check: values.Check, unit: str, meaning: str, default: Any = None) -> Key:
    return Key(name, "resource", check, unit, meaning, default)


def _option(name: str, check: values.Check, meaning: str, default: Any = None) -> Key:
    return Key(name, "task", check, "", meaning, default)


KNOWN: Final[Mapping[str, Key]] = {
    key.name: key
    for key in (
        _resource("cores", values.count, "", "executor: MPI ranks; Dask: CPUs of one process", 1),
        _resource("threads_per_core", values.count, "CPUs", "CPUs of each rank", 1),
        _resource("gpus_per_core", values.natural, "GPUs", "GPUs of each rank", 0),
        _resource("gpu_request", values.gpu_request, "", "option of sbatch that asks for GPUs"),
        _resource("memory_max", values.gigabytes, "GB", "memory of the job on a node"),
        _resource("run_time_max", values.seconds, "s", "time limit"),
        _resource("partition", values.word, "", "partition (queue)"),
        _resource("account", values.word, "", "account that is charged"),
        _resource("qos", values.word, "", "quality of service"),
        _resource("constraint", values.features, "", "node features, in the batch system's syntax"),
        _resource("reservation", values.word, "", "reservation to run in"),
        _resource("num_nodes", values.count, "nodes", "number of nodes"),
        _resource("exclusive", values.flag, "", "whole nodes, shared with no other job"),
        _resource("priority", values.integer, "", "the larger the sooner, relative to your jobs"),
        _resource("job_name", values.line, "", "what job names start with"),
        _resource("cwd", values.directory, "", "directory in which the function runs"),
        _resource("python", values.command, "", "interpreter of the job"),
        _resource("job_script_prologue", values.lines, "", "shell lines before the function"),
        _resource("job_extra_directives", values.directives, "", "further #SBATCH options"),
        _resource("slurm_cmd_args", values.arguments, "", "further arguments of sbatch"),
        _resource("error_log_file", values.path, "", "file to which errors are appended as well"),
        _resource("submission_template", values.text, "", "Jinja2 text of the job script"),
        _resource("pmi_mode", values.word, "", "how MPI ranks find each other: pmix, pmi2, ..."),
        _resource("flux_executor_nesting", values.flag, "", "an instance of Flux for each job"),
        _resource("openmpi_oversubscribe", values.flag, "", "more MPI ranks than CPUs"),
        _option("ranks", values.count, "MPI ranks of a Dask task"),
        _option("cache", values.flag, "whether the result may be reused", True),
        _option("version", values.version, "enters the key: change it to run again"),
        _option("cache_key", values.entry_name, "name of the entry in the cache"),
        _option("cache_directory", values.directory, "cache for this task"),
        _option("refresh", values.flag, "run again although there is a result", False),
        _option("retries", values.natural, "how often to repeat what failed", 0),
        _option("retry_exceptions", values.exceptions, "which exceptions to repeat as well", False),
    )
}
"""Every key that is known, in the order in which errors and the documentation list them."""

_RESOURCES = tuple(key.name for key in KNOWN.values() if key.scope == "resource")

_FOREIGN: Final[Mapping[str, str]] = {
    "cpus": "cores",
    "cpus_per_task": "threads_per_core",
    "gpu": "gpus_per_core",
    "gpus": "gpus_per_core",
    "gres": "gpus_per_core",
    "mem": "memory_max",
    "memory": "memory_max",
    "nodes": "num_nodes",
    "project": "account",
    "queue": "partition",
    "time": "run_time_max",
    "timeout": "run_time_max",
    "walltime": "run_time_max",
}
"""What other systems call our keys."""


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How a task is kept and repeated; see :data:`KNOWN` for the meaning of each field."""

    ranks: int = 1
    cache: bool = True
    version: str | None = None
    cache_key: str | None = None
    cache_directory: str | None = None
    refresh: bool = False
    retries: int = 0
    retry_exceptions: bool | tuple[str, ...] = False


def check_resources(
    mapping: Mapping[str, Any], *, template_variables: Collection[str] = frozenset()
) -> dict[str, Any]:
    """Check what a user asked for.

    Parameters
    ----------
    mapping
        Resources and task options. None stands for "not set" and is left as it is.
    template_variables
        Names that the submission template uses: a key among them needs not be known.

    Returns
    -------
    dict
        A new dictionary with the same keys; numbers are Python's own.

    Raises
    ------
    ResourceError
        A key is unknown, or a value has the wrong type or is out of range.
    """
    checked: dict[str, Any] = {}
    for name, value in mapping.items():
        known = KNOWN.get(name)
        if known is None and name not in template_variables:
            raise ResourceError(_unknown(name))
        if value is None:
            checked[name] = None
            continue
        check = values.printable if known is None else known.check
        try:
            checked[name] = check(value)
        except ValueError as error:
            raise ResourceError(f"resource {name!r}: {error}, not {_shown(value)}") from None
    return checked


def _unknown(name: object) -> str:
    text = str(name)
    nearest = _FOREIGN.get(text.lower()) or next(
        iter(difflib.get_close_matches(text.lower(), KNOWN, n=1, cutoff=0.6)), None
    )
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    if text == "queue":
        hint += (
            " A queue is chosen by that name where pysqa_config_directory=... tells which there "
            "are; it was not given."
        )
    return (
        f"unknown resource {name!r}.{hint} Known are: {', '.join(KNOWN)}. "
        "Any further key must be used by the submission template ({{ key }})."
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def asked_for(resource_dict: Any) -> Mapping[str, Any]:
    """Return what a call asks for: nothing, or a mapping.

    Raises
    ------
    ResourceError
        It is neither.
    """
    if resource_dict is None:
        return {}
    if not isinstance(resource_dict, Mapping):
        raise ResourceError(
            f"resource_dict must be a mapping such as {{'cores': 2}}, not {resource_dict!r}"
        )
    return resource_dict


def merge_resources(*layers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Merge layers; later ones win, and None takes back what an earlier one set.

    Raises
    ------
    ResourceError
        One of them is no mapping.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(asked_for(layer))
    return {name: value for name, value in merged.items() if value is not None}


def for_dask_task(
    mapping: Mapping[str, Any], *, template_variables: Collection[str] = frozenset()
) -> dict[str, Any]:
    """Bring the resources of a Dask task to normal form.

    A task of a graph is one call: ``cores=N`` is N CPUs of one process. With ``ranks=N`` it runs as
    N MPI ranks of so many CPUs each, and its value is the list of what each rank returned.

    Returns
    -------
    dict
        Every known resource is present, None when unset; ``cores`` is the number of ranks and
        ``threads_per_core`` the CPUs of each. Keys for the user's template follow.

    Raises
    ------
    ResourceError
        As :func:`check_resources`.
    """
    checked = check_resources(mapping, template_variables=template_variables)
    if checked.get("cache_directory") is not None:
        raise ResourceError(
            f"resource 'cache_directory' ({checked['cache_directory']}): the tasks of a graph are "
            "in one cache; it is an option of the executor, or of cluster_get"
        )
    cpus = (checked.get("cores") or 1) * (checked.get("threads_per_core") or 1)
    return _normal_form(checked, ranks=checked.get("ranks") or 1, cpus=cpus)


def for_executor_call(
    mapping: Mapping[str, Any], *, template_variables: Collection[str] = frozenset()
) -> dict[str, Any]:
    """Bring the resources of ``executor.submit`` to normal form: ``cores=N`` is N MPI ranks.

    Returns as :func:`for_dask_task`.

    Raises
    ------
    ResourceError
        As :func:`check_resources`; or ``cores`` and ``ranks`` ask for different numbers of ranks.
    """
    checked = check_resources(mapping, template_variables=template_variables)
    asked = {checked[name] for name in ("cores", "ranks") if checked.get(name) is not None}
    if len(asked) > 1:
        raise ResourceError(
            f"cores={checked['cores']} and ranks={checked['ranks']}: at an executor both are the "
            "number of MPI ranks; threads_per_core is the number of CPUs of each"
        )
    return _normal_form(
        checked, ranks=next(iter(asked), 1), cpus=checked.get("threads_per_core") or 1
    )


def _normal_form(checked: Mapping[str, Any], *, ranks: int, cpus: int) -> dict[str, Any]:
    normal = {name: checked.get(name) for name in _RESOURCES}
    normal.update({name: value for name, value in checked.items() if name not in KNOWN})
    normal["cores"] = ranks
    normal["threads_per_core"] = cpus
    return normal


def retry_policy(
    options: Iterable[TaskOptions], *, memory_factor: float, time_factor: float, restarts: int = 0
) -> dict[str, Any]:
    """Return how a job of several tasks is repeated, as JSON data: the most generous way.

    ``restarts`` is how often a worker is replaced that has died: so often it gets its task again.
    """
    chain = tuple(options)
    named = [one.retry_exceptions for one in chain]
    exceptions = sorted({name for names in named if not isinstance(names, bool) for name in names})
    return {
        "retries": max((one.retries for one in chain), default=0),
        **({"deaths": restarts} if restarts else {}),
        "exceptions": True if True in named else exceptions or False,
        "memory_factor": memory_factor,
        "time_factor": time_factor,
    }


def task_options(mapping: Mapping[str, Any]) -> TaskOptions:
    """Return the task options among what a user asked for.

    Raises
    ------
    ResourceError
        One of them has the wrong type or is out of range.
    """
    chosen = {
        name: value
        for name, value in mapping.items()
        if name in KNOWN and KNOWN[name].scope == "task" and value is not None
    }
    return TaskOptions(**check_resources(chosen))


_COMBINED = frozenset({"threads_per_core", "memory_max", "run_time_max", "job_name"})


def can_chain(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether one job can stand for two tasks that run one after the other (normal form).

    CPUs, memory and time can be combined, if both ask for them or neither does: what the batch
    system would have given by itself is not known here. All else must be equal. A task of several
    MPI ranks is a job by itself.
    """
    if first["cores"] > 1 or second["cores"] > 1:
        return False  # its ranks are started for it alone
    for name in {*first, *second}:
        one, other = first.get(name), second.get(name)
        if name not in _COMBINED and one != other:
            return False
        if name in ("memory_max", "run_time_max") and (one is None) != (other is None):
            return False
    return True


def chain_resources(chain: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what one job needs that runs several tasks in a row (normal form).

    Memory and CPUs are the largest, time is the sum.

    Raises
    ------
    ResourceError
        Two of them cannot be met by one job (see :func:`can_chain`).
    """
    if not all(can_chain(chain[0], other) for other in chain[1:]):
        raise ResourceError("tasks that ask for different resources cannot be one job")
    combined = dict(chain[-1])
    combined["threads_per_core"] = max(_given(chain, "threads_per_core"), default=1)
    combined["memory_max"] = max(_given(chain, "memory_max"), default=None)
    times = _given(chain, "run_time_max")
    combined["run_time_max"] = sum(times) if times else None
    return combined


def _given(chain: Iterable[Mapping[str, Any]], name: str) -> list[Any]:
    return [item[name] for item in chain if item.get(name) is not None]
