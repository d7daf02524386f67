"""``sbatch``: what is taken, what is refused, and with which words."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import dependencies, faults, launch, nodes, versions
from .queue import Queue
from .records import JobRecord
from .requests import Refusal, memory_mb, minutes, options_of, parsed

__all__ = ["sbatch"]

_FAILED = "Batch job submission failed: "
_NO_SCRIPT = (
    "This does not look like a batch script.  The first\n"
    "line must start with #! followed by the path to an interpreter.\n"
    "For instance: #!/bin/sh"
)
_FULL = (
    f"{_FAILED}Job violates accounting/QOS policy (job submit limit, user's size and/or time "
    "limits)"
)


def sbatch(queue: Queue, request: Mapping[str, Any]) -> dict[str, Any]:
    """Take in a job or refuse it.

    Raises
    ------
    Refusal
        With sbatch's own words.
    """
    arguments = request["arguments"]
    options, rest = parsed(arguments)
    if "version" in options:
        return {"out": versions.said(queue.config)}
    if "wrap" in options:
        script = f"#!/bin/sh\n# This script was created by sbatch --wrap.\n\n{options['wrap']}\n"
    elif rest:
        script = _read(os.path.join(request["cwd"], rest[0]), rest[0])
    elif request["stdin"] is None:
        return {"stdin": True}
    else:
        script = request["stdin"]
    if not script.startswith("#!"):
        raise Refusal(_NO_SCRIPT)
    options = options_of(arguments, script, request["environment"])
    job = _record(queue, options, request, rest)
    _check(queue, job)
    setting = faults.settings(queue.folder)
    unfinished = sum(other.active for other in queue.jobs.values() if other.uid == job.uid)
    if setting["max_submit"] is not None and unfinished >= setting["max_submit"]:
        raise Refusal("\n".join(filter(None, [setting["limit_name"], _FULL])))
    if unfinished >= setting["max_job_count"] or faults.unable(queue.folder):
        return {"again": True}
    _keep(job, script, launch.exported(request["environment"], options.get("export", "ALL")))
    queue.add(job)
    if "parsable" in options:
        return {"out": f"{job.job_id}\n"}
    return {"out": f"Submitted batch job {job.job_id}\n"}


def _read(path: str, named: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        raise Refusal(f"Unable to open file {named}") from None


def _keep(job: JobRecord, script: str, environment: Mapping[str, str]) -> None:
    """Keep a copy of the script and the environment, as slurmctld does."""
    folder = Path(job.folder)
    folder.mkdir(parents=True)
    path = folder / "script"
    path.write_text(script, encoding="utf-8", errors="surrogateescape")
    path.chmod(0o700)
    (folder / "environment").write_text(json.dumps(dict(environment)))


def _whole(options: Mapping[str, str], name: str, default: int) -> int:
    text = options.get(name)
    if text is None:
        return default
    if not text.split("-")[0].isdecimal():
        raise Refusal(f'Invalid numeric value "{text}" for --{name}.')
    return int(text.split("-")[0])


def _gpus(options: Mapping[str, str], tasks: int) -> int:
    """Count the GPUs on a node: of one node all, of several those of each."""
    if "gres" in options:
        match = re.fullmatch(r"gpu(?::[a-z]\w*)?(?::(\d+))?", options["gres"])
        if not match:
            raise Refusal("Invalid generic resource (gres) specification")
        return int(match[1] or 1)
    if "gpus-per-task" in options:
        return _whole(options, "gpus-per-task", 0) * tasks
    return _whole(options, "gpus-per-node", _whole(options, "gpus", 0))


def _record(
    queue: Queue, options: Mapping[str, str], request: Mapping[str, Any], rest: list[str]
) -> JobRecord:
    config = queue.config
    partition = _partition(options.get("partition", ""), config["partitions"])
    most = config["partitions"][partition]
    count = _whole(options, "nodes", 1)
    tasks = max(_whole(options, "ntasks", count), count)
    per_task = _whole(options, "cpus-per-task", 1)
    stdout = options.get("output", "slurm-%j.out")
    cpus = math.ceil(tasks * per_task / count)
    per_cpu = memory_mb(options.get("mem-per-cpu", "200"), "--mem-per-cpu")
    try:
        dependency = queue.dependency(options.get("dependency", ""))
    except dependencies.DependencyProblem:
        raise Refusal(f"{_FAILED}Job dependency problem") from None
    cwd = os.path.join(request["cwd"], options.get("chdir", ""))
    job_id = queue.free_id()
    return JobRecord(
        job_id=job_id,
        folder=str(queue.folder / "jobs" / f"{job_id}-{time.time_ns():x}"),
        name=options.get("job-name") or (os.path.basename(rest[0]) if rest else "wrap"),
        uid=request["uid"],
        account=options.get("account") or (config["accounts"] or ["test"])[0],
        partition=partition,
        cwd=cwd.rstrip("/") or "/",
        command=" ".join([os.path.join(request["cwd"], rest[0]), *rest[1:]]) if rest else "(null)",
        arguments=rest[1:],
        stdin=options.get("input", "/dev/null"),
        stdout=stdout,
        stderr=options.get("error", stdout),
        append=options.get("open-mode", "truncate").startswith("a"),
        umask=request["umask"],
        tasks=tasks,
        cpus_per_task=per_task,
        nodes=count,
        memory_mb=memory_mb(options["mem"]) if "mem" in options else per_cpu * cpus,
        gpus=_gpus(options, math.ceil(tasks / count)),
        exclusive="exclusive" in options,
        limit_min=minutes(options["time"]) if "time" in options else most,
        nice=_nice(options.get("nice")),
        comment=options.get("comment", ""),
        requeue="no-requeue" not in options,
        kill_on_invalid=options.get("kill-on-invalid-dep", "no").lower() in ("yes", "y"),
        signal=options.get("signal", ""),
        dependency=dependency,
        held="hold" in options,
        reason="JobHeldUser" if "hold" in options else "None",
        begin=_begin(options.get("begin", "now")),
        variables=_variables(options),
    )


def _partition(text: str, partitions: Mapping[str, Any]) -> str:
    """Return the first one that was asked for; all of them must exist."""
    for name in text.split(",") if text else []:
        if name not in partitions:
            raise Refusal(
                f"invalid partition specified: {text}\n{_FAILED}Invalid partition name specified"
            )
    return text.split(",")[0] or next(iter(partitions))


def _nice(text: str | None) -> int:
    if text is None:
        return 0
    return 100 if text == "yes" else int(text)


def _begin(text: str) -> float:
    match = re.fullmatch(r"now(?:\+(\d+)(seconds?|minutes?|hours?|days?)?)?", text)
    if not match:
        refusal = Refusal("Invalid --begin specification", 255)
        refusal.stderr = f"Invalid time specification (pos=0): {text}\n{refusal.stderr}"
        raise refusal
    unit = {"m": 60, "h": 3600, "d": 86400}.get((match[2] or "s")[0], 1)
    return time.time() + int(match[1]) * unit if match[1] else 0.0


def _variables(options: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are set only where the request names a number."""
    found = {}
    for option, names in (
        ("ntasks", ("SLURM_NTASKS", "SLURM_NPROCS")),
        ("cpus-per-task", ("SLURM_CPUS_PER_TASK",)),
        ("gpus-per-task", ("SLURM_GPUS_PER_TASK",)),
    ):
        if option in options:
            found.update(dict.fromkeys(names, options[option]))
    if "mem" in options:
        found["SLURM_MEM_PER_NODE"] = str(memory_mb(options["mem"]))
    else:
        found["SLURM_MEM_PER_CPU"] = str(memory_mb(options.get("mem-per-cpu", "200")))
    return found


def _check(queue: Queue, job: JobRecord) -> None:
    """Refuse what could never run."""
    config = queue.config
    if config["accounts"] and job.account not in config["accounts"]:
        raise Refusal(f"{_FAILED}Invalid account or account/partition combination specified")
    most = config["partitions"][job.partition]
    if job.limit_min > most:
        raise Refusal(f"{_FAILED}Requested time limit is invalid (missing or exceeds some limit)")
    if job.cpus > config["cpus"] * config["nodes"]:
        raise Refusal(f"{_FAILED}More processors requested than permitted")
    if job.memory_mb > config["memory_mb"]:
        raise Refusal(
            "Memory specification can not be satisfied\n"
            f"{_FAILED}Requested node configuration is not available"
        )
    if job.cpus_per_task > config["cpus"]:
        raise Refusal(
            "CPU count per node can not be satisfied\n"
            f"{_FAILED}Requested node configuration is not available"
        )
    if nodes.allocate(job, nodes.free(config, []), config) is None:
        raise Refusal(f"{_FAILED}Requested node configuration is not available")
