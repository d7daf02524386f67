"""Slurm's daemons stopped, killed and started again by tests: those of ci/slurm/slurm-up only."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_SCRIPTS = Path(__file__).parents[1] / "ci" / "slurm"
_RUNNING = Path("/run/slurm-test")


def require_ours() -> None:
    """Skip where Slurm is not the tests' own: nobody stops somebody else's controller."""
    if os.getuid() != 0 or not _RUNNING.is_dir():
        pytest.skip("stops Slurm's controller: needs root and a Slurm that ci/slurm/slurm-up began")


def stop_controller(*, kill: bool = False) -> None:
    """Stop slurmctld: in order, or as a crash would."""
    how = ["--kill"] if kill else []
    argv = [str(_SCRIPTS / "slurm-down"), *how, "--only", "slurmctld"]
    subprocess.run(argv, check=True, capture_output=True, timeout=120)


def start_controller() -> None:
    """Start what does not run, and return nodes that a crash has drained."""
    subprocess.run([str(_SCRIPTS / "slurm-up")], check=True, capture_output=True, timeout=300)


def resume_nodes() -> None:
    """Do what an administrator does after a crash: return nodes that Slurm has drained.

    A controller that forgot that it had started a job starts it again; the node refuses a second
    copy, and is drained for that.
    """
    argv = ["sinfo", "-h", "-N", "-o", "%N %t"]
    rows = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout
    drained = {row.split()[0] for row in rows.splitlines() if row.split()[1].startswith("dr")}
    if drained:
        argv = ["scontrol", "update", f"NodeName={','.join(sorted(drained))}", "State=RESUME"]
        subprocess.run(argv, check=False, capture_output=True, timeout=60)


@contextlib.contextmanager
def controller_down(*, kill: bool = False) -> Iterator[None]:
    """Be without slurmctld for a while."""
    stop_controller(kill=kill)
    try:
        yield
    finally:
        start_controller()


@contextlib.contextmanager
def settings(**variables: str) -> Iterator[None]:
    """Run Slurm with other settings of slurm-up for a while; jobs are kept."""
    environment = {**os.environ, **variables}
    argv = [str(_SCRIPTS / "slurm-up")]
    subprocess.run(argv, check=True, capture_output=True, timeout=300, env=environment)
    try:
        yield
    finally:
        start_controller()


@contextlib.contextmanager
def wrecked() -> Iterator[None]:
    """Leave a Slurm whose controller was killed as if new: no ghosts, no drained nodes."""
    require_ours()
    try:
        yield
    finally:
        argv = [str(_SCRIPTS / "slurm-up"), "--reset"]
        subprocess.run(argv, check=True, capture_output=True, timeout=300)
