"""What to try about a failed job, where its outcome alone does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dask_batch.job import exit_codes
from dask_batch.verdicts.follow import Outcome

__all__ = ["advice_on"]

_UNWRITTEN: Final = (
    "See that the job can write to the cache directory (space, quota, rights, limits on files) and "
    "compute again; dask_batch.clean removes what is not needed any more."
)
_NO_VALUE: Final = (
    "Let the function return, or raise: os._exit ends its process before there is a value."
)
_SIGNALS: Final[Mapping[int, str]] = {
    9: "If it needed more memory than its node could give: resource_dict={'memory_max': "
    "gigabytes}. If somebody killed it: compute again, or allow retries=.",
    15: "Compute again, or allow retries=: somebody, or its own code, asked it to end.",
    4: "Install libraries that are built for the processor of that node, or choose other nodes.",
    **dict.fromkeys(
        (6, 7, 8, 11),
        "The log ends with the Python frames in which it crashed: try the compiled library that "
        "is called there by itself, in another version, or with other input.",
    ),
}


def advice_on(outcome: Outcome, end: Mapping[str, Any] | None) -> str:
    """Return what to try; empty where the outcome's own advice is as good.

    Parameters
    ----------
    outcome
        The verdict's.
    end
        The attempt's end record.
    """
    end = end or {}
    if end.get("advice"):
        return str(end["advice"])
    if outcome is Outcome.UNSTORABLE and (
        end.get("unwritten") or end.get("exit_code") == exit_codes.NO_SPACE
    ):
        return _UNWRITTEN
    told_by_itself = bool(end) and not end.get("concluded_by")
    if outcome is Outcome.NO_OUTPUT and told_by_itself:
        return _NO_VALUE
    if outcome is Outcome.DIED and end.get("signal"):
        return _SIGNALS.get(int(end["signal"]), "")
    return ""
