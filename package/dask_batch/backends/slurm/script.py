"""From a job to its script and to the arguments that go with it.

Before its time limit Slurm warns a job with ``SIGUSR1``. It goes to the process of the script, so
the built-in template ends by becoming Python (``exec``). A user's own script would die of the
signal: for those none is asked for, nor where the prologue sets a trap, which ``exec`` would lose.
"""

from __future__ import annotations

import math
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dask_batch.backends import templating
from dask_batch.backends.base import Job
from dask_batch.backends.slurm import options
from dask_batch.backends.slurm.dependencies import Dependency

__all__ = ["job_command", "sbatch_arguments", "script_text"]

BUILTIN = "slurm.sh.j2"
LONGEST_WARNING_S = 60
_LOGIN_MODE = re.compile(r"--get-user-env=L(?!\S)")
"""In templates of executorlib. Slurm does so anyway, and takes no value from 25.05 on."""
WARNING_SHARE = 0.1
"""A job is warned this share of its time limit before the end, and at most so many seconds. Slurm
looks once a minute: the signal may come up to 60 s earlier than asked for (22.05)."""


def job_command(job: Job) -> list[str]:
    """Return the command that runs a job's task; no value of an argument is part of it.

    ``python`` may be several words (``apptainer exec image.sif python``), unless the whole is the
    path of a program.
    """
    python = job.resources.get("python") or sys.executable
    words = [python] if shutil.which(python) else shlex.split(python)
    # -P: a file beside the job that is called like a module of the library must not replace it.
    return [*words, "-P", "-m", job.program, str(job.definition), str(job.index)]


def _template(resources: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the text of the template and whether it is the user's own."""
    own = resources.get("submission_template")
    return (own, True) if own else (templating.builtin_template(BUILTIN), False)


def _command_text(command: Sequence[str], threads: Mapping[str, str]) -> str:
    variables = [f"{name}={value}" for name, value in threads.items()]
    return shlex.join(["env", "DASK_BATCH_BACKEND=slurm", *variables, *command])


def _threads_for(source: str, resources: Mapping[str, Any]) -> dict[str, str]:
    """Return the thread variables that a user's template leaves to us."""
    printed = templating.template_variables(source)
    if "threads_per_core" not in printed and "cpus-per-task" in source:
        return {}  # it sets its own number of CPUs, which is not known here
    threads = options.thread_variables(resources)
    return {name: value for name, value in threads.items() if name not in source}


def _warning_s(resources: Mapping[str, Any]) -> int | None:
    """Return how long before its time limit a job is warned; None: not at all."""
    if any("trap" in line for line in resources.get("job_script_prologue") or ()):
        return None
    limit = resources.get("run_time_max")
    if limit is None:
        return LONGEST_WARNING_S
    return min(LONGEST_WARNING_S, math.ceil(options.minutes(limit) * 60 * WARNING_SHARE))


def script_text(job: Job, dependency: Dependency, command: Sequence[str]) -> str:
    """Return the job script.

    The built-in template exports the thread variables before the prologue, which may change
    them. What a user's template exports is kept; the rest travels with the command.

    Raises
    ------
    TemplateError
        The template does not parse, or lacks a variable.
    """
    source, own = _template(job.resources)
    logs = job.log_directory
    variables = templating.template_values(
        job.resources,
        command=_command_text(command, _threads_for(source, job.resources) if own else {}),
        working_directory=str(logs),
        job_name=job.name,
        dependency=dependency.successes,
        further={
            "waits_for": dependency.expression,
            "patient": dependency.patient,
            "repeatable": job.repeatable,
            "warning_s": _warning_s(job.resources),
            "output": options.log_pattern(str(logs / f"{job.index}.out")),
            "error": options.log_pattern(str(logs / f"{job.index}.err")),
            "gpu_option": options.gpu_option(job.resources),
            "threads": options.thread_variables(job.resources),
        },
    )
    text = templating.render(source, variables)
    if not own:
        return text
    text = _LOGIN_MODE.sub("--get-user-env", text)
    if dependency.patient:
        # One "yes" among several counts, wherever it stands (22.05).
        text = text.replace("--kill-on-invalid-dep=yes", "--kill-on-invalid-dep=no")
    prologue = job.resources.get("job_script_prologue")
    if prologue and "job_script_prologue" not in templating.template_variables(source):
        text = _with_prologue(text, prologue)
    return text


def _with_prologue(text: str, prologue: Sequence[str]) -> str:
    """Put shell lines that a template does not print between its directives and its commands."""
    lines = text.splitlines()
    body = next(
        (i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")),
        len(lines),
    )
    return "\n".join([*lines[:body], *prologue, *lines[body:], ""])


def sbatch_arguments(job: Job, dependency: Dependency, *, hold: bool) -> list[str]:
    """Return the arguments of ``sbatch`` for a job, the script excluded.

    What the command line says overrides the script. So the name, the logs and the dependencies
    are right whatever a user's template says of them, and a resource that it does not print is
    requested all the same. Our own come last: of two equal options sbatch takes the latter.
    """
    source, own = _template(job.resources)
    printed = templating.template_variables(source)
    logs = job.log_directory
    arguments = options.options_not_printed(job.resources, printed) if own else []
    arguments += job.resources.get("slurm_cmd_args") or ()
    arguments += [
        "--parsable",
        f"--job-name={job.name}",
        f"--output={options.log_pattern(str(logs / f'{job.index}.out'))}",
        f"--error={options.log_pattern(str(logs / f'{job.index}.err'))}",
        "--open-mode=append",  # or a repetition would begin by erasing why there is one
    ]
    if dependency.expression:
        outlives = "no" if dependency.patient else "yes"
        arguments.append(f"--dependency={dependency.expression}")
        arguments.append(f"--kill-on-invalid-dep={outlives}")
    if job.repeatable:
        arguments.append("--requeue")  # a site's JobRequeue=0 would forbid the repetition
    if hold:
        arguments.append("--hold")
    return arguments
