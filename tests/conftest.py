"""What the tests share: a Dask configuration of their own, and Slurm where there is one."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Keep the tests away from the user's own configuration, which ours would be laid beside."""
    # What was started in the background, or by nohup, ignores these, and so would all clients.
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    os.environ["DASK_CONFIG"] = tempfile.mkdtemp(prefix="dask-config-")
    # A queue of the session's own: whose CPUs nobody else's jobs take up.
    os.environ["DASK_BATCH_QUEUE_DIR"] = tempfile.mkdtemp(prefix="dask-batch-queue-")


def pytest_unconfigure(config: pytest.Config) -> None:
    from dask_batch import stop_local_queue

    stop_local_queue(kill_jobs=True)
    for name in ("DASK_CONFIG", "DASK_BATCH_QUEUE_DIR"):
        shutil.rmtree(os.environ.pop(name, ""), ignore_errors=True)


@functools.cache
def _why_no_slurm() -> str:
    """Return why tests marked ``slurm`` cannot run here; empty if they can."""
    if shutil.which("sbatch") is None:
        return "there is no Slurm here (no sbatch); as root on Debian, ci/slurm/slurm-up starts one"
    try:
        done = subprocess.run(["sinfo", "-h"], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "Slurm does not answer: sinfo did not end within 60 s"
    return f"Slurm does not answer: {done.stderr.strip()}" if done.returncode else ""


@functools.cache
def _why_no_mpi() -> str:
    """Return why tests marked ``mpi`` cannot run here; empty if they can."""
    from dask_batch.job.endings import EndedError
    from dask_batch.job.ranks.library import find_library

    try:
        find_library()
    except EndedError as error:
        return error.message
    return ""


_NEEDS = {"slurm": _why_no_slurm, "mpi": _why_no_mpi}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests whose marker names what is not here, unless nothing may be skipped."""
    for marker, why_not in _NEEDS.items():
        if item.get_closest_marker(marker) is None or not why_not():
            continue
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"CI=true and {why_not()}", pytrace=False)
        pytest.skip(why_not())


_LAST = ("test_outages.py", "test_chaos.py")
"""They stop Slurm's daemons, and are best run when nothing else computes beside them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what stops Slurm's daemons after all else."""
    items.sort(key=lambda item: item.path.name in _LAST)


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Callable[[], list[str]]]:
    """Yield what lists the test's own unfinished jobs, and cancel those that it left.

    A job is the test's own if it was submitted from within ``tmp_path``: others may use the same
    cluster under the same name at the same time.
    """

    def own_jobs() -> list[str]:
        argv = ["squeue", "-h", "-r", "-u", str(os.getuid()), "-o", "%A %Z"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
        rows = (line.split(" ", 1) for line in done.stdout.splitlines())
        return [row[0] for row in rows if len(row) == 2 and row[1].startswith(str(tmp_path))]

    yield own_jobs
    left = own_jobs()
    if left:
        subprocess.run(["scancel", *left], check=False, timeout=60)
