"""What can go wrong with a fake Slurm: its commands, its limits, its jobs."""

from __future__ import annotations

import abc
import signal
from collections.abc import Callable
from typing import Any

__all__ = ["Incidents"]

NO_CONTROLLER = "Unable to contact slurm controller (connect failure)"
NO_DATABASE = (
    "sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection to "
    "host:localhost:6819: Connection refused\n"
    "sacct: error: Sending PersistInit msg: Connection refused\n"
    "sacct: error: Problem talking to the database: Connection refused\n"
)


class Incidents(abc.ABC):
    """The part of :class:`~dask_batch.testing.FakeSlurm` that makes things go wrong."""

    @abc.abstractmethod
    def _tell(self, kind: str, *arguments: str) -> dict[str, Any]:
        """Send the controller a request."""

    @abc.abstractmethod
    def _change(self, edit: Callable[[dict[str, Any]], Any]) -> None:
        """Change what commands read of their faults."""

    # -- commands -------------------------------------------------------------------------------

    def fail(
        self,
        command: str,
        *,
        share: float = 1.0,
        seed: int = 0,
        times: int | None = None,
        message: str | None = None,
    ) -> None:
        """Let a command fail without doing anything, as when nobody answers it.

        Parameters
        ----------
        command
            ``squeue``, ``sacct``, ``sbatch``, ...
        share
            Which part of its calls fails; which ones, ``seed`` decides.
        seed
            The same for the same calls in the same order.
        times
            How often at most; None: until :meth:`heal`.
        message
            What it says on stderr; by default what it says when there is no controller, or no
            database.
        """
        if message is None:
            message = NO_DATABASE if command == "sacct" else f"{command}: error: {NO_CONTROLLER}"
        self._rule(command, "fail", times, share, seed, text=message.rstrip("\n") + "\n", code=1)

    def refuse(self, command: str, message: str, *, times: int | None = None) -> None:
        """Let a command refuse, with ``message`` behind its prefix ``sbatch: error: ``."""
        self.fail(command, times=times, message=f"{command}: error: {message}")

    def hang(self, command: str, seconds: float, *, times: int | None = None) -> None:
        """Let a command do nothing for some time before it does what it should."""
        self._rule(command, "hang", times, 1.0, 0, seconds=seconds)

    def truncate(self, command: str, size: int, *, times: int | None = None) -> None:
        """Cut off what a command prints after ``size`` characters; its exit code is as ever."""
        self._rule(command, "truncate", times, 1.0, 0, size=size)

    def garble(self, command: str, *, seed: int = 0, times: int | None = None) -> None:
        """Spoil every other line that a command prints."""
        self._rule(command, "garble", times, 1.0, seed)

    def reorder(self, command: str = "squeue", *, times: int | None = None) -> None:
        """Let a command print its lines in the opposite order."""
        self._rule(command, "reorder", times, 1.0, 0)

    def _rule(
        self, command: str, kind: str, times: int | None, share: float, seed: int, **other: Any
    ) -> None:
        rule = {
            "command": command,
            "kind": kind,
            "times": times,
            "share": share,
            "seed": seed,
            "calls": 0,
            **other,
        }
        self._change(lambda now: now["rules"].append(rule))

    def heal(self, command: str | None = None) -> None:
        """Take back what was said of one command, or of all; limits and lag stay."""

        def edit(now: dict[str, Any]) -> None:
            now["rules"] = [r for r in now["rules"] if command not in (None, r["command"])]

        self._change(edit)

    # -- the whole of it ------------------------------------------------------------------------

    def lag(self, *, sacct_s: float) -> None:
        """Let ``sacct`` tell what was so many seconds ago."""
        self._change(lambda now: now.update(sacct_lag_s=sacct_s))

    def limit(
        self, *, max_submit: int | None = None, max_jobs: int = 10000, name: str = ""
    ) -> None:
        """Bound the number of unfinished jobs.

        Parameters
        ----------
        max_submit
            Of one user (``MaxSubmitJobs``): more are refused.
        max_jobs
            Of all (``MaxJobCount``): ``sbatch`` then says "temporarily unable" and tries again.
        name
            What versions after 22.05 say first: ``QOSMaxSubmitJobPerUserLimit``.
        """
        self._change(
            lambda now: now.update(max_submit=max_submit, max_job_count=max_jobs, limit_name=name)
        )

    def temporarily_unable(self, times: int) -> None:
        """Put off the next attempts at a submission; one ``sbatch`` makes up to 15."""
        self._change(lambda now: now.update(unable=times))

    # -- jobs -----------------------------------------------------------------------------------

    def purge(self, job_id: str) -> None:
        """Let the controller forget a job that has ended, as after ``MinJobAge``."""
        self._tell("purge", job_id)

    def node_failure(self, job_id: str, *, requeue: bool = True) -> None:
        """Let the node of a running job fail; it runs again if it may (``--no-requeue``)."""
        self._tell("node-failure", job_id, "requeue" if requeue else "")

    def preempt(self, job_id: str, *, requeue: bool = False) -> None:
        """Take a running job's node away for a more important one."""
        self._tell("preempt", job_id, "requeue" if requeue else "")

    def requeue(self, job_id: str) -> None:
        """Put a running or ended job back to the queue, as an administrator may."""
        self._tell("requeue", job_id)

    def out_of_memory(self, job_id: str) -> None:
        """Kill a running job as one that used more memory than it asked for."""
        self._tell("out-of-memory", job_id)

    def kill(self, job_id: str, number: int = signal.SIGKILL) -> None:
        """Send the processes of a running job a signal, from outside Slurm."""
        self._tell("kill", job_id, str(int(number)))

    def lose(self, job_id: str) -> None:
        """Forget a job as a controller does that was killed before it saved its state.

        The job is gone, the accounts call it CANCELLED, and its id is given out again.
        """
        self._tell("lose", job_id)

    def haunt(self, job_id: str) -> None:
        """Let a job be called running, until its time limit, although it has ended or will.

        So does a controller that was killed before it saved that the job had ended. Who waits for
        the job waits on; ``scancel`` ends it.
        """
        self._tell("haunt", job_id)

    def run_twice(self, job_id: str, *, both: bool = False) -> None:
        """Run a job that runs, or has ended, a second time under its id.

        Parameters
        ----------
        both
            Leave the first one running, as on a node that has lost its network.
        """
        self._tell("run-twice", job_id, "both" if both else "killed")

    def say(self, job_id: str, word: str) -> None:
        """Call a job's state what you like, for instance by a word of a later Slurm."""
        self._tell("say", job_id, word)
