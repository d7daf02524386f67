"""Which nodes have room for a job. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .records import JobRecord

__all__ = ["allocate", "free"]


def free(config: Mapping[str, Any], running: Iterable[JobRecord]) -> dict[str, list[int]]:
    """Return, by node, the CPUs and the memory that are free, and the numbers of the free GPUs."""
    nodes = {
        f"n{number + 1}": [config["cpus"], config["memory_mb"], *range(config["gpus"])]
        for number in range(config["nodes"])
    }
    for job in running:
        for name, (cpus, memory, *gpus) in job.allocation.items():
            node = nodes.get(name)
            if node is not None:
                node[0] -= cpus
                node[1] -= memory
                node[2:] = [gpu for gpu in node[2:] if gpu not in gpus]
    return nodes


def allocate(
    job: JobRecord, nodes: Mapping[str, Sequence[int]], config: Mapping[str, Any]
) -> dict[str, list[int]] | None:
    """Return the job's share of each of its nodes, or None while there is no room.

    One node if it fits there and no more are asked for, else the fewest; a task is never split.
    """
    room = {}
    for name, (cpus, memory, *gpus) in nodes.items():
        whole = cpus == config["cpus"] and memory == config["memory_mb"]
        if memory < job.memory_mb or len(gpus) < job.gpus or (job.exclusive and not whole):
            continue
        tasks = cpus // job.cpus_per_task
        if tasks:
            room[name] = tasks
    for count in range(job.nodes, len(room) + 1):
        chosen = sorted(room, key=lambda name: -room[name])[:count] if count > 1 else list(room)
        for start in range(len(chosen) if count == 1 else 1):
            names = chosen[start : start + count]
            if sum(room[name] for name in names) >= job.tasks and len(names) == count:
                return _shares(job, names, room, nodes, config)
    return None


def _shares(
    job: JobRecord,
    names: Sequence[str],
    room: Mapping[str, int],
    nodes: Mapping[str, Sequence[int]],
    config: Mapping[str, Any],
) -> dict[str, list[int]]:
    shares = {}
    left = job.tasks - len(names)
    for name in sorted(names):
        more = max(0, min(left, room[name] - 1))
        left -= more
        cpus = config["cpus"] if job.exclusive else (1 + more) * job.cpus_per_task
        shares[name] = [cpus, job.memory_mb, *nodes[name][2 : 2 + job.gpus]]
    return shares
