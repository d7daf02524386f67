"""Jobs that are run once more in their place, and stewards, on a Slurm of the tests' own."""

from __future__ import annotations

import functools
import os
import pwd
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from dask_batch.backends import logs, patience
from dask_batch.backends.base import JobState
from dask_batch.backends.slurm.backend import SlurmBackend
from dask_batch.errors import SubmissionError
from private_slurm import private_slurm
from slurm_cluster import Cluster, until

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def own_slurm(tmp_path_factory):
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        private_slurm(tmp_path_factory.mktemp("slurm"), monkeypatch) as slurm,
    ):
        yield slurm


@pytest.fixture
def cluster(own_slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "_PAUSES_S", (0.2,))
    cluster = Cluster(tmp_path / "logs")
    cluster.logs.mkdir()
    yield cluster
    cluster.backend.cancel(list(cluster.ids.values()))
    cluster.backend.close()


def a_failing_parent(cluster, **resources):
    """Return a job that fails until the file ``good`` is there, and has told of its failure."""
    line = f"echo run >> {cluster.logs}/runs; test -e {cluster.logs}/good"
    return cluster.job(line, repeatable=True, **resources)


def runs(cluster) -> int:
    return (cluster.logs / "runs").read_text().count("run")


def test_a_job_is_repeated_in_its_place_with_more_memory_and_time(cluster):
    parent = a_failing_parent(cluster, memory_max=0.1, run_time_max=60)
    child = cluster.job(parents=[parent])
    grandchild = cluster.job(parents=[child])
    cluster.go(parent, child, grandchild)
    cluster.wait_for(parent, JobState.FAILED)
    cluster.wait_for(child, JobState.DEPENDENCY_FAILED)
    assert cluster.state(grandchild) is JobState.WAITING
    job_id = cluster.ids[parent.name]
    (cluster.logs / "good").touch()
    assert cluster.rerun(parent, [child], memory_max=0.2, run_time_max=120) == job_id
    cluster.wait_for(grandchild, JobState.COMPLETED)
    seen = cluster.described(parent)
    assert (seen["MinMemoryNode"], seen["TimeLimit"], seen["Restarts"]) == ("205M", "00:02:00", "1")
    assert runs(cluster) == 2


def test_what_was_not_asked_for_stays_as_it_was(cluster):
    parent = a_failing_parent(cluster)
    cluster.go(parent)
    cluster.wait_for(parent, JobState.FAILED)
    before = cluster.described(parent)
    cluster.rerun(parent)
    until(lambda: runs(cluster) == 2, lambda: "it did not run again")
    after = cluster.described(parent)
    assert [before[k] for k in ("TimeLimit", "MinMemoryCPU")] == [
        after[k] for k in ("TimeLimit", "MinMemoryCPU")
    ]


def test_many_actors_repeat_a_job_once(cluster):
    parent = a_failing_parent(cluster)
    child = cluster.job(parents=[parent])
    cluster.go(parent, child)
    cluster.wait_for(child, JobState.DEPENDENCY_FAILED)
    cluster.lines[parent.index] = "unused: the script was written at the submission"
    (cluster.logs / "good").touch()
    job_id = cluster.ids[parent.name]
    waiting = {cluster.ids[child.name]: [job_id]}
    with ThreadPoolExecutor(4) as pool:
        backends = [SlurmBackend() for _ in range(4)]
        calls = [pool.submit(each.rerun, parent, job_id, waiting) for each in backends]
        assert {call.result() for call in calls} == {job_id}
    cluster.wait_for(child, JobState.COMPLETED)
    assert cluster.described(parent)["Restarts"] == "1"
    assert runs(cluster) == 2


def test_a_repetition_that_somebody_began_is_finished(cluster):
    parent = a_failing_parent(cluster, memory_max=0.1)
    child = cluster.job(parents=[parent])
    cluster.go(parent, child)
    cluster.wait_for(child, JobState.DEPENDENCY_FAILED)
    subprocess.run(["scontrol", "requeuehold", cluster.ids[parent.name]], check=True)
    assert cluster.state(parent) is JobState.HELD
    (cluster.logs / "good").touch()
    cluster.rerun(parent, [child], memory_max=0.3)
    cluster.wait_for(child, JobState.COMPLETED)
    assert cluster.described(parent)["MinMemoryNode"] == "308M"


def test_a_job_that_runs_again_is_left_alone(cluster):
    job = cluster.job("echo $$; sleep 1000", repeatable=True)
    cluster.go(job)
    cluster.wait_for(job, JobState.RUNNING)
    cluster.rerun(job)
    assert cluster.state(job) is JobState.RUNNING
    assert cluster.described(job)["Restarts"] == "0"


