"""A Slurm without a cluster, without root and without a daemon of its own account.

:class:`FakeSlurm` puts real executables on PATH, which submit, list, cancel and run real processes
on this machine, and which go wrong on request: they lag, refuse, hang, fail, forget.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask_batch.errors import BackendUnavailableError
from dask_batch.testing.fake_slurm import faults
from dask_batch.testing.fake_slurm.command import ask
from dask_batch.testing.incidents import Incidents
from dask_batch.testing.on_path import OnPath

__all__ = ["Call", "FakeSlurm"]

COMMANDS = ("sacct", "sbatch", "scancel", "scontrol", "sinfo", "squeue")
START_S = 30.0

_HERE = Path(__file__).parent
_PROGRAM = "import sys; sys.path.insert(0, {path!r}); from fake_slurm.{module} import main; {call}"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a command."""

    command: str
    arguments: tuple[str, ...]
    time: float
    """Seconds since the epoch."""


class FakeSlurm(Incidents, OnPath):
    """Slurm's commands, and one process behind them that runs jobs on this machine.

    Parameters
    ----------
    directory
        Where its commands, its state and the accounts are; made, for its owner alone, if it is not
        there. What an earlier fake left there (jobs, accounts, the next id) is taken up again.
    cpus, memory_mb, gpus
        What each node has. Nothing is enforced but the numbers: at most so many jobs run at once.
    nodes
        How many nodes there are.
    partitions
        Time limits in minutes by partition; the first is the default one.
    accounts
        Which accounts there are, the first by default; none: any is right.
    min_job_age_s
        So long after its end a job is known to ``squeue`` and ``scontrol``.
    accounting
        Whether there is any: without it ``sacct`` says so and fails.
    minute_s
        How long a minute of a time limit lasts, so that a test need not wait for a whole one.
    kill_wait_s
        After so long SIGKILL follows a SIGTERM.
    requeue_wait_s
        So long a job that was put back to the queue waits, unless its start time is updated.
    message_timeout_s
        So long a command waits for a controller that is down.
    version
        Which Slurm it speaks as, where versions differ in what matters here.

    Attributes
    ----------
    directory : Path
        As given, absolute.

    Notes
    -----
    It behaves, in states, exit codes, formats and words, as Slurm 22.05.8, 24.11.5, 25.05.8 and
    26.05.5 were measured to; the suite ``tests/test_slurm_contract.py`` runs against both. It has
    no job arrays, no ``aftercorr`` and ``singleton``, no steps (``srun``), no federations, no QOS,
    and one user. It does not enforce memory (see :meth:`out_of_memory`), and a process of a job
    that starts a session of its own and is orphaned escapes. Linux only.

    Examples
    --------
    >>> with FakeSlurm("/tmp/fake") as slurm:  # doctest: +SKIP
    ...     os.environ.update(slurm.environment())
    ...     slurm.fail("squeue", share=0.5, seed=1)
    ...     cluster_get(graph, keys, backend="slurm")
    ...     len(slurm.calls("squeue"))
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        cpus: int = 4,
        nodes: int = 1,
        memory_mb: int = 16000,
        gpus: int = 0,
        partitions: Mapping[str, int] | None = None,
        accounts: Sequence[str] = (),
        min_job_age_s: float = 300.0,
        accounting: bool = True,
        minute_s: float = 60.0,
        kill_wait_s: float = 1.0,
        requeue_wait_s: float = 2.0,
        message_timeout_s: float = 1.0,
        version: str = "22.05.8",
    ) -> None:
        self.directory = Path(directory).absolute()
        self._config: dict[str, Any] = {
            "accounting": accounting,
            "accounts": list(accounts),
            "cpus": cpus,
            "gpus": gpus,
            "kill_wait_s": kill_wait_s,
            "memory_mb": memory_mb,
            "message_timeout_s": message_timeout_s,
            "min_job_age_s": min_job_age_s,
            "minute_s": minute_s,
            "nodes": nodes,
            "partitions": dict(partitions or {"debug": 30, "long": 7 * 24 * 60}),
            "requeue_wait_s": requeue_wait_s,
            "retry_s": 0.2,
            "version": version,
        }
        self._controller: subprocess.Popen[str] | None = None

    # -- being there ----------------------------------------------------------------------------

    def start(self) -> None:
        """Write the commands and start the controller; the ``with`` statement does both."""
        folder = self.directory
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "bin").mkdir(mode=0o700, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self._config))
        for command in COMMANDS:
            call = f"sys.exit(main({str(folder)!r}, {command!r}, sys.argv[1:]))"
            path = folder / "bin" / command
            path.write_text(f'#!/bin/sh\nexec {self._python("command", call)} "$@"\n')
            path.chmod(0o700)
        self.up()

    def stop(self) -> None:
        """Kill all jobs and end the controller."""
        if self._controller is not None:
            self._tell("kill-all")
            self.down()

    def up(self) -> None:
        """Start the controller, with the state that the one before it saved."""
        if self._controller is not None:
            return
        argv = self._python("controller", f"main({str(self.directory)!r})")
        with open(self.directory / "controller.log", "ab") as log:
            controller = subprocess.Popen(
                shlex.split(argv),
                stdin=subprocess.PIPE,  # at whose end it sees that this process has gone
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert controller.stdout is not None  # it was asked for
        if controller.stdout.readline() != "ready\n":
            controller.kill()
            controller.wait()
            words = (self.directory / "controller.log").read_text()
            raise BackendUnavailableError(f"the fake Slurm did not start: {words}")
        self._controller = controller

    def down(self, *, kill: bool = False) -> None:
        """Stop the controller; jobs that run go on, and ``sacct`` answers still.

        Parameters
        ----------
        kill
            As by SIGKILL: what it had not saved yet is lost. That is a quarter of a second's
            news at most; :meth:`lose` is a loss for certain.
        """
        controller, self._controller = self._controller, None
        if controller is None:
            return
        controller.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        controller.wait(START_S)
        for stream in (controller.stdin, controller.stdout):
            if stream is not None:
                stream.close()

    @staticmethod
    def _python(module: str, call: str) -> str:
        """Return the shell's words for a program that has nothing but the standard library."""
        program = _PROGRAM.format(path=str(_HERE), module=module, call=call)
        return shlex.join([sys.executable, "-I", "-S", "-c", program])

    # -- looking --------------------------------------------------------------------------------

    def calls(self, command: str | None = None) -> list[Call]:
        """Return the calls of all commands, or of one, in the order in which they began."""
        try:
            lines = (self.directory / "calls.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = [json.loads(line) for line in lines]
        return [
            Call(call["command"], tuple(call["arguments"]), call["time"])
            for call in found
            if command in (None, call["command"])
        ]

    def states(self) -> dict[str, str]:
        """Return the states of all jobs that the controller knows, by id."""
        states: dict[str, str] = self._tell("states")["states"]
        return states

    def names(self) -> dict[str, str]:
        """Return the names of all jobs that the controller knows, by id."""
        names: dict[str, str] = self._tell("names")["names"]
        return names

    def _tell(self, kind: str, *arguments: str) -> dict[str, Any]:
        request = {"command": "incident", "arguments": [kind, *arguments]}
        answer = ask(str(self.directory), request, START_S)
        if answer is None:
            raise BackendUnavailableError("the fake Slurm's controller is down")
        if answer.get("error"):
            raise ValueError(answer["error"].strip())
        return answer

    def _change(self, edit: Callable[[dict[str, Any]], Any]) -> None:
        faults.change(self.directory, edit)
