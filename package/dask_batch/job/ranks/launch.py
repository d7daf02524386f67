"""The command that starts the ranks of a task, where this leader is.

In a job of Slurm ranks are started by ``srun``, in an instance of Flux by ``flux run``, elsewhere
by the ``mpiexec`` of the MPI library at hand. How ranks find each other is the library's business
and the starter's, and they have to agree (``pmi_mode``): what goes together is chosen here.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dask_batch.job import checks
from dask_batch.job.endings import EndedError
from dask_batch.job.ranks.library import Library, others_may_write
from dask_batch.job.surroundings import STEP_VARIABLE

__all__ = ["MPIEXEC", "Launch", "launch"]

MPIEXEC: Final = "mpiexec"
"""As ``pmi_mode``: the ranks are started by the library's own program, also inside a job."""

_ASK_S = 60.0
_ROOT: Final = (
    "OMPI_ALLOW_RUN_AS_ROOT",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
    "PRTE_ALLOW_RUN_AS_ROOT",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM",
)
"""A job runs as whom its batch system says, and asking root twice would not change that."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How ranks are started.

    Attributes
    ----------
    argv
        What comes before the ranks' own command.
    variables
        What is to be added to the environment.
    mode
        The ``pmi_mode`` that was chosen; empty if the starter's own default is.
    library_is_open_mpi
        Whether it is Open MPI's ``mpiexec``.
    """

    argv: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    mode: str = ""
    library_is_open_mpi: bool = False

    @property
    def tells_bare_signals(self) -> bool:
        """Whether the exit code for a rank that a signal has killed is the signal's number."""
        return self.mode == MPIEXEC and not self.library_is_open_mpi

    @property
    def words(self) -> str:
        """What to call it in a message."""
        shown = [word for word in self.argv if word.startswith(("--mpi=", "pmi="))]
        return " ".join([*self.argv[: 2 if self.argv[0] == "flux" else 1], *shown])


def launch(
    asked: Mapping[str, Any], library: Library, environ: Mapping[str, str] = os.environ
) -> Launch:
    """Return how the ranks of a task are started.

    Parameters
    ----------
    asked
        The ``ranks`` of the task's definition: ``count``, ``cpus`` and ``gpus`` of each,
        ``gpu_option`` (how Slurm is asked for these), ``nodes``, ``exclusive``, ``pmi_mode``,
        ``oversubscribe``.
    library
        What they will use.
    environ
        Where we are.

    Raises
    ------
    EndedError
        There is nothing here to start them with.
    """
    mode = asked["pmi_mode"] or ""
    backend = environ.get("DASK_BATCH_BACKEND", "")
    if mode != MPIEXEC and backend.startswith("flux") and environ.get("FLUX_URI"):
        return _by_flux(asked, mode)
    if mode != MPIEXEC and backend.startswith("slurm") and environ.get("SLURM_JOB_ID"):
        mode = mode or recommended(library, _modes_of_srun())
        if mode != MPIEXEC:
            further = shlex.split(environ.get(STEP_VARIABLE, ""))
            return _by_srun(asked, mode, further if backend == "slurm-step" else None)
    return _by_mpiexec(asked, library, environ)


# ---- Slurm -----------------------------------------------------------------------------------


def recommended(library: Library, modes: list[str]) -> str:
    """Return the ``--mpi`` of ``srun`` that a library understands, among those that there are."""
    wanted = ("pmix",) if library.is_open_mpi else ("pmi2", "cray_shasta")
    for name in wanted:
        if name in modes:
            return name
        versions = [mode for mode in modes if mode.startswith(f"{name}_v")]
        if versions:
            return max(versions, key=lambda mode: (len(mode), mode))  # v10 is above v9
    return MPIEXEC


def _modes_of_srun() -> list[str]:
    done = _ask(["srun", "--mpi=list"])
    return re.findall(r"^\s+(\w+)\s*$", done, re.MULTILINE)


def _by_srun(asked: Mapping[str, Any], mode: str, further: list[str] | None) -> Launch:
    """Return how srun starts them; ``further`` are options of a step beside others, else None."""
    argv = [
        "srun",
        f"--mpi={mode}",
        f"--ntasks={asked['count']}",
        f"--cpus-per-task={asked['cpus']}",  # a step does not inherit it (22.05)
        "--kill-on-bad-exit=1",
        "--export=ALL",
        "--input=none",
        "--quiet",
    ]
    if asked["gpu_option"]:
        argv.append(asked["gpu_option"])
    if asked["nodes"]:
        argv.append(f"--nodes={asked['nodes']}")
    if asked["oversubscribe"]:
        argv.append("--overcommit")
    if further is not None:
        argv += ["--exact", *further]  # beside other steps of the same allocation
    return Launch(tuple(argv), mode=mode)


# ---- Flux ------------------------------------------------------------------------------------


def _by_flux(asked: Mapping[str, Any], mode: str) -> Launch:
    argv = ["flux", "run", f"--ntasks={asked['count']}", f"--cores-per-task={asked['cpus']}"]
    argv += ["--input=/dev/null", "-o", "exit-timeout=5s", "-o", "exit-on-error"]
    if asked["gpus"]:
        argv += [f"--gpus-per-task={asked['gpus']}", "-o", "gpu-affinity=per-task"]
    if asked["nodes"]:
        argv.append(f"--nodes={asked['nodes']}")
    if mode:
        argv += ["-o", f"pmi={mode}"]
    return Launch(tuple(argv), mode=mode)


# ---- mpiexec ---------------------------------------------------------------------------------


def _by_mpiexec(asked: Mapping[str, Any], library: Library, environ: Mapping[str, str]) -> Launch:
    program = _mpiexec_of(library)
    argv = [program, "-n", str(asked["count"])]
    variables: dict[str, str] = {}
    if library.is_open_mpi:
        # Each mpiexec believes that it has the machine to itself, and would bind to its first CPUs.
        argv += ["--bind-to", "none"]
        if asked["oversubscribe"] or "SLURM_JOB_ID" not in environ:
            argv.append("--oversubscribe")  # who else runs here the queue has counted
        if os.geteuid() == 0:
            variables = dict.fromkeys(_ROOT, "1")
    return Launch(tuple(argv), variables, MPIEXEC, library.is_open_mpi)


def _mpiexec_of(library: Library) -> str:
    """Return the ``mpiexec`` of a library: that of another does not start its ranks as one."""
    kind = "openmpi" if library.is_open_mpi else "mpich"
    names = (f"mpiexec.{kind}", "mpiexec", "mpirun", f"mpiexec.{kind}")
    folders = [str(folder) for folder in library.folders()]
    beside = [shutil.which(name, path=folder) for folder in folders for name in names]
    found = [path for path in beside if path and not others_may_write(Path(path))]
    found += [path for name in names if (path := shutil.which(name))]
    for program in dict.fromkeys(found):
        said = _ask([program, "--version"])
        if bool(re.search(r"Open ?MPI|OpenRTE|PRRTE|PRTE", said)) == library.is_open_mpi:
            return program
    raise EndedError(
        "environment",
        f"there is no mpiexec of {library.name} to start the ranks with ({checks.where()}); "
        f"put it on PATH; {checks.REMEDY}",
    )


def _ask(argv: list[str]) -> str:
    """Return what a program says of itself, on whichever stream."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_ASK_S, stdin=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr
