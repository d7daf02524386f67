"""The one place that runs the commands of a batch system.

Each command runs with a time limit, in the C locale, and without the variables with which users
change what the commands print (``SQUEUE_FORMAT``, ``SACCT_FORMAT``, ``SLURM_TIME_FORMAT``, ...).
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dask_batch.errors import BackendUnavailableError, CommandError

__all__ = ["Completed", "client_environment", "command_environment", "run"]

logger = logging.getLogger(__name__)

_SCHEDULER = ("SLURM_", "SLURMD_", "PMI_", "PMI2_", "PMIX_", "FLUX_")
_FORMATTING = ("SQUEUE_", "SACCT_", "SINFO_", "SCONTROL_", "SCANCEL_", "SPRIO_")
_LOOK_S = 1.0
_CONNECTION = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})
"""Without these the commands might not find their controller."""


@dataclass(frozen=True, slots=True)
class Completed:
    """What a command printed; its exit code was 0."""

    stdout: str
    stderr: str


def client_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the client's environment less what a batch system put there.

    ``SBATCH_*`` are a user's own defaults on a login node, but inside an allocation they are what
    the submission of that allocation was given: there they go as well.
    """
    environ = os.environ if environ is None else environ
    prefixes: tuple[str, ...] = _SCHEDULER
    if "SLURM_JOB_ID" in environ or "FLUX_JOB_ID" in environ:
        prefixes = (*prefixes, "SBATCH_", "SALLOC_", "SRUN_")
    return {name: value for name, value in environ.items() if not name.startswith(prefixes)}


def command_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment in which commands print what this package can read."""
    environ = os.environ if environ is None else environ
    clean = {
        name: value
        for name, value in client_environment(environ).items()
        if not name.startswith(_FORMATTING)
    }
    clean.update({name: environ[name] for name in _CONNECTION if name in environ})
    # Zero: bitmaps of array elements are printed whole, not abbreviated.
    return {**clean, "LC_ALL": "C", "SLURM_BITSTR_LEN": "0"}


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    input: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    give_up: Callable[[str], bool] | None = None,
) -> Completed:
    """Run a command to its end.

    Parameters
    ----------
    argv
        Program and arguments; no shell is involved.
    timeout_s
        After this many seconds the command and what it started are killed.
    input
        What it reads; None: nothing.
    env
        Its environment; None: :func:`command_environment`.
    cwd
        Its working directory.
    give_up
        Asked about once a second with what is on stderr so far: true ends the command as the time
        limit does.

    Raises
    ------
    BackendUnavailableError
        There is no such program.
    CommandError
        It ended with another exit code than 0, or not in time (``returncode`` None).
    """
    logger.debug("$ %s", shlex.join(argv))
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=command_environment() if env is None else dict(env),
            cwd=cwd,
            text=True,
            encoding="utf-8",
            errors="replace",
            # A group of its own: Ctrl-C in the terminal must not cut a submission in half.
            start_new_session=True,
        )
    except (FileNotFoundError, PermissionError) as error:
        if cwd is not None and not cwd.is_dir():
            raise
        raise BackendUnavailableError(
            f"the command {argv[0]!r} cannot be run here: {error.strerror}"
        ) from error
    with process:
        try:
            stdout, stderr = _communicate(process, input, timeout_s, give_up)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            stdout, stderr = _what_is_left(process)
            raise CommandError(tuple(argv), None, stdout, stderr) from None
        except BaseException:
            _kill_group(process)
            raise
    if process.returncode != 0:
        raise CommandError(tuple(argv), process.returncode, stdout, stderr)
    return Completed(stdout, stderr)


def _communicate(
    process: subprocess.Popen[str],
    input: str | None,
    timeout_s: float,
    give_up: Callable[[str], bool] | None,
) -> tuple[str, str]:
    """Wait for a command's end; raise TimeoutExpired if that takes too long."""
    if give_up is None:
        return process.communicate(input, timeout=timeout_s)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return process.communicate(input, timeout=_LOOK_S)
        except subprocess.TimeoutExpired as waiting:
            # What it holds are bytes, whatever the mode of the pipes.
            so_far = waiting.stderr or b""
            text = so_far if isinstance(so_far, str) else so_far.decode("utf-8", "replace")
            if time.monotonic() >= deadline or give_up(text):
                raise
            input = None  # it goes on writing what it was given first


def _kill_group(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it ended between the time limit and now
        pass


def _what_is_left(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return what a killed command had printed; a pipe that a stray child holds is given up."""
    try:
        return process.communicate(timeout=1.0)
    except subprocess.TimeoutExpired:
        return "", ""
