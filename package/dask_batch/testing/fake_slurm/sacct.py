"""``sacct``: reads the accounts by itself, whether the controller is there or not."""

from __future__ import annotations

import getopt
import os
import pwd
import time
from collections.abc import Callable, Mapping
from typing import Any

from . import accounting, faults, versions

__all__ = ["sacct"]

_LONG_OPTIONS = (
    "allocations allusers delimiter= duplicates endtime= format= jobs= name= noheader parsable "
    "parsable2 starttime= state= uid= user= version"
)
UNNAMED_S = 1.5
_DISABLED = "Slurm accounting storage is disabled\n"


def _time(row: dict[str, Any], name: str) -> str:
    moment = row[name]
    if not moment:
        return str(row["never"]) if row["ended"] else "Unknown"
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(moment))


def _name(row: dict[str, Any]) -> str:
    """Return the name, in which quotes have become backticks.

    The name arrives with the record of the start, which for a short job comes after that of the
    end: until then its row is called "allocation" (Slurm 22.05: for one or two seconds).
    """
    short = row["started"] and row["ended"] - row["started"] < UNNAMED_S
    if short and time.time() - row["ended"] < UNNAMED_S:
        return "allocation"
    return str(row["name"].replace("'", "`").replace('"', "`"))


def _state(row: dict[str, Any]) -> str:
    by = row["by"]
    return f"CANCELLED by {by}" if row["state"] == "CANCELLED" and by is not None else row["state"]


def _elapsed(row: dict[str, Any]) -> str:
    seconds = int((row["ended"] or time.time()) - row["started"]) if row["started"] else 0
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


_FIELDS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "account": ("Account", lambda row: row["account"]),
    "alloccpus": ("AllocCPUS", lambda row: str(row["cpus"] if row["started"] else 0)),
    "elapsed": ("Elapsed", _elapsed),
    "end": ("End", lambda row: _time(row, "ended")),
    "exitcode": ("ExitCode", lambda row: row["exit"]),
    "jobid": ("JobID", lambda row: str(row["id"])),
    "jobidraw": ("JobIDRaw", lambda row: str(row["id"])),
    "jobname": ("JobName", _name),
    "nodelist": ("NodeList", lambda row: row["nodes"] or "None assigned"),
    "partition": ("Partition", lambda row: row["partition"]),
    "reason": ("Reason", lambda row: row["reason"]),
    "start": ("Start", lambda row: _time(row, "started")),
    "state": ("State", _state),
    "submit": ("Submit", lambda row: _time(row, "submitted")),
    "uid": ("UID", lambda row: str(row["uid"])),
    "user": ("User", lambda row: pwd.getpwuid(row["uid"]).pw_name),
}
_DEFAULT = "jobid,jobname,partition,account,alloccpus,state,exitcode"


def sacct(folder: str, arguments: list[str], config: Mapping[str, Any]) -> tuple[str, str, int]:
    """Return what ``sacct`` prints on stdout and stderr, and its exit code.

    The jobs of ``-j``, or those of a user and of given names; of each job the latest run, with
    ``-D`` every one. Steps are not kept: the answer is that of ``-X``.
    """
    if not config["accounting"]:
        return "", _DISABLED, 1
    try:
        found, _ = getopt.gnu_getopt(
            arguments,
            "aDE:hj:lnN:o:pPs:S:u:VX",
            _LONG_OPTIONS.split(),
        )
    except getopt.GetoptError as error:
        return "", f"sacct: unrecognized option '{error.opt}'\n", 1
    options = {option.lstrip("-"): value or "yes" for option, value in found}
    if "version" in options or "V" in options:
        return versions.said(config), "", 0
    columns = (options.get("format") or options.get("o") or _DEFAULT).split(",")
    for column in columns:
        if column.lower().split("%")[0] not in _FIELDS:
            return "", f'sacct: error: Invalid field requested: "{column}"\n', 1
    fields = [_FIELDS[column.lower().split("%")[0]] for column in columns]
    jobs = options.get("jobs") or options.get("j")
    bad = next((word for word in (jobs or "1").split(",") if not word.isdecimal()), None)
    if bad is not None:
        return "", f"sacct: fatal: Bad job/step specified: {bad}\n", 1
    rows = [_as_said(row, config) for row in _rows(folder, options, jobs)]
    return _text(rows, fields, options), "", 0


def _as_said(row: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with what is said of a job that has ended and never begun, by version.

    22.05 gives one time for start and end, and the reason for which it waited, unless the row was
    closed for slurmctld; 24.11 gives no start and no reason, and does not tell these apart.
    """
    if not versions.since(config, 24, 11):
        return {**row, "never": "Unknown"}
    begun = row["started"] if row["started"] != row["ended"] else 0.0
    return {**row, "never": "None", "reason": "None", "started": begun}


def _rows(folder: str, options: dict[str, str], jobs: str | None) -> list[dict[str, Any]]:
    rows = accounting.rows(f"{folder}/accounting.jsonl", faults.settings(folder)["sacct_lag_s"])
    if jobs is not None:
        ids = {int(word) for word in jobs.split(",")}
        rows = [row for row in rows if row["id"] in ids]
    user = options.get("user") or options.get("u") or options.get("uid")
    if user is not None or jobs is None:
        uids = {_uid(word) for word in (user or str(os.getuid())).split(",")}
        rows = [row for row in rows if row["uid"] in uids]
    if "name" in options:
        names = set(options["name"].split(","))
        rows = [row for row in rows if row["name"] in names]
    if "duplicates" in options or "D" in options:
        return rows
    return list({row["id"]: row for row in rows}.values())


def _uid(word: str) -> int:
    return int(word) if word.isdecimal() else pwd.getpwnam(word).pw_uid


def _text(
    rows: list[dict[str, Any]],
    fields: list[tuple[str, Callable[[dict[str, Any]], str]]],
    options: dict[str, str],
) -> str:
    table = [[value(row) for _, value in fields] for row in rows]
    heading = [name for name, _ in fields]
    header = not {"n", "noheader"} & set(options)
    mark = options.get("delimiter", "|")
    if {"P", "parsable2", "p", "parsable"} & set(options):
        end = mark if {"p", "parsable"} & set(options) else ""
        lines = [heading, *table] if header else table
        return "".join(f"{mark.join(line)}{end}\n" for line in lines)
    rule = ["-" * 12 for _ in fields]
    lines = [heading, rule, *table] if header else table
    return "".join(" ".join(f"{cell:>12.12}" for cell in line) + " \n" for line in lines)
