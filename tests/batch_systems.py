"""Batch systems that are known by their commands, fakes and a real one, behind one face."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from contract_system import ContractSystem
from dask_batch.backends.commands.backend import CommandsBackend
from dask_batch.backends.commands.systems import SYSTEMS
from dask_batch.testing import FakeBatch

NAMES = tuple(SYSTEMS)


class Batch(ContractSystem):
    """A backend whose jobs run given shell lines, and what a test asks of it."""

    def __init__(self, system: str, logs: Path, fake: FakeBatch | None = None) -> None:
        super().__init__(logs)
        self.system = system
        self.fake = fake
        self.backend = CommandsBackend(
            # Its books are not late: neither a fake's, nor those of a Grid Engine set up for tests.
            replace(SYSTEMS[system], forgets_after_s=min(SYSTEMS[system].forgets_after_s, 2.0)),
            command=self.argv_of,
        )


def why_no_grid_engine() -> str:
    """Return why tests on a real Grid Engine cannot run here; empty if they can."""
    missing = [name for name in ("qsub", "qstat", "qconf", "qacct") if shutil.which(name) is None]
    if missing:
        return f"there is no Grid Engine here (no {missing[0]})"
    try:
        done = subprocess.run(["qstat", "-f"], capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return "Grid Engine does not answer"
    if done.returncode or "BIP" not in done.stdout:
        return f"Grid Engine has no queue, or does not answer: {done.stderr.strip()[:200]}"
    return ""


def end_jobs_of(folder: Path) -> None:
    """End the jobs of a real Grid Engine that were submitted from within a folder."""
    done = subprocess.run(
        ["qstat", "-u", getpass.getuser()], capture_output=True, text=True, check=True
    )
    for row in done.stdout.splitlines()[2:]:
        job_id = row.split()[0]
        about = subprocess.run(["qstat", "-j", job_id], capture_output=True, text=True).stdout
        if f"{os.sep}{folder.name}{os.sep}" in about:
            subprocess.run(["qdel", job_id], capture_output=True, check=False)


def batch_of(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Batch]:
    """Yield a batch system: a fake one by its name, or ``"real sge"``."""
    if kind == "real sge":
        why = why_no_grid_engine()
        if why:
            pytest.skip(why)
        batch = Batch("sge", tmp_path / "logs")
        yield batch
        batch.backend.close()
        end_jobs_of(tmp_path)
        return
    with FakeBatch(tmp_path / "fake", kind, second_s=0.02) as fake:
        monkeypatch.setenv("PATH", fake.environment()["PATH"])
        batch = Batch(kind, tmp_path / "logs", fake)
        yield batch
        batch.backend.close()
