"""What a task costs the client, and whether that stays the same as graphs grow.

    python ci/bench/client.py

A graph of n delayed calls in layers is translated, hashed, planned and pickled, for growing n.
The cost per task of the largest is told as a ratio to that of the smallest: 1 means constant.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import dask

from dask_batch.backends import open_backend
from dask_batch.cache.store import Cache
from dask_batch.configuration.config import resolve
from dask_batch.get import capture
from dask_batch.graph.dask_spec import ingest
from dask_batch.preparing.preparation import Preparer
from dask_batch.preparing.surroundings import Surroundings

SIZES = (500, 2_000, 8_000, 20_000)


def add(*values: int) -> int:
    return sum(values)


def graph(tasks: int) -> object:
    """Return a wide graph: layers of a hundred, each task with two parents."""
    task = dask.delayed(add, pure=False)
    layer = [task(i) for i in range(100)]
    for _ in range(tasks // 100 - 1):
        layer = [task(layer[i], layer[i - 1]) for i in range(100)]
    return task(*layer)


def seconds_per_task(tasks: int, folder: Path) -> float:
    options = resolve(backend="local", cache_directory=folder)
    preparer = Preparer(Cache(folder), open_backend("local"), options)
    dsk, keys = capture([graph(tasks)])
    began = time.perf_counter()
    prepared = preparer.graph(
        ingest(dsk, keys, annotations={"resources": {}}), Surroundings.current({})
    )
    assert len(prepared.jobs) == tasks + 1
    return (time.perf_counter() - began) / tasks


def main() -> None:
    costs = {}
    with tempfile.TemporaryDirectory() as name:
        seconds_per_task(SIZES[0], Path(name) / "warm")
        for tasks in SIZES:
            costs[tasks] = seconds_per_task(tasks, Path(name) / str(tasks))
            print(f"{tasks:7,} tasks: {1e6 * costs[tasks]:6.0f} µs a task")
    print(f"largest / smallest: {costs[SIZES[-1]] / costs[SIZES[0]]:.2f}")


if __name__ == "__main__":
    main()
