"""The commands of Moab."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import quoteattr

from .command import blank, options, request
from .pbs import depend, resources
from .queue import Queue, Refused, code_and_signal, over

__all__ = ["run"]

WITH_VALUE = {"-N", "-o", "-e", "-S", "-l", "-q", "-A", "-p", "-j", "-u", "-w"}
Answer = tuple[str, str, int]


def run(queue: Queue, command: str, arguments: list[str], stdin: str) -> Answer:
    """Do what a command says."""
    if command == "mjobctl":
        return _mjobctl(queue, arguments)
    given, rest = options(arguments, WITH_VALUE)
    if command == "msub":
        return _msub(queue, given, rest)
    completed = ("-c", "") in given
    rows = [_row(job) for job in queue.jobs.values() if over(job) == completed]
    return f"<Data><queue>{''.join(rows)}</queue></Data>\n", "", 0


def _msub(queue: Queue, given: list[tuple[str, str]], rest: list[str]) -> Answer:
    with open(rest[0], encoding="utf-8") as file:
        script = file.read()
    asked = blank(script)
    simple = {"-N": "name", "-o": "out", "-e": "err", "-S": "shell", "-q": "queue"}
    for option, value in request(script, "#MSUB", given, WITH_VALUE):
        if option in simple:
            asked[simple[option]] = value
        elif option == "-h":
            asked["held"] = True
        elif option == "-l" and value.startswith("depend="):
            depend(asked, value)
        elif option == "-l":
            resources(asked, value)
    asked["falls"] = True
    for parent in asked["after_ok"]:
        if parent not in queue.jobs:
            return "", f"ERROR:    invalid job id in dependency: Moab.{parent}\n", 1
    try:
        return f"\nMoab.{queue.submit(asked)}\n", "", 0
    except Refused as refused:
        words = {
            "queue": f"ERROR:    invalid class/queue {asked['queue']!r} specified",
            "full": "ERROR:    job violates MAXJOB: maximum number of jobs exceeded",
        }[str(refused)]
        return "", f"{words}\n", 1


def _mjobctl(queue: Queue, arguments: list[str]) -> Answer:
    job_id = arguments[-1].removeprefix("Moab.")
    job = queue.jobs.get(job_id)
    if job is None or over(job):
        return "", f"ERROR:  invalid job id '{arguments[-1]}'\n", 1
    if arguments[0] == "-c":
        queue.cancel(job_id)
        return f"job '{arguments[-1]}' cancelled\n", "", 0
    queue.release(job_id)
    return "holds modified for job\n", "", 0


def _row(job: dict[str, Any]) -> str:
    state = {"waiting": "UserHold" if job["held"] else "Idle", "running": "Running"}
    code = ""
    if over(job):
        number, signal = code_and_signal(job)
        done = f"CNCLD({256 + signal})" if job["cause"] else str(256 + signal if signal else number)
        code = f" CompletionCode={quoteattr(done)}"
    word = state.get(job["state"], "Removed" if job["cause"] else "Completed")
    name = quoteattr(job["name"])
    return f'<job JobID="Moab.{job["id"]}" JobName={name} State="{word}"{code}></job>'
