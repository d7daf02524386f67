"""Client scripts inside an allocation: a job's script that runs what it is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
PATIENCE_S = 240.0

_AGENT = """#!/bin/bash
mkfifo lines; exec 3<>lines; touch ready
while read -r line <&3; do bash -c "$line" & done
"""


def until(condition: Callable[[], Any], what: str) -> Any:
    """Look again and again until a condition holds; return what it returned."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.02)
    return value


@dataclass
class Client:
    """A script that runs in an allocation."""

    folder: Path
    stem: str

    def _read(self, suffix: str) -> str:
        path = self.folder / f"{self.stem}.{suffix}"
        return path.read_text() if path.exists() else ""

    @property
    def pid(self) -> int:
        """Its process id; the node is this machine."""
        return int(until(lambda: self._read("pid"), "the start of a client"))

    @property
    def said(self) -> str:
        """What it has printed."""
        return self._read("out")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal it."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        return int(until(lambda: self._read("rc"), f"the end of a client: {self._read('err')}"))

    def result(self) -> Any:
        """Return what it printed in the end, as JSON."""
        code = self.wait()
        assert code == 0, self._read("err")
        return json.loads(self.said.splitlines()[-1])

    @property
    def errors(self) -> str:
        """What it wrote to stderr."""
        return self._read("err")


class Allocation:
    """An allocation of Slurm, and clients in it.

    Parameters
    ----------
    folder
        Where its script and its clients leave what they write.
    options
        Of ``sbatch``.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self._count = 0
        script = folder / "agent.sh"
        script.write_text(_AGENT)
        argv = ["sbatch", "--parsable", f"--chdir={folder}", "--output=agent.log", "--time=10"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [*argv, *options, str(script)],
            capture_output=True, text=True, check=True, timeout=60, env=environment,
        )  # fmt: skip
        self.job_id = done.stdout.strip()

    def run(self, name: str, *arguments: object, prefix: str = "") -> Client:
        """Run a function of ``step_clients.py`` in the allocation."""
        until((self.folder / "ready").exists, "the start of the allocation")
        self._count += 1
        stem = f"client{self._count}"
        words = " ".join(map(str, arguments))
        command = f"{prefix} {sys.executable} {TESTS}/step_clients.py {name} {words}"
        line = (
            f"{command} >{stem}.out 2>{stem}.err & echo $! >{stem}.pid; wait $!; echo $? >{stem}.rc"
        )
        with (self.folder / "lines").open("w") as lines:
            lines.write(f"{line}\n")
        return Client(self.folder, stem)

    def steps(self) -> dict[str, str]:
        """Return the numbered steps of the allocation by their names, as accounted."""
        argv = ["sacct", "-n", "-P", "-j", self.job_id, "--format=JobID,JobName%80,State"]
        out = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
        rows = (line.split("|") for line in out.splitlines())
        numbered = (row for row in rows if row[0].partition(".")[2].isdecimal())
        return {name: state for _, name, state in numbered}

    def running_steps(self) -> list[str]:
        """Return the names of the numbered steps that run now."""
        argv = ["squeue", "-h", "-s", "-j", self.job_id, "-o", "%i %j"]
        out = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
        rows = (line.split() for line in out.splitlines())
        return [row[1] for row in rows if row[0].rpartition(".")[2].isdecimal()]

    def end(self) -> None:
        """Give it back."""
        subprocess.run(["scancel", self.job_id], check=False, timeout=60)
