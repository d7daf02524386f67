"""The commands of Grid Engine, as 8.1.9 was seen to behave."""

from __future__ import annotations

import re
from typing import Any
from xml.sax.saxutils import escape

from .command import blank, number, options, request
from .queue import Queue, Refused, code_and_signal, over

__all__ = ["run"]

WITH_VALUE = {
    "-N",
    "-o",
    "-e",
    "-j",
    "-r",
    "-S",
    "-q",
    "-P",
    "-p",
    "-l",
    "-pe",
    "-wd",
    "-hold_jid",
    "-u",
    "-s",
}
Answer = tuple[str, str, int]


def run(queue: Queue, command: str, arguments: list[str], stdin: str) -> Answer:
    """Do what a command says."""
    if command == "qacct":
        return _qacct(queue, arguments[1] if arguments[0] == "-j" else None)
    given, rest = options(arguments, WITH_VALUE)
    if command == "qsub":
        return _qsub(queue, given, rest)
    if command == "qstat":
        return _qstat(queue), "", 0
    return _each(queue, command, dict(given), ",".join(rest).split(","))


def _qsub(queue: Queue, given: list[tuple[str, str]], rest: list[str]) -> Answer:
    with open(rest[0], encoding="utf-8") as file:
        script = file.read()
    asked = blank(script)
    simple = {"-N": "name", "-S": "shell", "-q": "queue", "-wd": "cwd"}
    for option, value in request(script, "#$", given, WITH_VALUE):
        if option in simple:
            asked[simple[option]] = value
        elif option in ("-o", "-e"):
            asked["out" if option == "-o" else "err"] = value.removeprefix(":")
        elif option == "-h":
            asked["held"] = True
        elif option == "-hold_jid":
            asked["after_any"] = value.split(",")
        elif option == "-l":
            asked["walltime_s"] = number(value, r"h_rt=(\d+)") or asked["walltime_s"]
    slots = re.search(r"^#\$ -pe \S+ (\d+)", script, re.MULTILINE)
    asked["cpus"] = int(slots[1]) if slots else 1
    if asked["name"][0].isdigit():
        words = f'denied: "{asked["name"]}" is not a valid object name (cannot start with a digit)'
        return "", f"Unable to run job: {words}\nExiting.\n", 1
    try:
        return f"{queue.submit(asked)}\n", "", 0
    except Refused as refused:
        name = asked["queue"]
        words = {
            "queue": f'Job was rejected because job requests unknown queue "{name}"',
            "full": f"job rejected: only {queue.config['max_jobs']} jobs are allowed per user",
        }[str(refused)]
        return "", f"Unable to run job: {words}\nExiting.\n", 1


def _each(queue: Queue, command: str, given: dict[str, str], ids: list[str]) -> Answer:
    """Do something to each of several jobs; Grid Engine talks on stdout, even when it refuses."""
    said, code = [], 0
    for job_id in ids:
        job = queue.jobs.get(job_id)
        if job is None or over(job):
            said.append(f'denied: job "{job_id}" does not exist\n')
            code = 1
        elif command == "qdel":
            running = job["state"] == "running"
            queue.cancel(job_id)
            words = f"registered the job {job_id} for deletion" if running else "deleted job"
            said.append(f"root has {words}\n")
        elif command == "qrls":
            queue.release(job_id)
            said.append(f"modified hold of job {job_id}\n")
        elif command == "qalter":
            job["after_any"] = given["-hold_jid"].split(",")
            said.append(f"modified job id hold list of job {job_id}\n")
    return "".join(said), "", code


def _qstat(queue: Queue) -> str:
    rows = []
    for job in queue.jobs.values():
        waits = [i for i in job["after_any"] if i in queue.jobs and not over(queue.jobs[i])]
        state = {"waiting": "qw", "running": "r", "ended": "z"}[job["state"]]
        if state == "qw" and (job["held"] or waits):
            state = "hqw"
        more = f"      <predecessor_jobs>{','.join(waits)}</predecessor_jobs>\n" if waits else ""
        rows.append(
            f'    <job_list state="{job["state"]}">\n'
            f"      <JB_job_number>{job['id']}</JB_job_number>\n"
            f"      <JB_name>{escape(job['name'])}</JB_name>\n"
            f"      <state>{state}</state>\n"
            f"      <full_job_name>{escape(job['name'])}</full_job_name>\n{more}"
            "    </job_list>\n"
        )
    inside = f"  <queue_info>\n  </queue_info>\n  <job_info>\n{''.join(rows)}  </job_info>\n"
    return f"<?xml version='1.0'?>\n<job_info>\n{inside}</job_info>\n"


def _qacct(queue: Queue, wanted: str | None) -> Answer:
    """Tell what is in the books: only what has run."""
    found = [
        job
        for job in queue.jobs.values()
        if wanted in (None, job["id"], job["name"]) and over(job) and job["status"] is not None
    ]
    if not found and wanted is not None:
        what = "id" if wanted.isdecimal() else "name"
        return "", f"error: job {what} {wanted} not found\n", 1
    return "".join(_record(job) for job in found), "", 0


def _record(job: dict[str, Any]) -> str:
    code, signal = code_and_signal(job)
    failed = {"walltime": "37  : qmaster enforced h_rt, h_cpu, or h_vmem limit"}.get(
        job["cause"], "100 : assumedly after job" if signal else "0"
    )
    code = 128 + signal if signal else code
    limit = job["walltime_s"]
    ran = limit if job["cause"] == "walltime" else int(job["ended"] - job["started"])
    return (
        f"{'=' * 62}\n"
        f"qname        {job['queue']}\njobname      {job['name']}\njobnumber    {job['id']}\n"
        f"failed       {failed}\nexit_status  {code}\nru_wallclock {ran}s\n"
        f"category     {f'-l h_rt={limit}' if limit else 'NONE'}\n"
    )
