"""Slurm that is away, fails at random, is full, or forgets: on a Slurm of the tests' own."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from dask_batch.backends import patience
from dask_batch.backends.base import Job, JobState
from dask_batch.errors import BackendError, JobEndingError, QueueFullError
from private_slurm import private_slurm
from slurm_cluster import Cluster, until

pytestmark = pytest.mark.slurm


@pytest.fixture
def own_slurm(tmp_path, monkeypatch):
    folder = tmp_path / "slurm"
    folder.mkdir()
    with private_slurm(folder, monkeypatch, "MaxJobCount=12") as slurm:
        yield slurm


@pytest.fixture
def cluster(own_slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "_PAUSES_S", (0.2,))
    cluster = Cluster(tmp_path / "logs")
    cluster.logs.mkdir()
    yield cluster
    cluster.backend.close()


def names_in_queue() -> Counter[str]:
    argv = ["squeue", "-h", "-t", "all", "-O", "Name:"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return Counter(done.stdout.split())


@contextlib.contextmanager
def away(slurm, what) -> Iterator[None]:
    """Stop the controller, begin something in a thread, and start the controller again."""
    slurm.stop()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            what()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        thread.join(timeout=4)  # longer than MessageTimeout: a command has failed by then
        assert thread.is_alive(), f"it did not wait: {failures}"
        yield
    finally:
        slurm.start()
        thread.join(timeout=60)
    assert not thread.is_alive()
    assert failures == []


def test_a_submission_waits_for_a_controller_and_no_job_is_submitted_twice(
    own_slurm, cluster, caplog
):
    jobs = [cluster.job() for _ in range(6)]
    child = cluster.job(parents=jobs)
    with (
        caplog.at_level(logging.INFO, logger="dask_batch"),
        away(own_slurm, lambda: cluster.submit(*jobs, child)),
    ):
        until(lambda: "trying again" in caplog.text, lambda: caplog.text)
    assert names_in_queue() == Counter(job.name for job in [*jobs, child])
    assert "submitting job test.job" in caplog.text
    assert "Unable to contact slurm controller" in caplog.text
    cluster.backend.release([cluster.ids[job.name] for job in jobs])
    cluster.wait_for(child, JobState.COMPLETED)


def test_releasing_cancelling_and_repeating_wait_for_a_controller(own_slurm, cluster):
    failed, held, unwanted = cluster.job("exit 3", repeatable=True), cluster.job(), cluster.job()
    cluster.go(failed)
    cluster.submit(held, unwanted)
    cluster.wait_for(failed, JobState.FAILED)

    def act() -> None:
        cluster.backend.release([cluster.ids[held.name]])
        cluster.backend.cancel([cluster.ids[unwanted.name]])

    with away(own_slurm, act):
        with pytest.raises(BackendError):
            cluster.backend.status(["1"])
        with pytest.raises(BackendError):  # the caller tries again: it has the evidence
            cluster.rerun(failed)
    until(lambda: has_left_its_node(cluster, failed), lambda: "it does not leave its node")
    cluster.wait_for(held, JobState.COMPLETED)
    cluster.wait_for(unwanted, JobState.CANCELLED)
    until(lambda: cluster.described(failed)["Restarts"] == "1", lambda: "it was not repeated")


def has_left_its_node(cluster: Cluster, failed: Job) -> bool:
    """Repeat a job, unless Slurm says that it has yet to end: 25.05 does so after a restart."""
    try:
        cluster.rerun(failed)
    except JobEndingError:
        return False
    return True


FLAKY = """\
#!/bin/bash
# Fails in half of all calls: before the real command, or after it has done its work.
n=$(( $(od -An -N1 -tu1 /dev/urandom) ))
[ $((n % 4)) = 0 ] && {{ echo '{name}: error: Unable to contact slurm controller' >&2; exit 1; }}
if [ $((n % 4)) = 1 ]; then
    {real} "$@" >/dev/null 2>&1
    echo '{name}: error: Socket timed out on send/recv operation' >&2
    exit 1
fi
exec {real} "$@"
"""


def test_commands_that_fail_in_half_of_all_calls_lose_and_repeat_nothing(
    cluster, tmp_path, monkeypatch
):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scontrol", "scancel"):
        (folder / name).write_text(FLAKY.format(name=name, real=shutil.which(name)))
        (folder / name).chmod(0o755)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{folder}:{path}")
    line = f"echo run >> {cluster.logs}/runs"
    roots = [cluster.job(line) for _ in range(6)]
    children = [cluster.job(line, parents=pair) for pair in itertools.pairwise(roots)]
    cluster.submit(*roots, *children)
    cluster.backend.release([cluster.ids[job.name] for job in roots])
    left = set(cluster.ids.values())
    while left:
        with contextlib.suppress(BackendError):
            status = cluster.backend.status(left)
            assert {s.state for s in status.values()} <= {
                JobState.WAITING, JobState.RUNNING, JobState.ENDING, JobState.COMPLETED
            }  # fmt: skip
            left -= {i for i, s in status.items() if s.state is JobState.COMPLETED}
    monkeypatch.setenv("PATH", path)
    assert (cluster.logs / "runs").read_text().count("run") == len(roots) + len(children)
    assert set(names_in_queue().values()) == {1}


def test_a_full_queue_is_told_soon_and_what_was_accepted_is_of_use(cluster):
    """``MaxJobCount``: sbatch itself would go on trying for two minutes."""
    roots = [cluster.job() for _ in range(4)]
    level = roots
    jobs = list(roots)
    while len(jobs) < 24:
        level = [cluster.job(parents=[parent]) for parent in level]
        jobs += level
    with pytest.raises(QueueFullError) as caught:
        cluster.submit(*jobs)
    accepted = [job for job in jobs if job.name in cluster.ids]
    assert 4 < len(accepted) <= 12
    assert caught.value.job_name not in cluster.ids
    for job in accepted:
        assert set(job.parents) <= cluster.ids.keys()
    assert names_in_queue() == Counter(job.name for job in accepted)
    cluster.backend.release([cluster.ids[job.name] for job in roots])
    for job in accepted:
        cluster.wait_for(job, JobState.COMPLETED)


def test_jobs_that_a_controller_forgot_are_lost_and_can_be_run(own_slurm, cluster):
    done, held = cluster.job(), cluster.job(repeatable=True)
    cluster.go(done)
    cluster.submit(held)
    cluster.wait_for(done, JobState.COMPLETED)
    own_slurm.stop(forget=True)
    own_slurm.start()
    # The ids are given out again: the name tells.
    usurper = cluster.job("sleep 1000")
    cluster.go(usurper)
    assert cluster.ids[usurper.name] == cluster.ids[done.name]
    assert cluster.status(done).name == usurper.name
    assert cluster.state(held) is JobState.LOST
    assert cluster.backend.find([done.name, held.name]) == {}
    cluster.rerun(held)
    cluster.rerun(done)
    cluster.wait_for(held, JobState.COMPLETED)
    cluster.wait_for(done, JobState.COMPLETED)
    assert cluster.state(usurper) is JobState.RUNNING