def test_a_forgotten_job_is_submitted_anew_and_its_dependents_follow(cluster):
    parent, other = a_failing_parent(cluster), cluster.job()
    child = cluster.job(parents=[parent, other])
    cluster.go(parent, other, child)
    cluster.wait_for(child, JobState.DEPENDENCY_FAILED)
    real, cluster.ids[parent.name] = cluster.ids[parent.name], "99999999"
    # What purging does to it: the queue knows neither the id nor the name.
    subprocess.run(["scontrol", "requeuehold", real], check=True)
    subprocess.run(["scontrol", "update", f"JobId={real}", "JobName=another"], check=True)
    (cluster.logs / "good").touch()
    new = cluster.rerun(parent, [child])
    cluster.wait_for(child, JobState.COMPLETED)
    assert new not in (real, "99999999")
    assert cluster.described(child)["Dependency"] == "(null)"
    cluster.ids[parent.name] = "99999999"
    assert SlurmBackend().find([parent.name]) == {parent.name: new}


def test_a_second_actor_finds_the_job_that_the_first_submitted_anew(cluster):
    job = cluster.job("sleep 1000", repeatable=True)
    first = cluster.backend.rerun(job, "99999998", {})
    cluster.ids[job.name] = first
    assert cluster.backend.rerun(job, "99999998", {}) == first


def test_an_id_that_another_job_has_by_now_is_not_touched(cluster):
    stranger = cluster.job("exit 3")
    cluster.go(stranger)
    cluster.wait_for(stranger, JobState.FAILED)
    job = cluster.job("true", repeatable=True)
    cluster.ids[job.name] = cluster.ids[stranger.name]
    assert cluster.rerun(job) != cluster.ids[stranger.name]
    cluster.wait_for(job, JobState.COMPLETED)
    assert cluster.described(stranger)["Restarts"] == "0"


def test_a_job_that_may_not_be_requeued_gets_a_successor(cluster):
    good, begun = cluster.logs / "good", cluster.logs / "begun"
    line = f"test -e {good} || exit 3; touch {begun}; while test -e {good}; do sleep 0.1; done"
    parent = cluster.job(line, slurm_cmd_args="--no-requeue")
    child = cluster.job(parents=[parent])
    cluster.go(parent, replace(child, patient=True))
    cluster.wait_for(child, JobState.DEPENDENCY_FAILED)
    old = cluster.ids[parent.name]
    good.touch()
    new = cluster.rerun(parent, [child])
    assert new != old
    assert cluster.backend.rerun(parent, old, {}) == new
    until(begun.exists, lambda: f"{cluster.status(parent)}")
    good.unlink()
    cluster.wait_for(child, JobState.COMPLETED)


def test_a_repeatable_job_may_be_requeued_whatever_the_users_environment_says(cluster, monkeypatch):
    monkeypatch.setenv("SBATCH_NO_REQUEUE", "1")
    job = cluster.job("exit 3", repeatable=True)
    cluster.go(job)
    assert cluster.described(job)["Requeue"] == "1"


def test_a_dependent_goes_on_waiting_for_its_other_parents(cluster):
    first, second = cluster.job("test -e good", repeatable=True), a_failing_parent(cluster)
    cluster.lines[first.index] = f"test -e {cluster.logs}/good"
    child = cluster.job(parents=[first, second])
    cluster.go(first, second, child)
    cluster.wait_for(first, JobState.FAILED)
    cluster.wait_for(second, JobState.FAILED)
    (cluster.logs / "good").touch()
    cluster.rerun(first, [child])
    cluster.wait_for(first, JobState.COMPLETED)
    assert runs(cluster) == 1
    assert cluster.state(child) is not JobState.COMPLETED
    cluster.rerun(second, [child])
    cluster.wait_for(child, JobState.COMPLETED)


def test_dependents_that_are_gone_are_no_error(cluster):
    parent = a_failing_parent(cluster)
    gone, child = cluster.job(parents=[parent]), cluster.job(parents=[parent])
    cluster.go(parent, gone, child)
    cluster.wait_for(child, JobState.DEPENDENCY_FAILED)
    cluster.backend.cancel([cluster.ids[gone.name]])
    (cluster.logs / "good").touch()
    waits_for = [cluster.ids[parent.name]]
    dependents = {cluster.ids[gone.name]: waits_for, "99999999": waits_for}
    cluster.backend.rerun(parent, waits_for[0], {**dependents, cluster.ids[child.name]: waits_for})
    cluster.wait_for(child, JobState.COMPLETED)


def test_what_no_node_has_is_refused_and_nothing_is_changed(cluster):
    job = cluster.job("exit 3", repeatable=True)
    cluster.go(job)
    cluster.wait_for(job, JobState.FAILED)
    with pytest.raises(SubmissionError, match="memory_max") as caught:
        cluster.rerun(job, memory_max=1000)
    assert caught.value.job_name == job.name
    assert cluster.state(job) is JobState.FAILED


@pytest.mark.parametrize("patient", [True, False])
def test_a_job_whose_dependency_failed_can_itself_be_run(cluster, patient):
    """Waiting in vain, or removed: it is run once more without what it waited for."""
    parent = cluster.job("exit 3")
    child = replace(cluster.job(parents=[parent]), patient=patient)
    cluster.go(parent, child)
    cluster.wait_for(child, JobState.DEPENDENCY_FAILED)
    until(
        lambda: patient or cluster.status(child).word == "CANCELLED",
        lambda: f"{cluster.status(child)}",
    )
    cluster.rerun(child)
    cluster.wait_for(child, JobState.COMPLETED)


