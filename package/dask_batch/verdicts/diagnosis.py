"""Why a job died: what its exit code and the last lines of its stderr add to a mere *failed*.

A batch system's word for a job that was killed for its memory, its time or its node is at times
just *failed*; the reason stands in what its daemon wrote into the job's stderr. And a job that
cannot even begin says so by an exit code of its own.
"""

from __future__ import annotations

import re
from typing import Final

from dask_batch.backends.base import NO_LOGS
from dask_batch.job import exit_codes
from dask_batch.verdicts.follow import Outcome

__all__ = ["diagnose", "hint"]

_DAEMON = (
    r"^(?:(?:slurmstepd|slurmd|srun)\b"
    r"|\[[^\]\n]+\] error: (?=\*\*\* |Detected \d+ oom|StepId=|couldn't chdir |execve\(\): ))[^\n]*"
)
"""Lines of Slurm's own: what the function printed is no evidence.

slurmstepd begins them with its name, or from 25.05 on with the time alone, in the form that the
site chose (``LogTimeFormat``): then the sentence's beginning tells it from a program's log.
"""

_SAID: Final[tuple[tuple[re.Pattern[str], Outcome, str], ...]] = tuple(
    (re.compile(_DAEMON + pattern, re.MULTILINE | re.IGNORECASE), outcome, message)
    for pattern, outcome, message in (
        (
            r"(?:exceeded (?:job |step )?memory limit|oom.kill|out.of.memory)",
            Outcome.OUT_OF_MEMORY,
            "the job was killed because it used more memory than it asked for",
        ),
        (r"DUE TO TIME LIMIT", Outcome.TIMEOUT, "the job was killed at its time limit"),
        (r"DUE TO PREEMPTION", Outcome.PREEMPTED, "the job was preempted"),
        (r"DUE TO NODE FAILURE", Outcome.NODE_FAILURE, "the node on which the job ran failed"),
    )
)

_CHDIR = re.compile(_DAEMON + r"couldn't chdir to [`'\"]?(.+?)['\"]?: ", re.MULTILINE)
_EXECVE = re.compile(_DAEMON + r"execve\(\): (.+)$", re.MULTILINE)
_NO_MODULE = re.compile(r"No module named ['\"]?(dask_batch[\w.]*)['\"]?")
_NO_LIBRARY = re.compile(r"^ModuleNotFoundError: No module named ['\"]([\w.]+)['\"]", re.MULTILINE)
_TOO_OLD = re.compile(
    r"^(?:.*: )?(?:unknown|invalid) option:?(?: -P| -- 'P')$", re.MULTILINE | re.I
)
"""``-P``, which keeps the working directory off a job's path, came with Python 3.11."""
_NOT_FOUND = re.compile(r"^.*: (?:command not found|not found|No such file or directory)$", re.M)

_NO_PMI = re.compile(r"direct launched using \"srun\",\s+but OMPI was not built with SLURM's PMI")
"""What Open MPI says in a step whose ``--mpi`` it does not understand; then it ends the process."""

_OWN_WORDS: Final = "dask-batch:"
"""What lines of the job program begin with."""
_SHELLS: Final = {
    126: "the job's command cannot be executed (exit code 126)",
    127: "the job's command was not found (exit code 127): is its Python there on the node?",
}


_NO_GPU = re.compile(
    r"no (?:CUDA|HIP|ROCm)(?: GPUs|-capable)|(?:CUDA_ERROR_|cudaError|hipError)No_?Device",
    re.IGNORECASE,
)
"""How libraries say that they see no GPU: CUDA's own words, HIP's, PyTorch's and Numba's."""


def hint(message: str) -> str | None:
    """Return what to try about an exception of the function itself, if its words give it away."""
    if _NO_GPU.search(message):
        return (
            "a task sees the GPUs that it has asked for, and no others: "
            "resource_dict={'gpus_per_core': 1} asks for one"
        )
    return None


def diagnose(
    tail: str,
    exit_code: int | None,
    signal: int | None,
    *,
    started: bool = False,
    reason: str = "",
) -> tuple[Outcome, str] | None:
    """Refine the verdict on a job that died, or that ended well without a result.

    Parameters
    ----------
    tail
        The last lines of its stderr.
    exit_code, signal
        What the batch system says ended it.
    started
        Whether it left the record of its start: then its surroundings let it begin, and exit codes
        are the function's own.
    reason
        The batch system's reason, if it gave one.

    Returns
    -------
    tuple of Outcome and str, or None
        What happened, with a message; None if nothing more is known.
    """
    for pattern, outcome, message in _SAID:
        if pattern.search(tail):
            return outcome, message
    if exit_code and _NO_PMI.search(tail):
        return Outcome.ENVIRONMENT, (
            "Open MPI could not begin in the step that the function ran in: pmi_mode='pmix' as a "
            "rule lets it, for one process as well (`srun --mpi=list` shows what there is)"
        )
    if exit_code == exit_codes.NO_SPACE:
        return Outcome.UNSTORABLE, _with_words(exit_codes.MEANINGS[exit_code], tail)
    if started or signal:
        return None
    if reason == NO_LOGS:
        return Outcome.ENVIRONMENT, f"{reason}: their folder must be there on it, and its owner's"
    return _could_not_begin(tail, exit_code)


def _could_not_begin(tail: str, exit_code: int | None) -> tuple[Outcome, str] | None:
    if exit_code in exit_codes.ENVIRONMENT:
        return Outcome.ENVIRONMENT, _with_words(exit_codes.MEANINGS[exit_code], tail)
    if exit_code in exit_codes.MEANINGS:
        return Outcome.DIED, exit_codes.MEANINGS[exit_code]
    chdir = _CHDIR.search(tail)
    if chdir is not None:
        return Outcome.ENVIRONMENT, f"its node has no directory {chdir[1]}"
    execve = _EXECVE.search(tail)
    if execve is not None:
        return Outcome.ENVIRONMENT, f"its node cannot start the job's script: {execve[1]}"
    if _TOO_OLD.search(tail) is not None:
        return Outcome.ENVIRONMENT, "its interpreter is older than Python 3.11, or is no Python"
    module = _NO_MODULE.search(tail) or _NO_LIBRARY.search(tail)
    if module is not None:
        return Outcome.ENVIRONMENT, f"its interpreter has no module {module[1]}"
    if exit_code in _SHELLS:
        found = _NOT_FOUND.search(tail)
        words = f": {found[0].strip()}" if found else ""
        return Outcome.ENVIRONMENT, _SHELLS[exit_code] + words
    return None


def _with_words(meaning: str, tail: str) -> str:
    """Add what the job itself said, which names the culprit."""
    said = [line for line in tail.splitlines() if line.startswith(_OWN_WORDS)]
    return f"{meaning}: {said[-1].removeprefix(_OWN_WORDS).strip()}" if said else meaning
