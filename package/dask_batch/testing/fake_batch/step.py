"""Run one job to its end, write that down, and start what may start then.

A program of its own: jobs run while no command does.
"""

from __future__ import annotations

import os
import pwd
import signal
import time
from typing import Any

from .queue import kill, opened

__all__ = ["main"]

POLL_S = 0.02
KILL_WAIT_S = 1.0
"""After so long SIGKILL follows a SIGTERM."""
IDS = {
    "pbs": ("PBS_JOBID", "{}.fake"),
    "torque": ("PBS_JOBID", "{}.fake"),
    "sge": ("JOB_ID", "{}"),
    "lsf": ("LSB_JOBID", "{}"),
    "moab": ("MOAB_JOBID", "Moab.{}"),
}


def main(folder: str, job_id: str) -> None:
    """Run a job."""
    with opened(folder) as queue:
        job, config = dict(queue.job(job_id)), queue.config
    pid = os.fork()
    if pid == 0:
        _become(folder, job, config["system"])
    status, cause = _watch(folder, job, config, pid)
    kill(pid, signal.SIGKILL)  # what it left behind
    with opened(folder) as queue:
        queue.ran(job_id, status, cause)


def _watch(folder: str, job: dict[str, Any], config: dict[str, Any], pid: int) -> tuple[int, str]:
    """Wait for the end of a process, or bring it about."""
    began, cause, killed_at = time.monotonic(), "", 0.0
    limit_s = job["walltime_s"] and job["walltime_s"] * config["second_s"]
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status, cause
        now = time.monotonic()
        if not cause and os.path.exists(f"{folder}/{job['id']}.deleted"):
            cause, killed_at = "deleted", now + KILL_WAIT_S
            kill(pid, signal.SIGTERM)
        if not cause and limit_s and now - began > limit_s:
            cause, killed_at = "walltime", now + KILL_WAIT_S
            kill(pid, signal.SIGTERM)
        if cause and now > killed_at:
            kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)


def _become(folder: str, job: dict[str, Any], system: str) -> None:
    """Turn this forked process into the job; never returns."""
    try:
        os.setsid()
        user = pwd.getpwuid(os.getuid())
        variable, form = IDS[system]
        environment = {
            "HOME": user.pw_dir,
            "LOGNAME": user.pw_name,
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "SHELL": "/bin/sh",
            "USER": user.pw_name,
            variable: form.format(job["id"]),
        }
        os.chdir(job["cwd"] if os.path.isdir(job["cwd"]) else "/tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        streams = [
            os.open("/dev/null", os.O_RDONLY),
            os.open(job["out"], flags, 0o666),
            os.open(job["err"], flags, 0o666),
        ]
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
        for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.execve(job["shell"], [job["shell"], f"{folder}/{job['id']}.sh"], environment)
    finally:
        os._exit(1)
