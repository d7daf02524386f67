"""Requests that no node can meet, found before anything is submitted. Pure.

Only what is certain is refused: where a partition's nodes are not known, Slurm decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dask_batch.backends.slurm.options import memory_mb, minutes
from dask_batch.backends.slurm.parse import NodeKind
from dask_batch.errors import ResourceError

__all__ = ["refuse_what_cannot_be"]


def refuse_what_cannot_be(resources: Mapping[str, Any], nodes: Sequence[NodeKind]) -> None:
    """Refuse requests larger than any node of the partition.

    Parameters
    ----------
    resources
        In normal form. A partition may be several, with commas; without one any may be meant (the
        default one, or one that the user's template names).
    nodes
        What ``sinfo`` lists; nothing can be refused of a partition that is not among them.

    Raises
    ------
    ResourceError
        Names the request, the largest that can be met, and where.
    """
    if not nodes:
        return
    asked = set(str(resources.get("partition") or "").split(",")) - {""}
    if asked - {node.partition for node in nodes}:
        return  # hidden, or not there: sbatch knows, and its words are what users look up
    usable = [node for node in nodes if not asked or node.partition in asked]
    where = f"partition {', '.join(sorted(asked))}" if asked else "any partition"
    for name, asked_for, unit, most in _comparisons(resources, usable):
        if asked_for > most:
            raise ResourceError(
                f"resource {name}: {asked_for} {unit} are asked for, but {where} offers a job at "
                f"most {most:.0f}."
            )
    if not any(_fits(node, resources) for node in usable):
        raise ResourceError(
            f"no node of {where} has all that is asked for at once: {_asked(resources)}. "
            "See `sinfo -e -o '%R %c %m %G %l'`."
        )


def _comparisons(
    resources: Mapping[str, Any], nodes: Sequence[NodeKind]
) -> Iterator[tuple[str, int, str, float]]:
    """Yield what is asked for and the most that there is, one resource after the other."""
    cpus = resources["threads_per_core"]
    yield "threads_per_core (or cores)", cpus, "CPUs on one node", max(n.cpus for n in nodes)
    memory, gpus = resources.get("memory_max"), resources.get("gpus_per_core")
    if memory is not None:
        yield "memory_max", memory_mb(memory), "MB on one node", max(n.memory_mb for n in nodes)
    if gpus:
        yield "gpus_per_core", gpus, "GPUs on one node", max(n.gpus for n in nodes)
    if resources.get("run_time_max") is not None:
        time = minutes(resources["run_time_max"])
        yield "run_time_max", time, "minutes", max(n.time_s / 60 for n in nodes)
    sizes: Counter[str] = Counter()
    for node in nodes:
        sizes[node.partition] += node.count
    together: Counter[str] = Counter()
    for node in nodes:
        together[node.partition] += node.count * node.cpus
    yield "cores", resources["cores"] * cpus, "CPUs altogether", max(together.values())
    yield "num_nodes", resources.get("num_nodes") or 1, "nodes", max(sizes.values())


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
