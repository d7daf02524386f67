"""Which version of Slurm the fake speaks as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["said", "since"]


def since(config: Mapping[str, Any], year: int, month: int) -> bool:
    """Whether it speaks as this version or a later one."""
    numbers = [int(part) for part in str(config["version"]).split(".")[:2]]
    return numbers >= [year, month]


def said(config: Mapping[str, Any]) -> str:
    """Return what each command answers to ``--version``."""
    return f"slurm-wlm {config['version']}\n"
