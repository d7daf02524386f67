"""The options of ``sbatch`` that a resource stands for."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from dask_batch.errors import ResourceError, TemplateError

__all__ = [
    "SBATCH_VARIABLES",
    "gpu_option",
    "log_pattern",
    "memory_mb",
    "minutes",
    "options_not_printed",
    "refuse_directives",
    "refuse_reserved",
    "reserved_option",
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
    "gpus_per_core": (
        *("SBATCH_GPUS", "SBATCH_GPUS_PER_TASK", "SBATCH_GPUS_PER_NODE", "SBATCH_GRES"),
    ),
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
    "--kill-on-invalid-dep": "what fails with a job depends on whether that is repeated",
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


def gpu_option(resources: Mapping[str, Any]) -> str | None:
    """Return the option that asks for the GPUs of a job; None if it has none.

    Sites may want another than the usual one, with the type of GPU, or in Slurm's older way: as
    generic resources of each node (``--gres``).

    >>> gpu_option({"cores": 4, "num_nodes": 2, "gpus_per_core": 1})
    '--gpus-per-task=1'
    >>> ours = "--gres=gpu:a100:{gpus}"
    >>> gpu_option({"cores": 4, "num_nodes": 2, "gpus_per_core": 1, "gpu_request": ours})
    '--gres=gpu:a100:2'
    """
    each = resources.get("gpus_per_core")
    if not each:
        return None
    on_a_node = math.ceil(resources["cores"] / (resources.get("num_nodes") or 1)) * each
    request: str = resources.get("gpu_request") or _GPU_REQUEST
    return request.replace("{gpus_per_core}", str(each)).replace("{gpus}", str(on_a_node))


_GPU_REQUEST: Final = "--gpus-per-task={gpus_per_core}"


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
            ("partition", "partition"),
            ("account", "account"),
            ("qos", "qos"),
            ("constraint", "constraint"),
            ("reservation", "reservation"),
        )
        if name in wanted
    ]
    if "gpus_per_core" in wanted and "gpu_option" not in printed:
        options.append(str(gpu_option(resources)))
    if wanted.get("threads_per_core", 1) > 1:  # one is what a job gets anyway
        options.append(f"--cpus-per-task={wanted['threads_per_core']}")
    several = "gpus_per_core" in wanted or resources["cores"] > 1
    if "num_nodes" in wanted or (several and "cores" not in printed):
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
    """Refuse options that are this package's own business, however they are written.

    Raises
    ------
    ResourceError
        One of them is among the user's further options; or a word is there that sbatch would take
        for the script.
    """
    if resources.get("flux_executor_nesting"):
        raise ResourceError(
            "resource 'flux_executor_nesting': jobs of Slurm are no instances of Flux; leave it "
            "out, and open a SlurmJobExecutor in the function"
        )
    for directive in resources.get("job_extra_directives") or ():
        _refuse_words("job_extra_directives", shlex.split(directive))
    _refuse_words("gpu_request", [resources["gpu_request"]] if resources.get("gpu_request") else ())
    _refuse_words("slurm_cmd_args", resources.get("slurm_cmd_args") or ())


def _refuse_words(name: str, words: Sequence[str]) -> None:
    before = ""
    for word in words:
        option = reserved_option(word)
        if option:
            raise ResourceError(
                f"resource {name!r}: {option} cannot be given here: {_RESERVED[option]}"
            )
        if word == "--" or not (word.startswith("-") or _takes_a_word(before)):
            raise ResourceError(
                f"resource {name!r}: sbatch would take {word!r} for the job script: write an "
                "option and its value as one word, such as '--comment=text'"
            )
        before = word


def reserved_option(word: str) -> str | None:
    """Return the reserved option that a word gives to sbatch: abbreviated, glued or bundled."""
    if word.startswith("--"):
        given = word.partition("=")[0]
        fits = (option for option in _RESERVED if option.startswith(given) and len(given) > 2)
        return next(fits, None)
    if word.startswith("-"):
        for letter in word[1:]:
            if f"-{letter}" in _RESERVED:
                return f"-{letter}"
            if letter not in _FLAG_LETTERS:  # the rest is its value
                break
    return None


_FLAG_LETTERS = "hHkIOQRsvVX"
_FLAGS = frozenset(
    f"--{name}"
    for name in (
        "contiguous", "exclusive", "get-user-env", "hold", "ignore-pbs", "nice", "no-kill",
        "no-requeue", "overcommit", "oversubscribe", "parsable", "propagate", "quiet", "reboot",
        "requeue", "spread-job", "usage", "use-min-nodes", "verbose", "version",
    )
)  # fmt: skip
"""Options without a value, or whose value is never a word of its own."""


def _takes_a_word(option: str) -> bool:
    """Whether the next word is an option's value."""
    if option.startswith("--"):
        return "=" not in option and option not in _FLAGS
    return len(option) == 2 and option[0] == "-" and option[1] not in _FLAG_LETTERS


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
            option = reserved_option(word)
            if option in ("--array", "-a", "--wait", "-W"):
                raise TemplateError(
                    f"the submission template has {option} in line {number}: {_RESERVED[option]}"
                )
