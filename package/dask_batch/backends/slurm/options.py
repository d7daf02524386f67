"""The options of ``sbatch`` that a resource stands for."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Mapping
from typing import Any, Final

from dask_batch.errors import ResourceError, TemplateError

__all__ = [
    "SBATCH_VARIABLES",
    "log_pattern",
    "memory_mb",
    "minutes",
    "options_not_printed",
    "refuse_directives",
    "refuse_reserved",
    "thread_variables",
]

_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

SBATCH_VARIABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "account": ("SBATCH_ACCOUNT",),
    "constraint": ("SBATCH_CONSTRAINT",),
    "exclusive": ("SBATCH_EXCLUSIVE",),
    "gpus_per_core": ("SBATCH_GPUS", "SBATCH_GPUS_PER_TASK", "SBATCH_GPUS_PER_NODE"),
    "memory_max": ("SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU"),
    "partition": ("SBATCH_PARTITION",),
    "qos": ("SBATCH_QOS",),
    "reservation": ("SBATCH_RESERVATION",),
    "run_time_max": ("SBATCH_TIMELIMIT",),
}
"""A user's environment overrides the lines of a script; it must not override a resource."""

_RESERVED: Final[Mapping[str, str]] = {
    "--array": "it would run the task several times",
    "-a": "it would run the task several times",
    "--chdir": "use the resource cwd",
    "-D": "use the resource cwd",
    "--clusters": "jobs are followed on one cluster only",
    "-M": "jobs are followed on one cluster only",
    "--dependency": "dependencies come from the graph",
    "-d": "dependencies come from the graph",
    "--error": "logs are where their reader expects them",
    "-e": "logs are where their reader expects them",
    "--help": "nothing would be submitted",
    "--job-name": "use the resource job_name",
    "-J": "use the resource job_name",
    "--output": "logs are where their reader expects them",
    "-o": "logs are where their reader expects them",
    "--test-only": "nothing would be submitted",
    "--wait": "the submission would not return before the job ends",
    "-W": "the submission would not return before the job ends",
    "--wrap": "it would replace the script",
}


def memory_mb(gigabytes: float) -> int:
    """Return megabytes, rounded up: Slurm takes no fractions."""
    return math.ceil(gigabytes * 1024)


def minutes(seconds: float) -> int:
    """Return minutes, rounded up: Slurm counts no seconds, and a job cut short is lost."""
    return math.ceil(seconds / 60)


def thread_variables(resources: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables that set the sizes of thread pools to the CPUs of the process."""
    return dict.fromkeys(_THREADS, str(resources["threads_per_core"]))


def log_pattern(path: str) -> str:
    r"""Return the ``--output`` that means exactly this path.

    ``%`` begins a replacement, and is doubled. A backslash anywhere switches replacements off and
    is itself taken away once, so it is doubled and ``%`` is not (Slurm 22.05).

    >>> log_pattern("/logs/100%/1.out"), log_pattern("/a\\b%/1.out")
    ('/logs/100%%/1.out', '/a\\\\b%/1.out')
    """
    return path.replace("\\", "\\\\") if "\\" in path else path.replace("%", "%%")


def options_not_printed(resources: Mapping[str, Any], printed: Collection[str]) -> list[str]:
    """Return the options for the resources that a template does not print.

    A template that never mentions GPUs must not make a request for GPUs vanish.
    """
    wanted = {name: value for name, value in resources.items() if name not in printed and value}
    options = [
        f"--{option}={wanted[name]}"
        for name, option in (
            ("num_nodes", "nodes"),
            ("gpus_per_core", "gpus-per-task"),
            ("partition", "partition"),
            ("account", "account"),
            ("qos", "qos"),
            ("constraint", "constraint"),
            ("reservation", "reservation"),
        )
        if name in wanted
    ]
    if wanted.get("threads_per_core", 1) > 1:  # one is what a job gets anyway
        options.append(f"--cpus-per-task={wanted['threads_per_core']}")
    if "num_nodes" in wanted or ("gpus_per_core" in wanted and "cores" not in printed):
        # At least one on each node, or sbatch takes nodes away; and GPUs are counted per task.
        options.append(f"--ntasks={max(resources['cores'], resources.get('num_nodes') or 1)}")
    if "memory_max" in wanted:
        options.append(f"--mem={memory_mb(wanted['memory_max'])}M")
    if "run_time_max" in wanted:
        options.append(f"--time={minutes(wanted['run_time_max'])}")
    if wanted.get("priority", 0) < 0:  # only administrators may raise a priority
        options.append(f"--nice={-wanted['priority']}")
    if "exclusive" in wanted:
        options.append("--exclusive")
    for directive in wanted.get("job_extra_directives", ()):
        options += shlex.split(directive)
    return options


def refuse_reserved(resources: Mapping[str, Any]) -> None:
    """Refuse options that are this package's own business.

    Raises
    ------
    ResourceError
        One of them is among the user's further options.
    """
    for name in ("slurm_cmd_args", "job_extra_directives"):
        for text in resources.get(name) or ():
            option = text.split("=", 1)[0].split(maxsplit=1)[0] if text.strip() else ""
            reason = _RESERVED.get(option)
            if reason:
                raise ResourceError(f"resource {name!r}: {option} cannot be given here: {reason}")


def refuse_directives(script: str) -> None:
    """Refuse directives of a template that would undo what a submission is.

    Others that are reserved are harmless there: the command line overrides them.

    Raises
    ------
    TemplateError
        The script would be a job array, or sbatch would wait for its end.
    """
    for number, line in enumerate(script.splitlines(), start=1):
        if not line.startswith("#SBATCH"):
            continue
        for word in line.split()[1:]:
            option = word.split("=", 1)[0]
            if option in ("--array", "-a", "--wait", "-W"):
                raise TemplateError(
                    f"the submission template has {option} in line {number}: {_RESERVED[option]}"
                )
