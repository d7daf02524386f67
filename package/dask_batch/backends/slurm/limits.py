"""Requests that no node can meet, found before anything is submitted. Pure.

Only what is certain is refused: where a partition's nodes are not known, Slurm decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dask_batch.backends.slurm.options import memory_mb, minutes
from dask_batch.backends.slurm.parse import NodeKind
from dask_batch.errors import ResourceError

__all__ = ["refuse_what_cannot_be"]


def refuse_what_cannot_be(resources: Mapping[str, Any], nodes: Sequence[NodeKind]) -> None:
    """Refuse a partition that is not there, and requests larger than any node of it.

    Parameters
    ----------
    resources
        In normal form. A partition may be several, with commas; without one any may be meant (the
        default one, or one that the user's template names).
    nodes
        What ``sinfo`` lists; nothing can be refused if that is nothing.

    Raises
    ------
    ResourceError
        Names the request, the largest that can be met, and where.
    """
    if not nodes:
        return
    asked = set(str(resources.get("partition") or "").split(",")) - {""}
    known = {node.partition for node in nodes}
    if asked - known:
        raise ResourceError(
            f"resource 'partition': there is no partition {', '.join(sorted(asked - known))!r}. "
            f"There are: {', '.join(sorted(known))}."
        )
    usable = [node for node in nodes if not asked or node.partition in asked]
    where = f"partition {', '.join(sorted(asked))}" if asked else "any partition"
    cpus = resources["threads_per_core"]
    _refuse("threads_per_core (or cores)", cpus, "CPUs", [n.cpus for n in usable], where)
    memory = resources.get("memory_max")
    if memory is not None:
        _refuse("memory_max", memory_mb(memory), "MB", [n.memory_mb for n in usable], where)
    gpus = resources.get("gpus_per_core")
    if gpus:
        _refuse("gpus_per_core", gpus, "GPUs", [n.gpus for n in usable], where)
    time_s = resources.get("run_time_max")
    if time_s is not None:
        limits = [n.time_s / 60 for n in usable]
        _refuse("run_time_max", minutes(time_s), "minutes", limits, where)
    if not any(_fits(node, resources) for node in usable):
        raise ResourceError(
            f"no node of {where} has all that is asked for at once: {_asked(resources)}. "
            "See `sinfo -e -o '%R %c %m %G %l'`."
        )


def _refuse(name: str, asked: int, unit: str, limits: Sequence[float], where: str) -> None:
    largest = max(limits)
    if asked > largest:
        raise ResourceError(
            f"resource {name}: {asked} {unit} are asked for, but the most that {where} offers a "
            f"job on one node is {largest:.0f} {unit}."
        )


def _fits(node: NodeKind, resources: Mapping[str, Any]) -> bool:
    memory, time_s = resources.get("memory_max"), resources.get("run_time_max")
    return (
        resources["threads_per_core"] <= node.cpus
        and (memory is None or memory_mb(memory) <= node.memory_mb)
        and (resources.get("gpus_per_core") or 0) <= node.gpus
        and (time_s is None or minutes(time_s) * 60 <= node.time_s)
    )


def _asked(resources: Mapping[str, Any]) -> str:
    names = ("threads_per_core", "memory_max", "gpus_per_core", "run_time_max")
    return ", ".join(f"{name}={resources[name]}" for name in names if resources.get(name))
