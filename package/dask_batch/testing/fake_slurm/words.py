"""What several commands share: the short words of states, and how options are read."""

from __future__ import annotations

import getopt
from collections.abc import Sequence

from .requests import Refusal

__all__ = ["STATES", "short_options"]

STATES = {
    "PENDING": "PD",
    "RUNNING": "R",
    "SUSPENDED": "S",
    "COMPLETING": "CG",
    "CONFIGURING": "CF",
    "COMPLETED": "CD",
    "FAILED": "F",
    "TIMEOUT": "TO",
    "OUT_OF_MEMORY": "OOM",
    "NODE_FAIL": "NF",
    "BOOT_FAIL": "BF",
    "PREEMPTED": "PR",
    "CANCELLED": "CA",
    "DEADLINE": "DL",
    "REQUEUED": "RQ",
}


def short_options(
    command: str, arguments: Sequence[str], short: str, long: str
) -> tuple[dict[str, str], list[str]]:
    """Read a command line; options come without their dashes, those without a value as "yes".

    Raises
    ------
    Refusal
        An option that the command does not have.
    """
    try:
        found, rest = getopt.gnu_getopt(list(arguments), short, long.split())
    except getopt.GetoptError as error:
        text = f"unrecognized option '--{error.opt}'\nTry \"{command} --help\" for more information"
        raise Refusal(text, prefix=f"{command}: ") from None
    return {option.lstrip("-"): value or "yes" for option, value in found}, rest
