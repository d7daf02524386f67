"""``scontrol``: show, hold, release, requeue, update."""

from __future__ import annotations

import pwd
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import dependencies, launch, versions
from .queue import Queue
from .records import JobRecord, exit_pair
from .requests import Refusal, memory_mb, minutes
from .squeue import stamp

__all__ = ["scontrol"]

_INVALID = "Invalid job id specified"
_FINISHED = "Job has already finished"
_PENDING = "Job is pending execution"
_RUNNING = "Job is no longer pending execution"
_DISABLED = "Requested operation is presently disabled"


def scontrol(queue: Queue, request: Mapping[str, Any]) -> dict[str, Any]:
    """Do what one call of ``scontrol`` says.

    Raises
    ------
    Refusal
        Slurm's words; what could be done for other jobs of the call has been done.
    """
    words = list(request["arguments"])
    flags = {word for word in words if word.startswith("-")}
    words = [word for word in words if not word.startswith("-")]
    if flags & {"--version", "-V"}:
        return {"out": versions.said(queue.config)}
    keyword, *rest = words or [""]
    if keyword == "show":
        return {"out": _show(queue, rest, one_line=bool(flags & {"-o", "--oneliner"}))}
    if keyword == "ping":
        return {"out": "Slurmctld(primary) at localhost is UP\n"}
    if keyword == "update":
        return _update(queue, rest)
    action = _ACTIONS.get(keyword)
    if action is None:
        raise Refusal(f"invalid keyword: {keyword}", prefix="")
    _for_each(queue, rest, action, named=keyword in ("hold", "release"))
    return {"out": ""}


def _for_each(
    queue: Queue,
    words: Sequence[str],
    action: Callable[[Queue, JobRecord], str],
    *,
    named: bool,
) -> None:
    """Do something for each job; what went wrong is said for each, and once more at the end."""
    problems = []
    for word in ",".join(words).split(","):
        job = queue.jobs.get(int(word)) if word.isdecimal() else None
        problem = action(queue, job) if job else _INVALID
        if problem:
            problems.append((problem, word))
    queue.changed = True
    if problems:
        lines = [f"{problem} for job {word}" for problem, word in problems]
        if named:
            lines.append(_heading(queue, problems[-1][0], several="," in "".join(words)))
        raise Refusal("\n".join(lines), prefix="")


def _heading(queue: Queue, problem: str, *, several: bool) -> str:
    if not versions.since(queue.config, 25, 5):
        return f"slurm_suspend error: {problem}"
    return "slurm_suspend error" if several else f"slurm_suspend error:{problem}"


def _hold(queue: Queue, job: JobRecord) -> str:
    if not job.active:
        return _FINISHED
    if job.state == "PENDING":
        job.held, job.reason = True, "JobHeldUser"
        queue.account(job)
    return ""


def _release(queue: Queue, job: JobRecord) -> str:
    if not job.active:
        return _FINISHED
    if job.state == "PENDING" and job.held:
        job.held, job.reason = False, "None"
        queue.account(job)
    return ""


def _requeue(queue: Queue, job: JobRecord, *, hold: bool = False) -> str:
    if job.state == "PENDING":
        return _PENDING
    if not job.requeue:
        return _DISABLED
    if job.state == "RUNNING":
        job.again = "hold" if hold else "requeue"
        queue.terminate(job, "REQUEUED")
    else:
        queue.requeue(job, hold=hold)
    return ""


_ACTIONS: Mapping[str, Callable[[Queue, JobRecord], str]] = {
    "hold": _hold,
    "release": _release,
    "requeue": _requeue,
    "requeuehold": lambda queue, job: _requeue(queue, job, hold=True),
}


def _update(queue: Queue, words: Sequence[str]) -> dict[str, Any]:
    """Change what was requested; of a job that is over only a dependency is out of reach."""
    pairs = [word.partition("=")[::2] for word in words]
    settings = {name.lower(): value for name, value in pairs}
    ids = settings.pop("jobid", settings.pop("job", ""))
    for name, value in pairs:
        if name.lower() not in {*_CHANGES, "jobid", "job"}:
            text = f"Update of this parameter is not supported: {name}={value}\nRequest aborted"
            raise Refusal(text, prefix="")

    def change(queue: Queue, job: JobRecord) -> str:
        for name, value in settings.items():
            problem = _CHANGES[name](queue, job, value)
            if problem:
                return problem
        queue.account(job)
        return ""

    _for_each(queue, [ids], change, named=False)
    return {"out": ""}


def _set_dependency(queue: Queue, job: JobRecord, text: str) -> str:
    if job.state != "PENDING":
        return _RUNNING if job.active else _FINISHED
    try:
        dependency = queue.dependency(text)
    except dependencies.DependencyProblem:
        return "Job dependency problem"
    if job.job_id in dependencies.parents(dependency):
        return "Job dependency problem"
    job.dependency = dependency
    if not job.held:
        job.reason = "None"
    return ""


