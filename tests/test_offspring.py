"""Pools of processes inside tasks, by every way in which Python starts processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import dask
from dask_batch import SingleNodeExecutor

import helper

OFFSET = 0
print("the script runs", flush=True)

@dataclass
class Point:
    x: int

def begin(offset):
    global OFFSET
    OFFSET = offset

def shifted(point):
    return Point(helper.twice(point.x) + OFFSET)

def by_pool(method, n):
    with multiprocessing.get_context(method).Pool(2, begin, (100,)) as pool:
        return pool.map(shifted, [Point(i) for i in range(n)])

def by_executor(method, n):
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        return list(pool.map(shifted, [Point(i) for i in range(n)]))

def in_a_chain(method, n):
    return by_executor(method, n), multiprocessing.get_context(method).__class__.__name__

if __name__ == "__main__":
    method = sys.argv[1]
    with SingleNodeExecutor(cache_directory="cache") as exe:
        asked = {"run_time_max": 120}
        pool = exe.submit(by_pool, method, 3, resource_dict=asked)
        executor = exe.submit(by_executor, method, 3, resource_dict=asked)
        # Whatever lies there by now, the tasks' code is that which was handed over.
        with open("helper.py", "w") as file:
            file.write("def twice(x): return -1")
        assert [p.x for p in pool.result(100)] == [100, 102, 104], pool.result()
        assert executor.result(100) == [Point(0), Point(2), Point(4)], executor.result()
        lazy = dask.delayed(in_a_chain)(method, dask.delayed(len)("ab"))
        (points, _), = dask.compute(lazy, scheduler=exe)
        assert points[0] == Point(0), points
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_a_task_find_its_code(tmp_path: Path, method: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "helper.py").write_text(
        textwrap.dedent(
            """
            def twice(x):
                return 2 * x
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-B", "script.py", method],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the script runs\n", "and never in a job"
    logs = [log.read_text() for log in (tmp_path / "cache" / "logs").glob("*/*.out")]
    assert not any("the script runs" in log for log in logs)
