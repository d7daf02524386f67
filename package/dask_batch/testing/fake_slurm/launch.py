"""Starting, signalling and seeing the end of the processes of jobs."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from . import processes
from .records import JobRecord
from .step import write

__all__ = ["ended", "exported", "leader", "log_path", "say", "send", "send_one", "start", "sweep"]

_STEP = str(Path(__file__).with_name("step.py"))
_KEPT_BY_NONE = ("HOME", "LOGNAME", "PATH", "SHELL", "USER", "LANG")


def start(job: JobRecord) -> None:
    """Start a job's step; the job's allocation has been made."""
    job.runs += 1
    folder = Path(job.folder)
    order = {
        "arguments": job.arguments,
        "append": job.append,
        "cwd": job.cwd,
        "environment": _environment(job),
        "script": str(folder / "script"),
        "stderr": log_path(job, job.stderr),
        "stdin": job.stdin,
        "stdout": log_path(job, job.stdout),
        "umask": job.umask,
    }
    write(str(folder / f"order.{job.runs}"), json.dumps(order))
    step = subprocess.Popen(
        [sys.executable, "-I", "-S", _STEP, str(folder), str(job.runs)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    step.returncode = 0  # it is reaped with all other children; Popen must not warn of it
    job.step = step.pid


def ended(job: JobRecord) -> int | None:
    """Return how the present run ended, as wait(2) says it; None as long as it goes on."""
    end = Path(job.folder) / f"end.{job.runs}"
    if end.exists():
        return int(end.read_text())
    if processes.alive(job.step):
        return None
    # Between the two looks it may have ended well.
    return int(end.read_text()) if end.exists() else int(signal.SIGKILL)


def leader(job: JobRecord) -> int | None:
    """Return the process id of the script, once there is one."""
    try:
        return int((Path(job.folder) / f"pid.{job.runs}").read_text())
    except FileNotFoundError:
        return None


def send(job: JobRecord, number: signal.Signals, *, step_too: bool = False) -> bool:
    """Signal a running job's processes; returns whether there were any.

    With ``step_too`` as when its node is gone: nobody is left to write down an end.
    """
    if (Path(job.folder) / f"end.{job.runs}").exists():
        return False  # its numbers may be other processes' by now
    pid = leader(job)
    if step_too:
        processes.signal_all(job.step, number)  # the script, too, which may have no number yet
    if pid is None:
        return False
    processes.signal_all(pid, number)
    return True


def sweep(job: JobRecord) -> None:
    """Kill what the script left behind: a job's end is the end of all its processes."""
    pid = leader(job)
    if pid is not None:
        processes.signal_all(pid, signal.SIGKILL)


def send_one(pid: int, number: int) -> None:
    """Signal one process."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # it ended by itself
        pass


def say(job: JobRecord, text: str, *, by_name: bool = True) -> None:
    """Append what slurmstepd says of a job's end to its stderr, if that is there.

    It begins with its name, or else, as from 25.05 on, with the time.
    """
    path = os.path.join(job.cwd, log_path(job, job.stderr))
    node = next(iter(job.allocation), "n1")
    when = time.strftime("%Y-%m-%dT%H:%M:%S")
    who = f"slurmstepd-{node}:" if by_name else f"[{when}.000]"
    line = f"{who} error: *** JOB {job.job_id} ON {node} CANCELLED AT {when}{text} ***"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    except OSError:  # it could not be opened, or is gone: then there is nowhere to say it
        return
    with open(handle, "w", encoding="utf-8") as file:
        file.write(f"{line}\n")


def log_path(job: JobRecord, pattern: str) -> str:
    """Replace what begins with ``%``; a backslash anywhere switches that off (Slurm 22.05)."""
    if "\\" in pattern:
        return re.sub(r"\\(.)", r"\1", pattern)
    known = {
        "%": "%",
        "A": str(job.job_id),
        "J": str(job.job_id),
        "N": next(iter(job.allocation), "n1"),
        "j": str(job.job_id),
        "n": "0",
        "t": "0",
        "u": pwd.getpwuid(job.uid).pw_name,
        "x": job.name,
    }

    def replaced(match: re.Match[str]) -> str:
        value = known.get(match[2], match[0])
        return value.zfill(int(match[1])) if match[1] and value.isdecimal() else value

    return re.sub(r"%(\d*)(.)", replaced, pattern)


def _environment(job: JobRecord) -> dict[str, str]:
    """Return the environment of submission with what Slurm adds to it."""
    given: dict[str, str] = json.loads((Path(job.folder) / "environment").read_text())
    nodes = list(job.allocation)
    name = pwd.getpwuid(job.uid).pw_name
    cpus = [share[0] for share in job.allocation.values()]
    gpus = next(iter(job.allocation.values()))[2:]
    added: dict[str, Any] = {
        "ENVIRONMENT": "BATCH",
        "SLURMD_NODENAME": nodes[0],
        "SLURM_CLUSTER_NAME": "fake",
        "SLURM_CPUS_ON_NODE": cpus[0],
        "SLURM_GTIDS": 0,
        "SLURM_JOBID": job.job_id,
        "SLURM_JOB_ACCOUNT": job.account,
        "SLURM_JOB_CPUS_PER_NODE": ",".join(str(count) for count in cpus),
        "SLURM_JOB_GID": pwd.getpwuid(job.uid).pw_gid,
        "SLURM_JOB_ID": job.job_id,
        "SLURM_JOB_NAME": job.name,
        "SLURM_JOB_NODELIST": ",".join(nodes),
        "SLURM_JOB_NUM_NODES": len(nodes),
        "SLURM_JOB_PARTITION": job.partition,
        "SLURM_JOB_QOS": "normal",
        "SLURM_JOB_UID": job.uid,
        "SLURM_JOB_USER": name,
        "SLURM_LOCALID": 0,
        "SLURM_NNODES": len(nodes),
        "SLURM_NODEID": 0,
        "SLURM_NODELIST": ",".join(nodes),
        "SLURM_PROCID": 0,
        "SLURM_SUBMIT_DIR": job.cwd,
        "SLURM_TASKS_PER_NODE": job.tasks,
        **job.variables,
    }
    if gpus:
        added["CUDA_VISIBLE_DEVICES"] = ",".join(str(number) for number in gpus)
    if job.restarts:
        added["SLURM_RESTART_COUNT"] = job.restarts
    return {**given, **{name: str(value) for name, value in added.items()}}


def exported(environment: dict[str, str], export: str) -> dict[str, str]:
    """Return what ``--export`` lets through: all, nothing but the user's own, or what it names."""
    if export in ("", "ALL", "yes"):
        return environment
    kept = {name: environment[name] for name in _KEPT_BY_NONE if name in environment}
    for word in export.split(","):
        name, given, value = word.partition("=")
        if name == "ALL":
            kept = {**environment, **kept}
        elif given:
            kept[name] = value
        elif name in environment:
            kept[name] = environment[name]
    return kept
