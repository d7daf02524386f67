"""What ``--dependency`` means, quirks included. Pure.

A dependency is kept as the text that ``squeue -o %E`` prints: ``afterok:7(unfulfilled)``, joined by
``,`` (all must hold) or ``?`` (one must). A mark ``(failed)`` stays whatever becomes of the job
afterwards: only ``scontrol update Dependency=`` takes it away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from dataclasses import dataclass

__all__ = [
    "DependencyProblem",
    "Outcome",
    "evaluate",
    "normal_form",
    "parents",
    "refuse_unknown",
]

KINDS = frozenset({"after", "afterany", "afternotok", "afterok"})

_TERM = re.compile(r"([a-z]+):(\d+)(?:\((unfulfilled|failed)\))?")


class DependencyProblem(Exception):
    """The text is not a dependency: in Slurm's words "Job dependency problem"."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """As much of a job as those that wait for it want to know."""

    started: bool
    ended: bool
    succeeded: bool


def normal_form(text: str) -> str:
    """Read what a user gave, ``afterok:1:2,afterany:3``, and return it term by term.

    A number without a kind, as in ``afterok:1,2``, counts as ``afterany``.

    Raises
    ------
    DependencyProblem
        Slurm would refuse it.

    >>> normal_form("afterok:1:2,3")
    'afterok:1(unfulfilled),afterok:2(unfulfilled),afterany:3(unfulfilled)'
    """
    if not text:
        return ""
    separator = "?" if "?" in text else ","
    terms = []
    for part in re.split(r"[,?]", text):
        kind, _, ids = part.rpartition(":") if part.isdecimal() else part.partition(":")
        kind = kind or "afterany"
        if kind not in KINDS or not all(i.isdecimal() for i in ids.split(":")):
            raise DependencyProblem(text)
        terms += [f"{kind}:{int(i)}(unfulfilled)" for i in ids.split(":")]
    return separator.join(terms)


def parents(text: str) -> set[int]:
    """Return the ids of the jobs that a dependency names."""
    return {int(number) for _, number, _ in _TERM.findall(text)}


def refuse_unknown(text: str, known: Container[int]) -> None:
    """Refuse to wait for the success, or the failure, of a job that is not known (any more).

    Raises
    ------
    DependencyProblem
        There is such a job. The end of one is taken as met.
    """
    for kind, number, _ in _TERM.findall(text):
        if kind in ("afterok", "afternotok") and int(number) not in known:
            raise DependencyProblem(text)


def evaluate(text: str, outcome: Callable[[int], Outcome | None]) -> tuple[str, bool]:
    """Look at the parents.

    Parameters
    ----------
    text
        As kept: what is still waited for, with its marks.
    outcome
        What became of a job; None of one that is not known (any more), which counts as met.

    Returns
    -------
    tuple of str and bool
        What is waited for now, empty if all is met; and whether that can never be met.
    """
    if not text:
        return "", False
    separator = "?" if "?" in text else ","
    marks = {
        (kind, number): "failed" if mark == "failed" else _mark(kind, outcome(int(number)))
        for kind, number, mark in _TERM.findall(text)
    }
    left = {term: mark for term, mark in marks.items() if mark != "fulfilled"}
    if not left or (separator == "?" and len(left) < len(marks)):
        return "", False
    failed = [mark == "failed" for mark in left.values()]
    never = all(failed) if separator == "?" else any(failed)
    return separator.join(f"{k}:{n}({mark})" for (k, n), mark in left.items()), never


def _mark(kind: str, outcome: Outcome | None) -> str:
    if outcome is None:
        return "fulfilled"
    if kind == "after":
        return "fulfilled" if outcome.started or outcome.ended else "unfulfilled"
    if not outcome.ended:
        return "unfulfilled"
    if kind == "afterany":
        return "fulfilled"
    return "fulfilled" if outcome.succeeded is (kind == "afterok") else "failed"
