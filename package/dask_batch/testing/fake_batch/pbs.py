"""The commands of PBS Professional and of Torque."""

from __future__ import annotations

import json
import os
import pwd
import re
import time
from typing import Any
from xml.sax.saxutils import escape

from .command import blank, number, options, request, seconds
from .queue import Queue, Refused, code_and_signal, over

__all__ = ["depend", "resources", "run"]

WITH_VALUE = {
    "-N",
    "-o",
    "-e",
    "-j",
    "-r",
    "-S",
    "-W",
    "-q",
    "-A",
    "-P",
    "-p",
    "-l",
    "-u",
    "-F",
    "-M",
    "-m",
}
Answer = tuple[str, str, int]
_UNKNOWN, _FINISHED, _NO_QUEUE, _FULL = 153, 35, 170, 188


def run(queue: Queue, command: str, arguments: list[str], stdin: str) -> Answer:
    """Do what a command says."""
    given, rest = options(arguments, WITH_VALUE)
    if command == "qsub":
        return _qsub(queue, given, rest)
    if command == "qstat":
        return _qstat(queue, given, [_number(i) for i in rest])
    if command == "qselect":
        ended = ("-x", "") in given or queue.config["system"] == "torque"
        ids = [job["id"] for job in queue.jobs.values() if ended or not over(job)]
        return "".join(f"{i}.fake\n" for i in ids), "", 0
    return _each(queue, command, given, rest)


def _number(job_id: str) -> str:
    return job_id.partition(".")[0]


def _qsub(queue: Queue, given: list[tuple[str, str]], rest: list[str]) -> Answer:
    with open(rest[0], encoding="utf-8") as file:
        script = file.read()
    asked = blank(script)
    for option, value in request(script, "#PBS", given, WITH_VALUE):
        simple = {"-N": "name", "-o": "out", "-e": "err", "-S": "shell", "-q": "queue"}
        if option in simple:
            asked[simple[option]] = value
        elif option == "-h":
            asked["held"] = True
        elif option == "-l":
            resources(asked, value)
        elif option == "-W":
            depend(asked, value)
    asked["falls"] = True
    if not re.match(r"[A-Za-z]", asked["name"]):
        return "", "qsub: illegal -N value\n", 2
    for parent in (*asked["after_ok"], *asked["after_failure"]):
        if parent not in queue.jobs:
            return "", f"qsub: Unknown Job Id {parent}.fake\n", _UNKNOWN
    try:
        return f"{queue.submit(asked)}.fake\n", "", 0
    except Refused as refused:
        if str(refused) == "queue":
            return "", "qsub: Unknown queue\n", _NO_QUEUE
        user = pwd.getpwuid(os.getuid()).pw_name
        words = "would exceed complex's per-user limit of jobs in 'Q' state"
        if queue.config["system"] == "torque":
            words = f"Maximum number of jobs already in queue MSG=total number of {user}'s jobs"
        return "", f"qsub: {words}\n", _FULL


def resources(asked: dict[str, Any], value: str) -> None:
    """Read what ``-l`` asks for."""
    if walltime := re.search(r"walltime=([\d:]+)", value):
        asked["walltime_s"] = seconds(walltime[1])
    nodes = number(value, r"(?:select|nodes)=(\d+)") or 1
    cpus = number(value, r"(?:ncpus|ppn)=(\d+)")
    asked["cpus"] = nodes * cpus if cpus else asked["cpus"]


def depend(asked: dict[str, Any], value: str) -> None:
    """Read ``depend=``."""
    kinds = {"afterok": "after_ok", "afterany": "after_any", "afternotok": "after_failure"}
    asked.update({kind: [] for kind in kinds.values()})
    for part in value.removeprefix("depend=").split(","):
        kind, *ids = part.split(":")
        asked[kinds[kind]] = [_number(i.removeprefix("Moab.")) for i in ids]


def _each(queue: Queue, command: str, given: list[tuple[str, str]], rest: list[str]) -> Answer:
    """Do something to each of several jobs."""
    errors, code = [], 0
    for job_id in rest:
        job = queue.jobs.get(_number(job_id))
        if job is None:
            errors.append(f"{command}: Unknown Job Id {job_id}\n")
            code = _UNKNOWN
        elif over(job):
            errors.append(f"{command}: Job has finished {job_id}\n")
            code = _FINISHED
        elif command == "qdel":
            queue.cancel(job["id"])
        elif command == "qrls":
            queue.release(job["id"])
        elif command == "qalter":
            for option, value in given:
                if option == "-W":
                    depend(job, value)
    return "", "".join(errors), code


