"""How many no-op tasks a second the local queue runs, and what a floor beneath it costs.

    python ci/bench/local_queue.py [tasks]

The floor forks as many processes that do what a job cannot do without: a file of a few bytes is
written, forced to the disk, and linked to its name. A task also hashes, pickles, records its start
and writes HDF5; the ratio says what that costs. The queue runs as many at a time as there are CPUs,
and so does the floor.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import dask
import h5py  # noqa: F401 - the floor forks from a process as large as a worker's parent
import numpy as np  # noqa: F401

from dask_batch import cluster_get

ROUNDS = 3


def identity(i: int) -> int:
    return i


def task_rate(tasks: int, cache: Path) -> float:
    """Run a graph of no-op tasks; return tasks a second."""
    lazy = [dask.delayed(identity)(i) for i in range(tasks)]
    began = time.perf_counter()
    dask.compute(*lazy, scheduler=cluster_get, backend="local", cache_directory=cache)
    return tasks / (time.perf_counter() - began)


def publish(folder: Path, i: int) -> None:
    private = folder / f".{i}"
    descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(descriptor, b"result")
    os.fsync(descriptor)
    os.close(descriptor)
    os.link(private, folder / str(i))
    os.unlink(private)
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def floor_rate(tasks: int, folder: Path) -> float:
    """Fork a process for each task, as many at a time as there are CPUs."""
    folder.mkdir()
    slots = len(os.sched_getaffinity(0))
    running = 0
    began = time.perf_counter()
    for i in range(tasks):
        if running == slots:
            os.wait()
            running -= 1
        if os.fork() == 0:
            publish(folder, i)
            os._exit(0)
        running += 1
    while running:
        os.wait()
        running -= 1
    return tasks / (time.perf_counter() - began)


def main() -> None:
    tasks = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    ours, floors = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task_rate(1, folder / "warm")
        for number in range(ROUNDS):
            ours.append(task_rate(tasks, folder / f"cache{number}"))
            floors.append(floor_rate(tasks, folder / f"floor{number}"))
    ratio = statistics.median(f / o for o, f in zip(ours, floors, strict=True))
    print(f"local queue   {statistics.median(ours):7.0f} no-op tasks/s (median of {ROUNDS})")
    print(f"floor         {statistics.median(floors):7.0f} forks with a durable file/s")
    print(f"a task costs  {ratio:7.1f} times the floor")


if __name__ == "__main__":
    main()
