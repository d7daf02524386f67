"""What is to go wrong: a file of rules that tests write and each command reads.

All changes are made under a lock on a file of its own: several commands run at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from typing import Any

__all__ = ["change", "settings", "take", "unable"]


def _nothing() -> dict[str, Any]:
    return {
        "rules": [],
        "sacct_lag_s": 0.0,
        "max_submit": None,
        "limit_name": "",
        "max_job_count": 10000,
        "unable": 0,
    }


def settings(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what is set at the moment."""
    try:
        with open(f"{os.fspath(folder)}/faults.json", encoding="utf-8") as file:
            return {**_nothing(), **json.load(file)}
    except FileNotFoundError:
        return _nothing()


def change(folder: str | os.PathLike[str], edit: Callable[[dict[str, Any]], Any]) -> Any:
    """Let a function edit the settings in place, and return what it returns."""
    path = f"{os.fspath(folder)}/faults.json"
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        now = settings(folder)
        answer = edit(now)
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump(now, file)
        os.replace(f"{path}.new", path)
        return answer
    finally:
        os.close(lock)


def take(folder: str, command: str) -> list[dict[str, Any]]:
    """Return the rules that this call of a command suffers, and count them."""
    if not any(rule["command"] == command for rule in settings(folder)["rules"]):
        return []  # the common case needs no lock

    def edit(now: dict[str, Any]) -> list[dict[str, Any]]:
        suffered = [r for r in now["rules"] if r["command"] == command and _strikes(r)]
        now["rules"] = [rule for rule in now["rules"] if rule["times"] != 0]
        return suffered

    found: list[dict[str, Any]] = change(folder, edit)
    return found


def _strikes(rule: dict[str, Any]) -> bool:
    """Decide whether a rule strikes this time; the same calls in the same order, the same rule."""
    rule["calls"] += 1
    if _uniform(rule["seed"], rule["calls"]) >= rule["share"]:
        return False
    if rule["times"] is not None:
        rule["times"] -= 1
    return True


def _uniform(seed: int, number: int) -> float:
    """Return a number in [0, 1): splitmix64. The module random takes too long to import."""
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return float((z ^ (z >> 31)) / 2**64)


def unable(folder: str | os.PathLike[str]) -> bool:
    """Whether one more attempt at a submission is put off."""
    if settings(folder)["unable"] <= 0:
        return False

    def edit(now: dict[str, Any]) -> bool:
        now["unable"] -= 1
        return True

    return bool(change(folder, edit))
