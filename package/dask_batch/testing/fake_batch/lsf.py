"""The commands of LSF."""

from __future__ import annotations

import re
from typing import Any

from .command import blank, options, request
from .queue import Queue, Refused, code_and_signal, over

__all__ = ["run"]

WITH_VALUE = {
    "-J",
    "-o",
    "-e",
    "-cwd",
    "-w",
    "-q",
    "-P",
    "-sp",
    "-U",
    "-W",
    "-n",
    "-R",
    "-M",
    "-gpu",
    "-u",
}
Answer = tuple[str, str, int]


def run(queue: Queue, command: str, arguments: list[str], stdin: str) -> Answer:
    """Do what a command says."""
    given, rest = options(arguments, WITH_VALUE)
    if command == "bsub":
        return _bsub(queue, given, stdin)
    if command == "bjobs":
        fields = re.search(r"exit_reason", " ".join(arguments))
        return "".join(_row(queue, job, bool(fields)) for job in queue.jobs.values()), "", 0
    if command == "bhist":
        wanted = set(rest) | {value for option, value in given if option == "-J"}
        known = [job for job in queue.jobs.values() if over(job)]
        found = [job for job in known if not wanted or {job["id"], job["name"]} & wanted]
        if not found:
            return "", "No matching job found\n", 255
        return "".join(_history(job) for job in found), "", 0
    return _each(queue, command, dict(given), rest)


def _bsub(queue: Queue, given: list[tuple[str, str]], script: str) -> Answer:
    asked = blank(script)
    simple = {"-J": "name", "-o": "out", "-e": "err", "-q": "queue", "-cwd": "cwd"}
    for option, value in request(script, "#BSUB", given, WITH_VALUE):
        if option in simple:
            asked[simple[option]] = value
        elif option == "-H":
            asked["held"] = True
        elif option == "-ti":
            asked["falls"] = True
        elif option == "-n":
            asked["cpus"] = int(value)
        elif option == "-W":
            asked["walltime_s"] = int(value) * 60
        elif option == "-w":
            _condition(asked, value)
    for parent in (*asked["after_ok"], *asked["after_any"], *asked["after_failure"]):
        if parent not in queue.jobs:
            return "", f"{parent}: Dependency condition invalid. Job not submitted.\n", 255
    try:
        job_id = queue.submit(asked)
    except Refused as refused:
        words = {
            "queue": f"{asked['queue']}: No such queue",
            "full": "User <user>: Pending job threshold reached",
        }[str(refused)]
        return "", f"{words}. Job not submitted.\n", 255
    return f"Job <{job_id}> is submitted to queue <{queue.jobs[job_id]['queue']}>.\n", "", 0


def _condition(asked: dict[str, Any], value: str) -> None:
    kinds = {"done": "after_ok", "ended": "after_any", "exit": "after_failure"}
    asked.update({kind: [] for kind in kinds.values()})
    for kind, job_id in re.findall(r"(done|ended|exit)\((\d+)\)", value):
        asked[kinds[kind]].append(job_id)


def _each(queue: Queue, command: str, given: dict[str, str], rest: list[str]) -> Answer:
    """Do something to each of several jobs."""
    said, errors = [], []
    for job_id in rest:
        job = queue.jobs.get(job_id)
        if job is None:
            errors.append(f"Job <{job_id}>: No matching job found\n")
        elif over(job):
            errors.append(f"Job <{job_id}>: Job has already finished\n")
        elif command == "bkill":
            queue.cancel(job_id)
            said.append(f"Job <{job_id}> is being terminated\n")
        elif command == "bresume":
            queue.release(job_id)
            said.append(f"Job <{job_id}> is being resumed\n")
        elif command == "bmod":
            _condition(job, given["-w"])
            said.append(f"Parameters of job <{job_id}> are being changed\n")
    return "".join(said), "".join(errors), 255 if errors else 0


def _end(job: dict[str, Any]) -> tuple[str, str, str]:
    """Return state, exit code and reason of a job that has ended."""
    code, signal = code_and_signal(job)
    reasons = {
        "walltime": "TERM_RUNLIMIT: job killed after reaching LSF run time limit",
        "fell": "TERM_ORPHAN_SYSTEM: The orphan job was automatically terminated by LSF",
        "deleted": "TERM_OWNER: job killed by owner",
    }
    if job["status"] == 0:
        return "DONE", "-", "-"
    return "EXIT", str(128 + signal if signal else code), reasons.get(job["cause"], "-")


def _row(queue: Queue, job: dict[str, Any], with_reason: bool) -> str:
    state = {"waiting": "PSUSP" if job["held"] else "PEND", "running": "RUN"}.get(job["state"])
    word, code, reason = (state, "-", "-") if state else _end(job)
    cells = [job["id"], word, code, job["name"], *([reason] if with_reason else [])]
    return "|".join(cells) + "\n"


def _history(job: dict[str, Any]) -> str:
    word, code, reason = _end(job)
    end = "Done successfully" if word == "DONE" else f"Exited with exit code {code}; {reason}"
    return (
        f"\nJob <{job['id']}>, Job Name <{job['name']}>, User <user>, Project <default>, Comma\n"
        f"                     nd <x>\nSat Nov 28 07:00:00: {end}.\n{'-' * 78}\n"
    )
