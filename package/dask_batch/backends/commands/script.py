"""From a job to its script, its environment, and the arguments that go with them.

None of these systems is asked to pass the environment on: what ``qsub -V`` takes along everybody
can read in ``qstat -f``, and values with commas or line breaks it spoils. It is written to a file
beside the scripts, for its owner alone, which the script reads first.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dask_batch.backends import templating
from dask_batch.backends.base import Job
from dask_batch.backends.commands.system import Argv, System, Waits, name_at
from dask_batch.backends.slurm.options import thread_variables
from dask_batch.job.ranks.launch import MPIEXEC

__all__ = [
    "arguments",
    "environment_file",
    "refuse_reserved",
    "refuse_what_is_not_printed",
    "script_text",
    "shape",
    "write_environment",
]

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_OF_A_NODE: Final = frozenset(
    {
        *("BASHOPTS", "DISPLAY", "ENVIRONMENT", "EUID", "HOSTNAME", "OLDPWD", "PPID", "PWD"),
        *("SHELLOPTS", "SHLVL", "TMPDIR", "UID", "XAUTHORITY", "_"),
        *("ARC", "JOB_ID", "JOB_NAME", "JOB_SCRIPT", "NHOSTS", "NQUEUES", "NSLOTS", "PE"),
        *("PE_HOSTFILE", "QUEUE", "REQNAME", "REQUEST", "RESTARTED"),
    }
)
"""What belongs to a machine, a login, or a job of Grid Engine's."""
_OF_A_SYSTEM: Final = ("PBS_", "LSB_", "LS_", "MOAB_", "SGE_", "BASH_FUNC_")
_CONNECTION: Final = frozenset(
    {
        *("PBS_CONF_FILE", "PBS_DEFAULT", "PBS_EXEC", "PBS_SERVER"),
        *("SGE_CELL", "SGE_CLUSTER_NAME", "SGE_EXECD_PORT", "SGE_QMASTER_PORT", "SGE_ROOT"),
    }
)
"""Without these the commands might not find their server: a steward needs them, too."""
_ASKED_FOR: Final = (
    *("account", "constraint", "exclusive", "gpus_per_core", "job_extra_directives"),
    *("memory_max", "num_nodes", "partition", "priority", "qos", "reservation", "run_time_max"),
)
_SHEBANG = re.compile(r"#!\s*(/[\w./+-]+)\s*$")


# ---- what a job needs ------------------------------------------------------------------------


