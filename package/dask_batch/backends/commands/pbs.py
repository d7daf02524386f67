"""PBS Professional and OpenPBS, as data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from dask_batch.backends.commands.attributes import depend, read_json, read_text
from dask_batch.backends.commands.system import Argv, Listing, System, Waits, Words

__all__ = ["ADVICE", "PBS", "WORDS", "describe", "options", "repoint", "waits"]

ADVICE: Final = (
    (r"unknown queue|unauthorized request|access.*queue", "Choose one with "
     "resource_dict={'partition': ...}; `qstat -Q` lists them."),
    (r"account|project", "Name yours: resource_dict={'account': ...}."),
    (r"exceeds? (queue|server)|resource limits|would exceed", "Ask for less: memory_max, "
     "run_time_max, threads_per_core, or another queue; see `qstat -Qf`."),
    (r"unknown resource", "This server has no resource of that name: bring your own template, "
     "resource_dict={'submission_template': ...}."),
)  # fmt: skip

WORDS: Final = Words(
    unknown=re.compile(
        r"unknown job ?id|has finished|request invalid for state of job|finished job"
        r"|no matching job|job not found",
        re.IGNORECASE,
    ),
    temporary=re.compile(
        r"cannot connect to|could not connect|connection (refused|reset|timed out)|timeout"
        r"|end of file|premature end of message|communication failure|server is (busy|shutting)"
        r"|no route to host|temporarily unavailable|pbs_iff|invalid credential|server has exited",
        re.IGNORECASE,
    ),
    full=re.compile(
        r"would exceed [^\n]*limit of jobs|maximum number of jobs already in queue"
        r"|limit on (the number of )?(queued )?jobs|too many jobs",
        re.IGNORECASE,
    ),
    dependency=re.compile(r"unknown job ?id|has finished|finished job|dependency", re.IGNORECASE),
    advice=ADVICE,
)


def describe(name: str, out: str, err: str, shell: str) -> Argv:
    """Say who a job is. It is not started a second time after its node has failed: claims are."""
    return ["-N", name, "-o", out, "-e", err, "-j", "n", "-r", "n", "-S", shell]


def waits(what: Waits) -> Argv:
    """Return the options for what a job waits for."""
    return ["-W", f"depend={depend(what)}"] if what else []


def repoint(job_id: str, what: Waits) -> Argv:
    """Let a queued job wait for others than before."""
    return ["qalter", *waits(what), job_id]


options: Final = {
    "account": lambda value: ["-A", str(value)],
    "partition": lambda value: ["-q", str(value)],
    "priority": lambda value: ["-p", str(value)],
    "run_time_max": lambda value: ["-l", f"walltime={value}"],
}


def _json(ids: Sequence[str]) -> Argv:
    return ["qstat", "-x", "-f", "-F", "json", *ids]


def _text(ids: Sequence[str]) -> Argv:
    return ["qstat", "-x", "-f", *ids]


PBS: Final = System(
    name="pbs",
    title="PBS Professional",
    template="pbs.sh.j2",
    directive="#PBS",
    submit=("qsub",),
    job_id=re.compile(r"^(\d+(?:\.\S+)?)$", re.MULTILINE),
    describe=describe,
    hold=("-h",),
    waits=waits,
    options=options,
    # Not by user: -u is of the short format, and spoils the JSON (OpenPBS 2675).
    listings=(Listing(_json, read_json), Listing(_text, read_text)),
    selection=lambda user: ["qselect", "-x", "-u", user],
    release=lambda ids: ["qrls", *ids],
    cancel=lambda ids: ["qdel", *ids],
    repoint=repoint,
    words=WORDS,
    reserved=re.compile(r"\s-[JIz](\s|\d|$)|(\b|-W)block\s*="),
    bad_in_paths=":,",
)
"""Ended jobs are known for as long as the server keeps them (``job_history_enable``)."""
