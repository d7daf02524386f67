"""Run one job's script, as slurmstepd does, and write down how it ended.

A program of its own (``python -I -S step.py FOLDER RUN``): jobs go on while the controller is
away, and their ends are found when it is back.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys

_CANNOT_OPEN_LOGS = 4021
"""slurmd's error number, in the place of a status: read as one, it is "signal 53"."""


def main(folder: str, run: str) -> None:
    """Run what ``FOLDER/order.RUN`` says; leave ``pid.RUN`` and ``end.RUN``."""
    with open(f"{folder}/order.{run}", encoding="utf-8") as file:
        order = json.load(file)
    os.umask(order["umask"])
    try:
        streams = _streams(order)
    except OSError:
        write(f"{folder}/end.{run}", str(_CANNOT_OPEN_LOGS))
        return
    pid = os.fork()
    if pid == 0:
        _become(order, streams)
    write(f"{folder}/pid.{run}", str(pid))
    _, status = os.waitpid(pid, 0)
    write(f"{folder}/end.{run}", str(status))


def _streams(order: dict[str, str]) -> list[int]:
    """Open stdin, stdout and stderr; relative paths are relative to the job's directory."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if order["append"] else os.O_TRUNC)
    stdin = os.open(os.path.join(order["cwd"], order["stdin"]), os.O_RDONLY)
    stdout = os.open(os.path.join(order["cwd"], order["stdout"]), flags, 0o666)
    if order["stderr"] == order["stdout"]:
        return [stdin, stdout, stdout]
    return [stdin, stdout, os.open(os.path.join(order["cwd"], order["stderr"]), flags, 0o666)]


def _become(order: dict[str, dict[str, str]], streams: list[int]) -> None:
    """Turn this forked process into the job; never returns."""
    code = 1
    try:
        os.setsid()
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
        for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        cwd = str(order["cwd"])
        try:
            os.chdir(cwd)
        except OSError as error:
            os.chdir("/tmp")
            said = f"couldn't chdir to `{cwd}': {error.strerror}: going to /tmp instead"
            os.write(2, f"slurmstepd: error: {said}\n".encode())
        try:
            script = str(order["script"])
            os.execve(script, [script, *order["arguments"]], order["environment"])
        except OSError as error:
            what = _interpreter(script) if error.errno == errno.ENOENT else script
            os.write(2, f"slurmstepd: error: execve(): {what}: {error.strerror}\n".encode())
            code = error.errno or 1
    finally:
        os._exit(code)


def _interpreter(script: str) -> str:
    """Return what Slurm calls the culprit of a script that is there and yet is not found."""
    with open(script, "rb") as file:
        words = file.readline()[2:].decode(errors="replace").split()
    return f"bad interpreter({words[0] if words else ''})"


def write(path: str, text: str) -> None:
    """Write a file whole or not at all."""
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}.tmp", path)


if __name__ == "__main__":
    main(*sys.argv[1:])
