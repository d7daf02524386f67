"""The leader of a task of several MPI ranks: it starts them, and tells how they ended.

A rank that raises says so in a file and aborts all ranks. Whether that works depends on the library
and on what the others are doing, so the leader waits only a moment for it, and then ends them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from dask_batch.cache.definitions import Definition
from dask_batch.job.endings import EndedError, NoRecordError
from dask_batch.job.publishing import Publication
from dask_batch.job.ranks.apart import tidy
from dask_batch.job.ranks.exchange import Exchange, exchange_path
from dask_batch.job.ranks.last_words import OWN_LOG, first_end, out_of_memory
from dask_batch.job.ranks.launch import Launch, launch
from dask_batch.job.ranks.library import Library, find_library
from dask_batch.job.say import say
from dask_batch.job.tether import tethered

__all__ = ["Leader", "advice_on", "end_ranks", "first_of", "thread_variables"]

_LOOK_S = 0.1
_ABORT_S = 3.0
"""How long the ranks may take to end after one has failed, or after the result is published."""
_TERM_S = 2.0
"""How long whoever started them may take to end them when told to."""
_KILLED: Final = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGXCPU})
_FATAL: Final = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE})


class Leader:
    """Leads the ranks of one attempt.

    Parameters
    ----------
    publication
        The attempt: the first rank publishes in its name.
    definition
        The task, as it was read from its file.
    """

    def __init__(self, publication: Publication, definition: Definition) -> None:
        self._publication = publication
        self._asked: Mapping[str, Any] = definition.header["ranks"]
        self._definition = definition
        self._log = OWN_LOG

    def run(self) -> None:
        """Start the ranks, and return when their result is in the store.

        Raises
        ------
        EndedError
            They have failed: as the rank that failed first says.
        NoRecordError
            They were killed, and why is the batch system's to say.
        """
        library = find_library()
        how = launch(self._asked, library)
        one = self._publication
        path = exchange_path(one.cache, one.key, one.generation)
        exchange = Exchange.begin(path, self._order(how, library))
        try:
            process = self._start(how, path)
            try:
                self._watch(process, exchange)
            finally:
                end_ranks(process, exchange.begun())
                tidy(path)
            self._judge(process.returncode, exchange, (how, library))
        finally:
            exchange.remove()

    def _order(self, how: Launch, library: Library) -> dict[str, Any]:
        one = self._publication
        return {
            "generation": one.generation,
            "job_id": one.job_id,
            "started": one.started,
            "count": self._asked["count"],
            "advice": advice_on(how, library),
            "how": how.words,
            "mpiexec": how.argv[0] not in ("srun", "flux"),
        }

    def _start(self, how: Launch, path: Path) -> subprocess.Popen[bytes]:
        ours = [sys.executable, "-P", "-m", "dask_batch.job.ranks"]
        task = [str(self._definition.path), str(self._definition.index)]
        argv = [*how.argv, *ours, *task, str(path)]
        try:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **thread_variables(self._asked), **how.variables},
                preexec_fn=tethered(signal.SIGTERM),
            )
        except OSError as error:
            raise EndedError(
                "environment", f"the ranks cannot be started by {how.argv[0]}: {error.strerror}"
            ) from error

    # ---- meanwhile -------------------------------------------------------------------------

    def _watch(self, process: subprocess.Popen[bytes], exchange: Exchange) -> None:
        """Return when the ranks have ended, or it is time to end them."""
        deadline: float | None = None
        while process.poll() is None:
            if deadline is None and (exchange.failures() or self._published()):
                deadline = time.monotonic() + _ABORT_S
            if deadline is not None and time.monotonic() >= deadline:
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_S)

    def _published(self) -> bool:
        one = self._publication
        return bool(one.cache.present({one.key}))

    # ---- afterwards ------------------------------------------------------------------------

    def _judge(self, code: int | None, exchange: Exchange, means: tuple[Launch, Library]) -> None:
        """Return if there is a result, and raise what happened if there is none."""
        one = self._publication
        if one.cache.check(one.key):
            return
        failures = exchange.failures()
        if failures:
            raise first_of(failures, self._asked["count"])
        number = _signal_of(code, bare=means[0].tells_bare_signals)
        if number == signal.SIGTERM and (first := first_end(self._log)) is not None:
            code, number = first, _signal_of(first, bare=False)
        if number in _KILLED:
            message = f"the ranks were killed by signal {number}, and left no record of why"
            raise NoRecordError(message, exit_code=128 + number)
        if out_of_memory(self._log):
            raise NoRecordError("the ranks used more memory than there is", exit_code=137)
        raise self._unexplained(code, number, exchange, means)

    def _unexplained(
        self,
        code: int | None,
        number: int,
        exchange: Exchange,
        means: tuple[Launch, Library],
    ) -> EndedError:
        how, library = means
        if self._has_begun(exchange):
            fate = f"were killed by signal {number}" if number else f"ended with exit code {code}"
            ended = EndedError("died", f"the ranks {fate} and left no result: see the log")
            ended.fields.update({"exit_code": code, "signal": number or None})
            return ended
        return EndedError(
            "environment",
            f"the ranks, started by `{how.words}`, ended with exit code {code} before MPI was "
            f"initialised by {library.name}; the log has its words. {advice_on(how, library)}",
        )

    def _has_begun(self, exchange: Exchange) -> bool:
        """Return whether any rank has come as far as to know its number."""
        return bool(exchange.begun())


def thread_variables(asked: Mapping[str, Any]) -> dict[str, str]:
    """Return the sizes of thread pools where they are those of all ranks together."""
    cpus, total = str(asked["cpus"]), str(asked["cpus"] * asked["count"])
    return {
        name: cpus
        for name, value in os.environ.items()
        if name.endswith("_NUM_THREADS") and value == total
    }


def first_of(failures: list[dict[str, Any]], count: int) -> EndedError:
    """Return how the attempt ends, by the record of the rank that failed first."""
    record = failures[0]
    fields = dict(record["fields"])
    outcome, message = fields.pop("outcome"), fields.pop("message")
    exit_code = record["exit_code"]
    rank = record["rank"]
    say(f"rank {rank} of {count} failed on {record['host']}" if rank is not None else message)
    told = fields.pop("exit_code", None)
    ended = EndedError(outcome, message, exit_code=exit_code, **fields)
    ended.fields["rank"] = rank
    if told is not None:
        ended.fields["exit_code"] = told
    return ended


def _signal_of(code: int | None, *, bare: bool) -> int:
    """Return the signal that an exit code stands for, 0 if for none.

    A shell, ``srun`` and Open MPI's ``mpiexec`` add 128; that of MPICH passes on the bare number.
    """
    if code is None:
        return 0
    number = -code if code < 0 else code if bare and code < 128 else code - 128
    return number if number in _KILLED | _FATAL else 0


def advice_on(how: Launch, library: Library) -> str:
    """Say what to try where library and starter do not understand each other."""
    if how.argv[0] == "srun":
        fits = "pmix" if library.is_open_mpi else "pmi2"
        return (
            f"{library.name} goes with pmi_mode={fits!r} as a rule; `srun --mpi=list` shows what "
            "this Slurm has, and pmi_mode='mpiexec' does without it"
        )
    if how.argv[0] == "flux":
        asked = f"leave pmi_mode={how.mode!r} out: " if how.mode else ""
        return (
            f"{asked}Flux starts ranks of MPICH, its relatives and Open MPI 4 by itself; Open MPI "
            "5 needs the plugin flux-pmix and pmi_mode='pmix', or pmi_mode='mpiexec'"
        )
    return f"is {how.argv[0]} the one of {library.name}?"


# ---- ending them -----------------------------------------------------------------------------


def end_ranks(process: subprocess.Popen[bytes], begun: Iterable[Mapping[str, Any]]) -> None:
    """End ranks that have not ended, and wait for whoever started them.

    Parameters
    ----------
    process
        What started them.
    begun
        What they have said when they began.
    """
    if process.poll() is None:
        _cancel_step(begun)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_TERM_S)
    if process.poll() is None:
        process.kill()
        process.wait()


def _cancel_step(begun: Iterable[Mapping[str, Any]]) -> None:
    """Have Slurm kill a step: ``srun`` may be waiting for ranks that do not listen."""
    steps = {record["step"] for record in begun if record["step"]}
    job = os.environ.get("SLURM_JOB_ID")
    if job and steps:
        argv = ["scancel", "--signal=KILL", *(f"{job}.{step}" for step in sorted(steps))]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=_TERM_S, check=False)