def test_a_dependent_of_a_repeatable_job_outlives_its_failure_and_others_do_not(cluster):
    good, bad = cluster.job("exit 3", repeatable=True), cluster.job("exit 3")
    survivor, other = cluster.job(parents=[good]), cluster.job(parents=[bad])
    cluster.go(good, bad, survivor, other)
    until(lambda: cluster.status(other).word == "CANCELLED", lambda: f"{cluster.status(other)}")
    assert cluster.status(survivor).word == "PENDING"


def test_a_template_cannot_take_a_dependent_away(cluster):
    text = "#!/bin/bash\n#SBATCH --kill-on-invalid-dep=yes\n{{ command }}\n"
    parent = cluster.job("exit 3", repeatable=True)
    child = cluster.job(parents=[parent], submission_template=text)
    cluster.go(parent, child)
    cluster.wait_for(child, JobState.DEPENDENCY_FAILED)
    assert cluster.status(child).word == "PENDING"


@pytest.mark.parametrize(
    ("lines", "state"),
    [(["true", "exit 3"], JobState.COMPLETED), (["true", "true"], JobState.DEPENDENCY_FAILED)],
)
def test_a_job_for_failures_runs_if_there_is_one_and_is_dropped_otherwise(cluster, lines, state):
    jobs = [cluster.job(line, repeatable=True) for line in lines]
    steward = cluster.job("true")
    cluster.submit(*jobs)
    ids = [cluster.ids[job.name] for job in jobs]
    cluster.submit(replace(steward, after_failure=tuple(ids)))
    assert cluster.state(steward) is JobState.WAITING
    cluster.backend.release(ids)
    cluster.wait_for(steward, state)
    until(
        lambda: cluster.status(steward).word in ("COMPLETED", "CANCELLED"),
        lambda: f"{cluster.status(steward)}",
    )


def test_a_job_for_the_end_runs_after_the_last_whatever_became_of_it(cluster):
    jobs = [cluster.job("sleep 0.5; exit 3"), cluster.job("true")]
    steward = cluster.job("true")
    cluster.submit(*jobs)
    ids = [cluster.ids[job.name] for job in jobs]
    cluster.submit(replace(steward, after_end=tuple(ids)))
    assert cluster.state(steward) is JobState.WAITING
    cluster.backend.release(ids)
    cluster.wait_for(steward, JobState.COMPLETED)
    assert cluster.state(jobs[0]) is JobState.FAILED


def test_a_plain_user_may_do_all_of_it(cluster, monkeypatch):
    """The commands run as an unprivileged user: the tests themselves may be root."""
    try:
        user = pwd.getpwnam("slurmtest")
    except KeyError:
        pytest.skip("ci/slurm/slurm-up makes the user slurmtest")
    folder = Path(tempfile.mkdtemp(prefix="plain-user-"))
    folder.chmod(0o755)
    (folder / "bin").mkdir()
    for name in ("sbatch", "squeue", "scontrol", "scancel", "sinfo"):
        _run_as(user, folder / "bin" / name, shutil.which(name))
    own = Cluster(folder / "logs")
    own.logs.mkdir()
    os.chown(own.logs, user.pw_uid, user.pw_gid)
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(os, "getuid", lambda: user.pw_uid)
    shutil.copy(os.environ["SLURM_CONF"], folder / "slurm.conf")
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    # Scripts and logs are made by root here, for their owner alone.
    monkeypatch.setattr(logs, "prepare", functools.partial(_prepare_for, user, logs.prepare))
    monkeypatch.setattr(
        "dask_batch.backends.slurm.submission.write_script",
        lambda job, script: _script_for(user, own.logs / f"{job.index}.sh", script),
    )
    try:
        parent = a_failing_parent(own, memory_max=0.1, run_time_max=60)
        child = own.job(parents=[parent])
        own.go(parent, child)
        own.wait_for(child, JobState.DEPENDENCY_FAILED)
        assert own.described(parent)["UserId"].startswith("slurmtest")
        (own.logs / "good").touch()
        own.rerun(parent, [child], memory_max=0.5, run_time_max=600)
        own.wait_for(child, JobState.COMPLETED)
        seen = own.described(parent)
        assert (seen["MinMemoryNode"], seen["TimeLimit"]) == ("512M", "00:10:00")
    finally:
        shutil.rmtree(folder)


def _prepare_for(user, prepare, job):
    prepare(job)
    for path in job.log_directory.glob(f"{job.index}.*"):
        os.chown(path, user.pw_uid, user.pw_gid)


def _run_as(user, path, program):
    path.write_text(
        f"#!/bin/sh\nexec setpriv --reuid={user.pw_uid} --regid={user.pw_gid} --clear-groups "
        f'{program} "$@"\n'
    )
    path.chmod(0o755)


def _script_for(user, path, text):
    path.write_text(text)
    os.chown(path, user.pw_uid, user.pw_gid)
    return path
