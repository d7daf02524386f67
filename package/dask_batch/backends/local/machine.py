"""What of this machine the queue may use: CPUs by affinity and control group, memory likewise."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Machine", "thread_variables"]

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_NO_LIMIT_BYTES = 2**60
"""What control groups of version 1 report when there is no limit is a huge number near 2**63."""

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


def thread_variables(cpus: int) -> dict[str, str]:
    """Return the environment that bounds the thread pools of numerical libraries."""
    return dict.fromkeys(_THREAD_VARIABLES, str(cpus))


@dataclass(frozen=True, slots=True)
class Machine:
    """CPUs and memory that jobs may use together."""

    cpus: int
    memory_bytes: int

    @classmethod
    def here(cls) -> Machine:
        """Look at this machine, as this process may use it."""
        groups = tuple(_own_control_groups())
        quotas = [quota for group in groups if (quota := _cpu_quota(group)) is not None]
        limits = [limit for group in groups if (limit := _memory_limit(group)) is not None]
        return cls(
            cpus=max(1, min([_affinity(), *(math.floor(quota) for quota in quotas)])),
            memory_bytes=min([psutil.virtual_memory().total, *limits]),
        )


def _affinity() -> int:
    """Return how many CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _own_control_groups() -> Iterator[Path]:
    """Yield the directories of this process's control groups and of all groups above them.

    Inside a container the path that the kernel names may not be mounted; its root then is the
    container's own group, so the mount point itself always counts.
    """
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = [_CONTROL_GROUPS, _CONTROL_GROUPS / "unified"]
        else:
            mounts = [_CONTROL_GROUPS / name for name in {controllers, *controllers.split(",")}]
        for mount in mounts:
            directory = mount / path.lstrip("/")
            yield from (parent for parent in [directory, *directory.parents] if parent >= mount)


def _cpu_quota(group: Path) -> float | None:
    """Return how many CPUs' worth of time a control group may use."""
    unified = _words(group / "cpu.max")
    if len(unified) == 2 and unified[0] != "max":
        return int(unified[0]) / int(unified[1])
    quota, period = _words(group / "cpu.cfs_quota_us"), _words(group / "cpu.cfs_period_us")
    if quota and period and int(quota[0]) > 0:
        return int(quota[0]) / int(period[0])
    return None


def _memory_limit(group: Path) -> int | None:
    """Return how many bytes a control group may use."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        words = _words(group / name)
        if words and words[0] != "max" and int(words[0]) < _NO_LIMIT_BYTES:
            return int(words[0])
    return None


def _words(path: Path) -> list[str]:
    """Return the words of a small file; none if it is not there."""
    try:
        return path.read_text().split()
    except OSError:
        return []
