"""``scancel`` and ``sinfo``: the short ones."""

from __future__ import annotations

import pwd
import re
import signal
from collections.abc import Mapping
from typing import Any

from . import launch, versions
from .queue import Queue
from .records import JobRecord
from .requests import Refusal
from .squeue import duration
from .words import short_options

__all__ = ["scancel", "sinfo"]


def scancel(queue: Queue, request: Mapping[str, Any]) -> dict[str, Any]:
    """End jobs by id, name, state or user; unknown ids and ended jobs are passed over in silence.

    Raises
    ------
    Refusal
        Nothing names a job, or a word is no id.
    """
    options, words = short_options(
        "scancel",
        request["arguments"],
        "A:bfHin:M:p:Qs:t:u:vV",
        "account= batch ctld full hurry interactive jobname= me name= partition= quiet signal= "
        "state= user= verbose version",
    )
    for word in words:
        if not word.isdecimal():
            raise Refusal(f"Invalid job id {word}", prefix="scancel: error: ")
    name = options.get("n") or options.get("name") or options.get("jobname")
    state = options.get("t") or options.get("state")
    user = (
        options.get("u")
        or options.get("user")
        or (str(request["uid"]) if "me" in options else None)
    )
    if not words and name is None and state is None and user is None:
        raise Refusal("No job identification provided", prefix="scancel: error: ")
    number = options.get("s") or options.get("signal")
    ids = {int(word) for word in words}
    for job in queue.each(
        lambda job: (
            job.active
            and (not words or job.job_id in ids)
            and (name is None or job.name == name)
            and (state is None or job.word == state.upper())
            and (user is None or str(job.uid) == user or pwd.getpwuid(job.uid).pw_name == user)
        )
    ):
        _end(queue, job, number, request["uid"])
    return {"out": ""}


def _end(queue: Queue, job: JobRecord, number: str | None, uid: int) -> None:
    if number is None or number.upper().removeprefix("SIG") in ("KILL", "9"):
        queue.cancel(job, uid)
    elif number.isdecimal():
        launch.send(job, signal.Signals(int(number)))
    else:
        launch.send(job, signal.Signals[f"SIG{number.upper().removeprefix('SIG')}"])


def sinfo(queue: Queue, request: Mapping[str, Any]) -> dict[str, Any]:
    """List the partitions; all their nodes are alike."""
    options, _ = short_options(
        "sinfo",
        request["arguments"],
        "ahel:Nn:o:p:rsvV",
        "all exact Format= format= long noheader partition= responding summarize version",
    )
    if "version" in options or "V" in options:
        return {"out": versions.said(queue.config)}
    text = options.get("o") or options.get("format") or "%9P %.5a %.10l %.6D %.6t %N"
    config = queue.config
    default = next(iter(config["partitions"]))
    lines = [] if {"h", "noheader"} & set(options) else [_filled(text, _HEADINGS)]
    for partition, limit in config["partitions"].items():
        cells = {
            "C": f"0/{config['cpus']}/0/{config['cpus']}",
            "D": str(config["nodes"]),
            "G": f"gpu:{config['gpus']}" if config["gpus"] else "(null)",
            "N": "n1" if config["nodes"] == 1 else f"n[1-{config['nodes']}]",
            "P": partition + ("*" if partition == default else ""),
            "R": partition,
            "T": "idle",
            "a": "up",
            "c": str(config["cpus"]),
            "f": "(null)",
            "l": duration(limit * 60),
            "m": str(config["memory_mb"]),
            "t": "idle",
        }
        lines.append(_filled(text, cells))
    return {"out": "".join(f"{line}\n" for line in lines)}


_HEADINGS = {
    "C": "CPUS(A/I/O/T)", "D": "NODES", "G": "GRES", "N": "NODELIST", "P": "PARTITION",
    "R": "PARTITION", "T": "STATE", "a": "AVAIL", "c": "CPUS", "f": "AVAIL_FEATURES",
    "l": "TIMELIMIT", "m": "MEMORY", "t": "STATE",
}  # fmt: skip


def _filled(text: str, cells: Mapping[str, str]) -> str:
    def cell(match: re.Match[str]) -> str:
        value = cells.get(match[3], "")
        width = int(match[2] or 0)
        return value[: width or None].rjust(width) if match[1] else value.ljust(width)

    return re.sub(r"%(\.?)(\d*)([A-Za-z])", cell, text)
