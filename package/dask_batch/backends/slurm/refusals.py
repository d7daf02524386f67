"""What the words of a failed Slurm command mean. Pure.

The sentence "Job violates accounting/QOS policy (job submit limit, user's size and/or time
limits)" stands for limits that pass with time and for requests that will never do. Newer versions
print the limit's own name on a line before it: ``QOSMaxSubmitJobPerUserLimit``,
``AssocMaxSubmitJobLimit``; ``QOSMaxWallDurationPerJobLimit``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable

from dask_batch.errors import CommandError

__all__ = [
    "SATURATED",
    "Meaning",
    "advice",
    "blames_parents",
    "is_harmless",
    "is_stuck",
    "is_temporary",
    "meaning",
]


class Meaning(enum.Enum):
    """What to make of a failed submission."""

    REFUSED = "refused"
    """For good."""
    FULL = "full"
    """A group of users has as many jobs as Slurm takes of it."""
    PERHAPS_FULL = "perhaps full"
    """The user has as many jobs as Slurm takes of one user; or, for a user without jobs, may have
    none at all (a limit of 0 stands for "name an account"), or asks for more than is ever given."""
    UNCLEAR = "unclear"
    """The job may have been taken, or may be taken later."""


SATURATED = re.compile(
    r"(temporarily unable to accept job|job queue full), sleeping", re.IGNORECASE
)
"""At ``MaxJobCount`` sbatch says so, and asks again for two minutes."""
_FULL = re.compile(r"(AssocGrp|QOSGrp)Submit\w*|QOSMaxSubmit\w*PerAccount\w*", re.IGNORECASE)
_USER_FULL = re.compile(r"(Assoc|QOS)Max\w*Submit\w*", re.IGNORECASE)
_LIMIT_NAME = re.compile(r"\b(Assoc|QOS)(Grp|Max|Min|Job|Time|Usage|Resource)\w*\b")
_POLICY = re.compile(r"violates accounting/QOS policy", re.IGNORECASE)
_TEMPORARY = re.compile(
    r"temporarily unable|Socket timed out|Unable to contact slurm controller|Zero Bytes"
    r"|Connection (refused|reset|timed out)|Transport endpoint|Communication connection failure"
    r"|Unexpected message received|Resource temporarily unavailable|Backup controller"
    r"|in standby mode|Unable to resolve|Message (receive|send) failure|slurmctld.*(start|shut)ing"
    r"|job queue full|Job update not available right now|Slurm backup controller"
    r"|Unable to establish controller|Insane message length|Broken pipe",
    re.IGNORECASE,
)
_STUCK = re.compile(r"DB index is being set", re.IGNORECASE)
_HARMLESS = re.compile(
    r"Invalid job id|already finished|already completing|no longer pending execution"
    r"|slurm_suspend error: ?(No error|Invalid job id|Job has already)",
    re.IGNORECASE,
)
_HEADING = re.compile(r"slurm_suspend error", re.IGNORECASE)
"""All that Slurm 25.05 adds to what it says of each of several jobs."""
_UNKNOWN_PARENT = re.compile(r"Job dependency problem", re.IGNORECASE)
_ADVICE = (
    (r"get-user-env' doesn't allow", "From 25.05 on Slurm takes no value there: write `#SBATCH "
     "--get-user-env` in the template."),
    (r"invalid account", "Name yours: resource_dict={'account': ...}; see `sacctmgr show assoc`."),
    (r"partition", "Choose one with resource_dict={'partition': ...}; `sinfo -s` lists them."),
    (r"time limit is|--time", "Ask for less: resource_dict={'run_time_max': seconds}; see "
     "`sinfo`."),
    (r"memory|--mem", "Ask for less: resource_dict={'memory_max': gigabytes}; see `sinfo`."),
    (r"submit limit", "Your account's queue is full, or the job is larger than your account or "
     "QOS allows: see `sacctmgr show assoc user=$USER` and `sacctmgr show qos`."),
    (r"qos", "Choose one with resource_dict={'qos': ...}; `sacctmgr show qos` lists them."),
    (r"feature|constraint", "See `sinfo -o '%N %f'` for the features of the nodes."),
    (r"reservation", "See `scontrol show reservation`."),
    (r"node configuration|processors|CPU count|gres", "See `sinfo -o '%R %c %m %G'` for what "
     "a node has."),
)  # fmt: skip


def meaning(failure: CommandError) -> Meaning:
    """Tell what a failed ``sbatch`` means for the job."""
    words = failure.stderr
    if _FULL.search(words):
        return Meaning.FULL
    if _USER_FULL.search(words):
        return Meaning.PERHAPS_FULL
    if _POLICY.search(words):
        return Meaning.REFUSED if _LIMIT_NAME.search(words) else Meaning.PERHAPS_FULL
    if failure.returncode in (None, 0) or _TEMPORARY.search(words):
        return Meaning.UNCLEAR
    return Meaning.REFUSED


def is_temporary(failure: CommandError) -> bool:
    """Whether a command failed for a reason that passes: no answer, a controller at its limit."""
    return failure.returncode is None or bool(_TEMPORARY.search(failure.stderr))


def is_stuck(failure: CommandError) -> bool:
    """Whether Slurm refuses to change a job because its accounting has not numbered it yet."""
    return bool(_STUCK.search(failure.stderr))


def is_harmless(failure: CommandError) -> bool:
    """Whether a command for many jobs failed only for those that are gone, or no longer wait."""
    lines = [line for line in map(str.strip, failure.stderr.splitlines()) if line]
    said = [line for line in lines if not _HEADING.fullmatch(line)]
    return failure.returncode is not None and bool(said) and _all_match(_HARMLESS, said)


def blames_parents(words: str) -> bool:
    """Whether a refusal may be for a job to wait for that Slurm does not know (23.02 and later).

    Older versions take such a dependency as met.
    """
    return bool(_UNKNOWN_PARENT.search(words))


def _all_match(pattern: re.Pattern[str], lines: Iterable[str]) -> bool:
    return all(pattern.search(line) for line in lines)


def advice(words: str) -> str:
    """Return what to try after a refusal in these words; empty where nothing is known."""
    return next((text for sign, text in _ADVICE if re.search(sign, words, re.IGNORECASE)), "")
