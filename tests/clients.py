"""Client processes for the tests of what outlives them: started, killed, and started again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

PREAMBLE = """
import os, random, sys, time
from pathlib import Path

import dask

from dask_batch import cluster_get

TRACES = Path({traces!r})


def body(name, *parents, seconds=0.0):
    '''Leave a trace, so that bodies can be counted, and return a name made of the parents'.'''
    (TRACES / f"{{name}}.{{os.getpid()}}.{{random.SystemRandom().getrandbits(48):x}}").touch()
    time.sleep(seconds)
    return f"{{name}}({{','.join(parents)}})"


def compute(graph):
    print("computing", flush=True)
    options = {{"backend": {backend!r}, "cache_directory": {cache!r}}}
    print(*dask.compute(graph, scheduler=cluster_get, **options), flush=True)

"""

SEVENTEEN = """
def graph():
    task = dask.delayed(body)
    leaves = [task(f"leaf{i}", seconds=0.1) for i in range(8)]
    pairs = [task(f"pair{i}", leaves[2 * i], leaves[2 * i + 1], seconds=0.1) for i in range(4)]
    fours = [task(f"four{i}", *pairs[2 * i : 2 * i + 2]) for i in range(2)]
    both = task("both", *fours)
    return task("end", task("last", both, both))

if __name__ == "__main__":
    compute(graph())
"""


class Clients:
    """Starts the same client script, any number of times.

    Parameters
    ----------
    folder
        Where the script, the cache and the traces go.
    backend
        Which backend the script computes with.
    script
        What follows the preamble.
    """

    def __init__(self, folder: Path, backend: str, script: str) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.traces = folder / "traces"
        self.traces.mkdir()
        self.script = folder / "client.py"
        preamble = PREAMBLE.format(traces=str(self.traces), backend=backend, cache=str(self.cache))
        self.script.write_text(preamble + script)

    def start(self, **environment: str) -> subprocess.Popen[str]:
        """Start a client, in a session of its own."""
        return subprocess.Popen(
            [sys.executable, str(self.script)],
            cwd=self.folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, **environment: str) -> str:
        """Run a client to its end, and return what it printed last."""
        client = self.start(**environment)
        out, err = client.communicate(timeout=240)
        assert client.returncode == 0, err
        return out.splitlines()[-1]

    def bodies(self) -> Counter[str]:
        """Count how often each body has run."""
        return Counter(path.name.partition(".")[0] for path in self.traces.iterdir())

    def results(self) -> int:
        """Count the results in the cache."""
        return len(list(self.cache.glob("results/*/*.h5")))


def poll(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.02)
