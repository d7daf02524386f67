"""PBS, Grid Engine, LSF, Torque or Moab without a cluster, without root and without a daemon."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from dask_batch.errors import ConfigurationError
from dask_batch.testing.fake_batch.queue import opened, over
from dask_batch.testing.on_path import OnPath
from dask_batch.testing.slurm import Call

__all__ = ["FakeBatch"]

COMMANDS: Final = {
    "pbs": ("qalter", "qdel", "qrls", "qselect", "qstat", "qsub"),
    "torque": ("qalter", "qdel", "qrls", "qselect", "qstat", "qsub"),
    "sge": ("qacct", "qalter", "qdel", "qrls", "qstat", "qsub"),
    "lsf": ("bhist", "bjobs", "bkill", "bmod", "bresume", "bsub"),
    "moab": ("mjobctl", "msub", "showq"),
}
_PROGRAM = (
    "import sys; sys.path.insert(0, {here!r}); from fake_batch.command import main; "
    "sys.exit(main({folder!r}, {command!r}, sys.argv[1:]))"
)
_STOP_S = 30.0


class FakeBatch(OnPath):
    """The commands of a batch system, which run jobs as processes on this machine.

    Parameters
    ----------
    directory
        Where its commands and its state are; made, for its owner alone, if it is not there.
    system
        Whose commands: ``"pbs"``, ``"sge"``, ``"lsf"``, ``"torque"`` or ``"moab"``.
    cpus
        At most so many CPUs are in use at once; nothing else is enforced but time limits.
    queues
        The names of the queues, the default one first.
    max_jobs
        How many jobs a user may have in the queue; None: any number.
    second_s
        How long a second of a time limit lasts, so that a test need not wait for a whole one.

    Attributes
    ----------
    directory : Path
        As given, absolute.

    Notes
    -----
    It takes the options and prints the answers that :mod:`dask_batch.backends.commands` uses.
    That of Grid Engine was compared with Grid Engine 8.1.9; the others follow manuals and what
    users have posted. Jobs start in an environment of their own, as they do there. Linux only.

    Examples
    --------
    >>> with FakeBatch("/tmp/fake", "pbs") as pbs:  # doctest: +SKIP
    ...     os.environ.update(pbs.environment())
    ...     cluster_get(graph, keys, backend="pbs")
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        system: str = "pbs",
        *,
        cpus: int = 4,
        queues: Sequence[str] = ("workq",),
        max_jobs: int | None = None,
        second_s: float = 1.0,
    ) -> None:
        if system not in COMMANDS:
            raise ConfigurationError(f"there is no fake of {system!r}; of {', '.join(COMMANDS)}")
        self.directory = Path(directory).absolute()
        self._config: dict[str, Any] = {
            "system": system,
            "cpus": cpus,
            "queues": list(queues),
            "max_jobs": max_jobs,
            "second_s": second_s,
        }

    def start(self) -> None:
        """Write the commands; the ``with`` statement does that."""
        (self.directory / "bin").mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.directory / "config.json").write_text(json.dumps(self._config))
        (self.directory / "faults.json").write_text("[]")
        here = str(Path(__file__).parent)
        for command in COMMANDS[self._config["system"]]:
            program = _PROGRAM.format(here=here, folder=str(self.directory), command=command)
            argv = shlex.join([sys.executable, "-I", "-S", "-c", program])
            path = self.directory / "bin" / command
            path.write_text(f'#!/bin/sh\nexec {argv} "$@"\n')
            path.chmod(0o700)

    def stop(self) -> None:
        """Kill all jobs, and wait until they are gone."""
        deadline = time.monotonic() + _STOP_S
        while True:
            with opened(str(self.directory)) as queue:
                left = [job["id"] for job in queue.jobs.values() if not over(job)]
                for job_id in left:
                    queue.cancel(job_id)
            if not left or time.monotonic() > deadline:
                return
            time.sleep(0.02)

    # ---- looking ---------------------------------------------------------------------------

    def calls(self, command: str | None = None) -> list[Call]:
        """Return the calls of all commands, or of one, in the order in which they began."""
        try:
            lines = (self.directory / "calls.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = (json.loads(line) for line in lines)
        return [
            Call(call["command"], tuple(call["arguments"]), call["time"])
            for call in found
            if command in (None, call["command"])
        ]

    def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs, as the queue knows them: ``id``, ``name``, ``state``, ``status``, ..."""
        with opened(str(self.directory)) as queue:
            return [dict(job) for job in queue.jobs.values()]

    # ---- going wrong -----------------------------------------------------------------------

    def fail(
        self, command: str, text: str, *, code: int = 1, times: int = 1, after: bool = False
    ) -> None:
        """Let the next calls of a command fail.

        Parameters
        ----------
        command
            Which one.
        text, code
            What it says on stderr, and its exit code.
        times
            How many calls.
        after
            Whether it does what it is told first: so does a submission whose answer is lost.
        """
        path = self.directory / "faults.json"
        faults = json.loads(path.read_text())
        fault = {"command": command, "text": text, "code": code, "times": times, "after": after}
        path.write_text(json.dumps([*faults, fault]))

    def forget(self) -> None:
        """Forget all jobs that have ended, as a server does after some time."""
        with opened(str(self.directory)) as queue:
            for job in [job for job in queue.jobs.values() if over(job)]:
                del queue.jobs[job["id"]]