# ---- qstat -----------------------------------------------------------------------------------


def _qstat(queue: Queue, given: list[tuple[str, str]], ids: list[str]) -> Answer:
    torque = queue.config["system"] == "torque"
    if ("--version", "") in given:
        return ("Version: 6.1.2\n", "", 0) if torque else ("", "pbs_version = 22.05.11\n", 0)
    chosen, errors, code = {}, [], 0
    history = torque or ("-x", "") in given
    for job_id in ids:
        job = queue.jobs.get(job_id)
        if job is None:
            errors.append(f"qstat: Unknown Job Id {'Error ' if torque else ''}{job_id}.fake\n")
            code = _UNKNOWN
        elif over(job) and not history:
            errors.append(f"qstat: {job_id}.fake Job has finished, use -x to obtain it\n")
            code = _FINISHED
        else:
            chosen[f"{job_id}.fake"] = _attributes(queue, job)
    if ("-F", "json") in given:
        whole = {"timestamp": int(time.time()), "pbs_version": "22.05.11", "pbs_server": "fake"}
        out = json.dumps({**whole, "Jobs": chosen} if chosen else whole, indent=4) + "\n"
    elif torque and ("-x", "") in given:
        out = _xml(chosen) if chosen else ""
    else:
        out = "".join(_text(job_id, job) for job_id, job in chosen.items())
    return out, "".join(errors), code


def _attributes(queue: Queue, job: dict[str, Any]) -> dict[str, Any]:
    torque = queue.config["system"] == "torque"
    letters = {"waiting": "Q", "running": "R", "ended": "C" if torque else "F"}
    waits = any(job[kind] for kind in ("after_ok", "after_any", "after_failure"))
    held = job["state"] == "waiting" and (job["held"] or waits)
    kinds = ("u" if job["held"] else "") + ("s" if waits else "")
    found: dict[str, Any] = {
        "Job_Name": job["name"],
        "job_state": "H" if held else letters[job["state"]],
        "queue": job["queue"],
        "Hold_Types": kinds if held else "n",
        "Resource_List": {"ncpus": job["cpus"]},
        "Variable_List": {"PBS_O_HOME": "/home/x", "ODD": 'a "b" = c'},
    }
    if job["walltime_s"]:
        found["Resource_List"]["walltime"] = _clock(job["walltime_s"])
    if job["after_ok"]:
        found["depend"] = "afterok:" + ":".join(f"{i}.fake@fake" for i in job["after_ok"])
    if job["started"]:
        found["stime"] = time.ctime(job["started"])
    if over(job):
        found.update(_end(job, torque=torque))
    return found


def _end(job: dict[str, Any], *, torque: bool) -> dict[str, Any]:
    name = "exit_status" if torque else "Exit_status"
    if job["status"] is None:
        why = {"fell": "Job deleted as result of dependency on job x", "deleted": "terminated"}
        return {"comment": why[job["cause"]]}
    code, signal = code_and_signal(job)
    used = {"walltime": _clock(int(job["ended"] - job["started"]))}
    if job["cause"] == "walltime":
        used = {"walltime": _clock(job["walltime_s"] + 1)}
        return {name: 271 if torque else -29, "resources_used": used}
    return {name: 256 + signal if signal else code, "resources_used": used}


def _clock(total: int) -> str:
    return f"{total // 3600:02}:{total // 60 % 60:02}:{total % 60:02}"


def _xml(jobs: dict[str, dict[str, Any]]) -> str:
    def element(name: str, value: Any) -> str:
        if isinstance(value, dict):
            inside = "".join(element(*item) for item in value.items())
        else:
            inside = escape(str(value))
        return f"<{name}>{inside}</{name}>"

    rows = (f"<Job><Job_Id>{i}</Job_Id>{element('x', job)[3:-4]}</Job>" for i, job in jobs.items())
    return f"<Data>{''.join(rows)}</Data>\n"


def _text(job_id: str, job: dict[str, Any]) -> str:
    lines = [f"Job Id: {job_id}"]
    for name, value in job.items():
        if name == "Variable_List":
            lines.append("    Variable_List = " + ",".join(f"{k}={v}" for k, v in value.items()))
        elif isinstance(value, dict):
            lines += [f"    {name}.{key} = {item}" for key, item in value.items()]
        else:
            lines.append(f"    {name} = {value}")
    cut = [line if len(line) < 78 else f"{line[:78]}\n\t{line[78:]}" for line in lines]
    return "\n".join([*cut, "", ""])
