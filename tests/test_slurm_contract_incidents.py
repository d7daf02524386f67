"""What the fake Slurm can do and a shared real one must not: the reasons are in the ids."""

from __future__ import annotations

import pytest

from dask_batch.backends.base import JobState
from dask_batch.errors import QueueFullError
from slurm_systems import forget, only_fake, sbatch, wait_until

pytest_plugins = ["slurm_systems"]


# ---- what a real one cannot be made to do in a test ---------------------------------------------


@pytest.mark.parametrize("name", ["", "QOSMaxSubmitJobPerUserLimit"])
@only_fake("because limits need AccountingStorageEnforce=limits and an administrator")
def test_a_full_queue(system, name):
    system.fake.limit(max_submit=3, name=name)
    jobs = [system.job() for _ in range(5)]
    with pytest.raises(QueueFullError):
        system.submit(*jobs)
    assert len(system.ids) == 3
    system.backend.release(list(system.ids.values()))
    wait_until(lambda: set(system.fake.states().values()) == {"COMPLETED"})
    left = [job for job in jobs if job.name not in system.ids]
    system.go(*left)


@only_fake("because MaxJobCount is that of the whole cluster")
def test_a_controller_at_its_limit(system):
    system.fake.temporarily_unable(3)
    job = system.job()
    system.go(job)
    system.wait_for(job, JobState.COMPLETED)
    assert len(system.fake.calls("sbatch")) == 1


@only_fake("because slurmctld is shared, and would have to be killed")
def test_a_job_that_was_lost_and_its_id_given_out_again(system):
    job = system.job("sleep 1000")
    (job_id,) = system.go(job)
    system.wait_for(job, JobState.RUNNING)
    system.fake.lose(job_id)
    assert system.status(job).state in (JobState.LOST, JobState.CANCELLED)
    other = system.job()
    assert system.submit(other) == [job_id]
    assert system.status(other).name == other.name
    assert system.backend.find([job.name, other.name])[other.name] == job_id


@only_fake("because MinJobAge is 300 s there, and is looked at now and then")
def test_a_purged_parent_counts_as_met_even_if_it_failed(system, monkeypatch):
    parent = system.job("exit 1")
    (parent_id,) = system.go(parent)
    system.wait_for(parent, JobState.FAILED)
    early = sbatch(system, f"--dependency=afterok:{parent_id}").stdout.strip()
    system.fake.purge(parent_id)
    late = sbatch(system, f"--dependency=afterok:{parent_id}").stdout.strip()
    system.wait_for_row(late, "COMPLETED|None|(null)")
    kept = f"PENDING|DependencyNeverSatisfied|afterok:{parent_id}(failed)"
    assert system.row(early) == kept
    assert system.status(parent).source == "sacct"
    assert system.status(parent).exit_code == 1
    assert system.backend.rerun(parent, parent_id, {}) != parent_id


@only_fake("because a node of a shared cluster must not fail")
@pytest.mark.parametrize("requeue", [True, False])
def test_a_node_that_fails(system, requeue):
    job = system.job("echo $SLURM_RESTART_COUNT; test -n $SLURM_RESTART_COUNT && sleep 1000")
    (job_id,) = system.go(job)
    system.wait_for(job, JobState.RUNNING)
    system.fake.node_failure(job_id, requeue=requeue)
    if requeue:
        system.wait_for_row(job_id, "PENDING|BeginTime|(null)")
        argv = ["sacct", "-D", "-X", "-n", "-P", "-j", job_id, "--format", "State"]
        assert system.command(*argv).stdout == "NODE_FAIL\nPENDING\n"
    else:
        system.wait_for(job, JobState.NODE_FAILURE)


@only_fake("because nothing is preempted there")
def test_a_job_that_is_preempted(system):
    job = system.job("sleep 1000")
    (job_id,) = system.go(job)
    system.wait_for(job, JobState.RUNNING)
    system.fake.preempt(job_id)
    system.wait_for(job, JobState.PREEMPTED)


@only_fake("because memory is enforced only where cgroups are")
def test_a_job_out_of_memory(system, monkeypatch):
    job = system.job("sleep 1000")
    (job_id,) = system.go(job)
    system.wait_for(job, JobState.RUNNING)
    system.fake.out_of_memory(job_id)
    system.wait_for(job, JobState.OUT_OF_MEMORY)
    forget(system, monkeypatch)
    assert system.wait_for(job, JobState.OUT_OF_MEMORY).signal is None