def shape(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a job needs on each of its nodes, for templates.

    Ranks are on one node, unless ``num_nodes`` asks for more.
    """
    ranks, cpus = resources["cores"], resources["threads_per_core"]
    nodes = resources.get("num_nodes") or 1
    each = math.ceil(ranks / nodes)
    gpus = resources.get("gpus_per_core") or 0
    memory = resources.get("memory_max")
    memory_mb = None if memory is None else math.ceil(memory * 1024)
    slots = each * cpus * nodes
    return {
        "nodes": nodes,
        "ranks_per_node": each,
        "cpus_per_node": each * cpus,
        "gpus_per_node": each * gpus,
        "gpus_per_slot": gpus / cpus if gpus % cpus else gpus // cpus,
        "memory_mb": memory_mb,
        "memory_per_slot_mb": memory_mb and math.ceil(memory_mb / (each * cpus)),
        "slots": slots,
        "parallel_environment": None if slots == 1 or _names_its_own(resources) else "smp",
    }


def _names_its_own(resources: Mapping[str, Any]) -> bool:
    return any(
        shlex.split(option)[0] == "-pe" for option in resources.get("job_extra_directives") or ()
    )


def _own_template(resources: Mapping[str, Any]) -> str | None:
    return resources.get("submission_template") or None


def refuse_what_is_not_printed(system: System, resources: Mapping[str, Any]) -> str:
    """Tell what is asked for and would be lost: neither the script nor the command says it.

    Returns
    -------
    str
        Names the resources and the remedy; empty if all is said.
    """
    source = _own_template(resources)
    printed = templating.template_variables(source or templating.builtin_template(system.template))
    said = {*printed, *(system.options if source else ()), *_implied(printed)}
    lost = [name for name in _ASKED_FOR if resources.get(name) and name not in said]
    if resources.get("flux_executor_nesting"):
        return (
            f"resource 'flux_executor_nesting': jobs of {system.title} are no instances of Flux; "
            "leave it out"
        )
    if resources.get("pmi_mode") not in (None, MPIEXEC):
        return (
            f"resource 'pmi_mode' = {resources['pmi_mode']!r}: MPI ranks are started by mpiexec "
            f"under {system.title}; leave it out, or say {MPIEXEC!r}"
        )
    if resources.get("slurm_cmd_args"):
        lost.append("slurm_cmd_args")
    cpus = resources["cores"] * resources["threads_per_core"]
    if cpus > 1 and not printed & {"cores", "threads_per_core", "slots", "cpus_per_node"}:
        lost.append("cores" if resources["cores"] > 1 else "threads_per_core")
    if not lost:
        return ""
    names = ", ".join(repr(name) for name in lost)
    whose = "your template" if source else f"the built-in template for {system.title}"
    remedy = "print it there ({{ name }})" if source else "bring your own (submission_template)"
    return f"resource {names}: {whose} does not say it, so that it would be lost; {remedy}"


def _implied(printed: frozenset[str]) -> Iterator[str]:
    """Yield the resources of which a template prints what :func:`shape` makes of them."""
    for name, stands_for in (
        ("memory_mb", "memory_max"),
        ("memory_per_slot_mb", "memory_max"),
        ("gpus_per_node", "gpus_per_core"),
        ("gpus_per_slot", "gpus_per_core"),
        ("nodes", "num_nodes"),
    ):
        if name in printed:
            yield stands_for


def refuse_reserved(system: System, script: str) -> str:
    """Tell which line of a script would make something else of its submission; empty if none."""
    for number, line in enumerate(script.splitlines(), start=1):
        if line.startswith(system.directive) and system.reserved.search(line):
            return (
                f"line {number} of the job script, {line.strip()!r}, cannot be met: a task is one "
                f"job, which {system.submit[0]} hands over without waiting for it"
            )
    return ""


# ---- the environment -------------------------------------------------------------------------


def _exports(job: Job) -> str:
    dropped = _OF_A_NODE | thread_variables(job.resources).keys()
    lines = [
        f"export {name}={shlex.quote(value)}"
        for name, value in sorted(job.environment.items())
        if _IDENTIFIER.fullmatch(name)
        and name not in dropped
        and (name in _CONNECTION or not name.startswith(_OF_A_SYSTEM))
    ]
    return "\n".join([*lines, ""])


def environment_file(job: Job) -> Path:
    """Return where the environment of a job is: jobs of one environment share a file."""
    digest = hashlib.sha256(_exports(job).encode("utf-8", "surrogateescape")).hexdigest()
    return job.log_directory / f"environment-{digest[:16]}.sh"


def write_environment(job: Job) -> None:
    """Write the environment of a job, for its owner alone; once for all that have the same."""
    path = environment_file(job)
    if path.exists():
        return
    whole = path.with_suffix(f".{os.getpid()}-{job.index}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(whole, flags, 0o600), "wb") as file:
        file.write(_exports(job).encode("utf-8", "surrogateescape"))
    os.replace(whole, path)


# ---- the script ------------------------------------------------------------------------------


def script_text(system: System, job: Job, command: Sequence[str]) -> str:
    """Return the job script.

    What a job waits for is no part of it: that is said on the command line, in the system's own
    way, whatever a template makes of ``dependency``.

    Raises
    ------
    TemplateError
        The template does not parse, or lacks a variable.
    """
    own = _own_template(job.resources)
    source = own or templating.builtin_template(system.template)
    printed = templating.template_variables(source)
    threads = thread_variables(job.resources)
    left = {name: value for name, value in threads.items() if name not in source} if own else {}
    resources = _visible(job.resources, printed) if own else job.resources
    variables = templating.template_values(
        resources,
        command=_command_text(system, command, left),
        working_directory=str(job.log_directory),
        job_name=name_at(job.name),
        further={
            **shape(job.resources),
            "environment_file": str(environment_file(job)),
            "threads": threads,
        },
    )
    text = templating.render(source, variables)
    if not own:
        return text
    before = [
        f". {shlex.quote(str(environment_file(job)))}",
        f"cd {shlex.quote(str(job.log_directory))}",
    ]
    if "job_script_prologue" not in printed:
        before += job.resources.get("job_script_prologue") or ()
    return _with_lines(text, before)


def _visible(resources: Mapping[str, Any], printed: frozenset[str]) -> dict[str, Any]:
    """Let ``cores`` be all CPUs where a template does not print ``threads_per_core``."""
    if "threads_per_core" in printed:
        return dict(resources)
    return {**resources, "cores": resources["cores"] * resources["threads_per_core"]}


def _command_text(system: System, command: Sequence[str], threads: Mapping[str, str]) -> str:
    variables = [f"{name}={value}" for name, value in threads.items()]
    return shlex.join(["env", f"DASK_BATCH_BACKEND={system.name}", *variables, *command])


def _with_lines(text: str, added: Sequence[str]) -> str:
    """Put shell lines between the directives of a script and its commands."""
    lines = text.splitlines()
    body = next(
        (i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")),
        len(lines),
    )
    return "\n".join([*lines[:body], *added, *lines[body:], ""])


# ---- the command line ------------------------------------------------------------------------


def arguments(system: System, job: Job, waits: Waits, script: str, *, hold: bool) -> Argv:
    """Return the arguments of the submission, the script excluded.

    What the command line says overrides the script: name, logs and dependencies are right whatever
    a template says of them, and a resource that it does not print is asked for all the same.
    """
    own = _own_template(job.resources)
    said: Argv = []
    if own:
        printed = templating.template_variables(own)
        for name, option in system.options.items():
            if job.resources.get(name) and name not in printed:
                said += option(job.resources[name])
    shebang = _SHEBANG.match(script.partition("\n")[0])
    shell = shebang[1] if shebang and not shebang[1].endswith("/env") else "/bin/bash"
    logs = job.log_directory / str(job.index)
    said += system.describe(name_at(job.name), f"{logs}.out", f"{logs}.err", shell)
    said += system.waits(waits)
    return [*said, *(system.hold if hold else ())]