def _set_memory(queue: Queue, job: JobRecord, text: str) -> str:
    if job.state != "PENDING":
        return _RUNNING if job.active else _FINISHED
    size = memory_mb(text)
    if size > queue.config["memory_mb"]:
        return "Requested node configuration is not available"
    job.memory_mb = size
    job.variables = {**job.variables, "SLURM_MEM_PER_NODE": str(size)}
    return ""


def _set_time(queue: Queue, job: JobRecord, text: str) -> str:
    if not job.active:
        return _FINISHED
    limit = minutes(text)
    if limit > queue.config["partitions"][job.partition]:
        return "Requested time limit is invalid (missing or exceeds some limit)"
    job.limit_min = limit
    return ""


def _set_start(queue: Queue, job: JobRecord, text: str) -> str:
    if job.state != "PENDING":
        return _RUNNING if job.active else _FINISHED
    job.begin = 0.0 if text == "now" else time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    return ""


def _set_nice(queue: Queue, job: JobRecord, text: str) -> str:
    job.nice = int(text or 100)
    return ""


_CHANGES: Mapping[str, Callable[[Queue, JobRecord, str], str]] = {
    "dependency": _set_dependency,
    "minmemorynode": _set_memory,
    "nice": _set_nice,
    "starttime": _set_start,
    "timelimit": _set_time,
}


def _show(queue: Queue, words: Sequence[str], *, one_line: bool) -> str:
    kind, *ids = words or ["job"]
    if kind.startswith("config"):
        return "".join(f"{name:<24}= {value}\n" for name, value in _config(queue).items())
    if not kind.startswith("job"):
        raise Refusal(f"invalid entity: {kind} for keyword: show", prefix="")
    if ids and not (ids[0].isdecimal() and int(ids[0]) in queue.jobs):
        raise Refusal(f"slurm_load_jobs error: {_INVALID}", prefix="")
    jobs = [queue.jobs[int(ids[0])]] if ids else queue.each(lambda job: True)
    if not jobs:
        return "No jobs in the system\n"
    return "".join(_described(job, "" if one_line else "\n  ") for job in jobs)


def _config(queue: Queue) -> dict[str, object]:
    config = queue.config
    kind = "accounting_storage/slurmdbd" if config["accounting"] else "accounting_storage/none"
    return {
        "AccountingStorageType": kind,
        "ClusterName": "fake",
        "JobRequeue": 1,
        "KillWait": f"{config['kill_wait_s']:.0f} sec",
        "MaxArraySize": 1001,
        "MaxJobCount": 10000,
        "MessageTimeout": f"{config['message_timeout_s']:.0f} sec",
        "MinJobAge": f"{config['min_job_age_s']:.0f} sec",
        "SLURM_VERSION": config["version"],
    }


def _described(job: JobRecord, newline: str) -> str:
    user = f"{pwd.getpwuid(job.uid).pw_name}({job.uid})"
    hours, minute = divmod(int(job.limit_min), 60)
    days, hour = divmod(hours, 24)
    limit = f"{f'{days}-' if days else ''}{hour:02}:{minute:02}:00"
    seconds = int(job.run_time_s)
    run_time = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    lines = [
        f"JobId={job.job_id} JobName={job.name}",
        f"UserId={user} GroupId={user} MCS_label=N/A",
        f"Priority={0 if job.held else 4294901760 - job.job_id} Nice={job.nice} "
        f"Account={job.account} QOS=normal",
        f"JobState={job.word} Reason={job.reason} Dependency={job.dependency or '(null)'}",
        f"Requeue={int(job.requeue)} Restarts={job.restarts} BatchFlag=1 Reboot=0 "
        f"ExitCode={exit_pair(job)}",
        f"RunTime={run_time} TimeLimit={limit} TimeMin=N/A",
        f"SubmitTime={stamp(job.submitted)} EligibleTime={stamp(job.begin, 'Unknown')}",
        f"StartTime={stamp(job.started or job.begin, 'Unknown')} "
        f"EndTime={stamp(job.ended, 'Unknown')} Deadline=N/A",
        f"Partition={job.partition} AllocNode:Sid=localhost:1",
        f"NodeList={','.join(job.allocation)}",
        f"NumNodes={job.nodes} NumCPUs={job.cpus} NumTasks={job.tasks} "
        f"CPUs/Task={job.cpus_per_task} ReqB:S:C:T=0:0:*:*",
        f"MinCPUsNode={job.cpus_per_task} MinMemoryNode={job.memory_mb}M MinTmpDiskNode=0",
        f"Command={job.command}",
        f"WorkDir={job.cwd}",
        f"StdErr={launch.log_path(job, job.stderr)}",
        f"StdIn={job.stdin}",
        f"StdOut={launch.log_path(job, job.stdout)}",
        "Power= KillOInInvalidDependent=Yes" if job.kill_on_invalid else "Power=",
    ]
    return f"{newline} ".join(lines) + (" \n" if not newline else "\n\n")
