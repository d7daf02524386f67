"""A client command: writes down the call, suffers the faults, asks the controller, and prints.

It imports little: it starts some thousand times in a suite of tests.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any

from . import faults

__all__ = ["ask", "main"]

_CONNECT = {
    "sbatch": "sbatch: error: Batch job submission failed: {}\n",
    "scancel": "scancel: error: {}\n",
    "scontrol": "slurm_load_jobs error: {}\n",
    "sinfo": "slurm_load_partitions: {}\n",
    "squeue": "slurm_load_jobs error: {}\n",
}
_DOWN = "Unable to contact slurm controller (connect failure)"
_UNABLE = "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
_GIVEN_UP = "sbatch: error: Batch job submission failed: Resource temporarily unavailable\n"
_ATTEMPTS = 15


def main(folder: str, command: str, arguments: list[str]) -> int:
    """Be one of Slurm's commands; returns the exit code."""
    _write_down(folder, command, arguments)
    suffered = faults.take(folder, command)
    for fault in suffered:
        if fault["kind"] == "hang":
            time.sleep(fault["seconds"])
        elif fault["kind"] == "fail":
            sys.stderr.write(fault["text"])
            return int(fault["code"])
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    if command == "sacct":
        from .sacct import sacct

        out, error, code = sacct(folder, arguments, config)
    else:
        out, error, code = _from_controller(folder, command, arguments, config)
    for fault in suffered:
        out = _spoilt(out, fault)
    sys.stderr.write(error)
    sys.stderr.flush()
    sys.stdout.buffer.write(out.encode("utf-8", "surrogateescape"))
    sys.stdout.flush()
    return code


def _write_down(folder: str, command: str, arguments: list[str]) -> None:
    call = {"time": time.time(), "command": command, "arguments": arguments, "pid": os.getpid()}
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    handle = os.open(f"{folder}/calls.jsonl", flags, 0o600)
    os.write(handle, (json.dumps(call) + "\n").encode())
    os.close(handle)


def _from_controller(
    folder: str, command: str, arguments: list[str], config: dict[str, Any]
) -> tuple[str, str, int]:
    umask = os.umask(0o077)
    request: dict[str, Any] = {
        "command": command,
        "arguments": arguments,
        "cwd": os.getcwd(),
        "umask": umask,
        "uid": os.getuid(),
        "environment": dict(os.environ) if command == "sbatch" else {},
        "stdin": None,
    }
    for attempt in range(_ATTEMPTS):
        answer = ask(folder, request, config["message_timeout_s"])
        if answer is None:
            return "", _CONNECT[command].format(_DOWN), 8 if command == "scancel" else 1
        if answer.get("stdin"):
            request["stdin"] = sys.stdin.read()
            answer = ask(folder, request, config["message_timeout_s"]) or {}
        if not answer.get("again"):
            return answer.get("out", ""), answer.get("error", ""), answer.get("code", 0)
        if attempt == 0:
            sys.stderr.write(_UNABLE)
            sys.stderr.flush()
        time.sleep(config["retry_s"])
    return "", _GIVEN_UP, 1


def ask(folder: str, request: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
    """Send a request to the controller; None if there is none within the time.

    The socket is reached through the open directory: its own path may be too long for one.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _ask(f"/proc/self/fd/{handle}/socket", request, timeout_s)
    finally:
        os.close(handle)


def _ask(address: str, request: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
    deadline = time.monotonic() + timeout_s
    while True:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(address)
                connection.sendall(json.dumps(request).encode())
                connection.shutdown(socket.SHUT_WR)
                with connection.makefile("rb") as file:
                    answer: dict[str, Any] = json.load(file)
                return answer
            except (OSError, ValueError):  # none there, or it ended before it answered
                if time.monotonic() >= deadline:
                    return None
        time.sleep(0.05)


def _spoilt(out: str, fault: dict[str, Any]) -> str:
    """Return an output as a fault leaves it."""
    kind = fault["kind"]
    if kind == "truncate":
        return out[: fault["size"]]
    lines = out.splitlines(keepends=True)
    if kind == "reorder":
        return "".join(reversed(lines))
    if kind == "garble":
        marks = "\x00\ufffd|#"
        return "".join(
            line
            if (number + fault["seed"]) % 2
            else marks[number % 4] + line.rstrip("\n")[1::2] + "\n"
            for number, line in enumerate(lines)
        )
    return out
