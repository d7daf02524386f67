"""Torque, as data: PBS's older cousin."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Final

from dask_batch.backends.commands import pbs
from dask_batch.backends.commands.attributes import read_text, read_xml
from dask_batch.backends.commands.system import Argv, Listing

__all__ = ["TORQUE"]


def _xml(ids: Sequence[str]) -> Argv:
    return ["qstat", "-x", *ids]


def _text(ids: Sequence[str]) -> Argv:
    return ["qstat", "-f", *ids]


TORQUE: Final = dataclasses.replace(
    pbs.PBS,
    name="torque",
    title="Torque",
    template="torque.sh.j2",
    options={**pbs.options, "qos": lambda value: ["-l", f"qos={value}"]},
    listings=(Listing(_xml, read_xml), Listing(_text, read_text)),
    reserved=re.compile(r"\s-[tIz](\s|\d|$)|(\b|-W)block\s*="),
    selection=lambda user: ["qselect", "-u", user],
)
"""Ended jobs are known for as long as the server is told to keep them (``keep_completed``)."""
