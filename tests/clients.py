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
import logging, os, random, sys, time
from pathlib import Path

import dask

from dask_batch import cluster_get

TRACES = Path({traces!r})
logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
logging.getLogger("dask_batch").setLevel(logging.INFO)


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


class Client(subprocess.Popen[str]):
    """A client's process, in a session of its own.

    What it logs goes into a file: that can be read while it is at work, and never fills up as a
    pipe does that nobody reads before the client ends.
    """

    def __init__(
        self, argv: list[str], folder: Path, environment: dict[str, str], stem: str
    ) -> None:
        self.err = folder / f"{stem}.err"
        with open(self.err, "w") as err:
            super().__init__(
                argv,
                cwd=folder,
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                start_new_session=True,
            )

    def communicate(
        self, input: str | None = None, timeout: float | None = None
    ) -> tuple[str, str]:
        """Wait for its end, and return all that it printed."""
        out, _ = super().communicate(input, timeout)
        return out, self.err.read_text()


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
        self.backend = backend
        self.started: list[Client] = []
        self.script = folder / "client.py"
        preamble = PREAMBLE.format(traces=str(self.traces), backend=backend, cache=str(self.cache))
        self.script.write_text(preamble + script)

    def start(self, **environment: str) -> Client:
        """Start a client."""
        argv = [sys.executable, str(self.script)]
        client = Client(argv, self.folder, environment, f"client.{len(self.started)}")
        self.started.append(client)
        return client

    def run(self, **environment: str) -> str:
        """Run a client to its end, and return what it printed last."""
        client = self.start(**environment)
        try:
            out, err = client.communicate(timeout=240)
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"a client does not end\n{self.tell()}") from late
        assert client.returncode == 0, err
        return out.splitlines()[-1]

    def bodies(self) -> Counter[str]:
        """Count how often each body has run."""
        return Counter(path.name.partition(".")[0] for path in self.traces.iterdir())

    def results(self) -> int:
        """Count the results in the cache."""
        return len(list(self.cache.glob("results/*/*.h5")))

    def queued(self) -> list[str]:
        """Return what Slurm says of the jobs of these clients that have not ended."""
        if self.backend != "slurm":
            return []
        rows = _said("squeue", "-h", "-o", "%i|%T|%r|%M|%N|%E|%j|%Z").splitlines()
        return [row for row in rows if row.rpartition("|")[2] == str(self.folder)]

    def tell(self) -> str:
        """Return what may explain that something does not come: jobs, nodes, clients' words."""
        parts = [f"{self.results()} results, {sum(self.bodies().values())} bodies"]
        if self.backend == "slurm":
            parts += ["squeue (id, state, reason, time, nodes, waits for, name, folder):"]
            parts += [*self.queued(), "sinfo:", _said("sinfo", "-h", "-N", "-o", "%N %T %E")]
        for client in self.started:
            words = client.err.read_text()
            parts.append(f"{client.err.name} (exit code {client.poll()}):\n{words[-6000:]}")
        return "\n".join(parts)


def _said(*argv: str) -> str:
    """Return what a command says, or why it says nothing."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{argv[0]}: {error}"
    return done.stdout + done.stderr


def poll(
    condition: Callable[[], bool],
    timeout_s: float,
    what: str,
    tell: Callable[[], str] = lambda: "",
) -> None:
    """Wait for a condition; if it does not come, say what there is instead."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s\n{tell()}")
        time.sleep(0.02)
