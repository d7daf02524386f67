"""A command of a batch system: writes down the call, fails if it is to, and does what it says."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import re
import shlex
import sys
import time
from typing import Any

from .queue import opened

__all__ = ["main", "options", "request"]

DIALECTS = {"pbs": "pbs", "torque": "pbs", "sge": "sge", "lsf": "lsf", "moab": "moab"}


def main(folder: str, command: str, arguments: list[str]) -> int:
    """Be a command; returns the exit code."""
    call = {"time": time.time(), "command": command, "arguments": arguments}
    handle = os.open(f"{folder}/calls.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(handle, (json.dumps(call) + "\n").encode())
    os.close(handle)
    fault = _fault(folder, command)
    if fault and not fault["after"]:
        sys.stderr.write(fault["text"])
        return int(fault["code"])
    stdin = sys.stdin.read() if command == "bsub" else ""
    with opened(folder) as queue:
        module = importlib.import_module(f".{DIALECTS[queue.config['system']]}", __package__)
        out, error, code = module.run(queue, command, arguments, stdin)
    if fault:
        out, error, code = "", fault["text"], fault["code"]
    sys.stderr.write(error)
    sys.stdout.write(out)
    return int(code)


def _fault(folder: str, command: str) -> dict[str, Any] | None:
    """Take the next fault that a command is to suffer."""
    with open(f"{folder}/faults.json", "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        faults = json.load(file)
        for fault in faults:
            if fault["command"] == command and fault["times"] > 0:
                fault["times"] -= 1
                file.seek(0)
                file.truncate()
                json.dump(faults, file)
                return dict(fault)
    return None


def options(arguments: list[str], with_value: set[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Split arguments into options and the rest."""
    found, rest, index = [], [], 0
    while index < len(arguments):
        word = arguments[index]
        if word in with_value and index + 1 < len(arguments):
            found.append((word, arguments[index + 1]))
            index += 1
        elif word.startswith("-") and word != "-":
            found.append((word, ""))
        else:
            rest.append(word)
        index += 1
    return found, rest


def request(
    script: str, directive: str, given: list[tuple[str, str]], with_value: set[str]
) -> list[tuple[str, str]]:
    """Return the options of a job: those in its script, and then those on the command line."""
    words = []
    for line in script.splitlines():
        if line.startswith(directive + " "):
            words += shlex.split(line[len(directive) :])
    return [*options(words, with_value)[0], *given]


def blank(script: str) -> dict[str, Any]:
    """Return a request with nothing in it."""
    return {
        "name": "STDIN",
        "script": script,
        "out": "/dev/null",
        "err": "/dev/null",
        "cwd": os.getcwd(),
        "shell": "/bin/sh",
        "cpus": 1,
        "walltime_s": None,
        "queue": None,
        "held": False,
        "falls": False,
        "after_ok": [],
        "after_any": [],
        "after_failure": [],
    }


def number(text: str, pattern: str) -> int | None:
    """Return the number that a pattern finds."""
    match = re.search(pattern, text)
    return int(match[1]) if match else None


def seconds(text: str) -> int:
    """Read ``HH:MM:SS``, or seconds."""
    total = 0
    for part in text.split(":"):
        total = total * 60 + int(part)
    return total
