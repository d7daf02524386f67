"""The contract of fake and real Slurm: what waits for what, and what runs again."""

from __future__ import annotations

import dataclasses
import stat

from dask_batch.backends.base import JobState
from dask_batch.backends.logs import AGAIN
from slurm_systems import each_version, sbatch

pytest_plugins = ["slurm_systems"]


# ---- repeating -------------------------------------------------------------------------------


def test_a_job_runs_again_in_its_place_and_those_that_wait_for_it_run_then(system):
    line = 'echo x >> runs; cat runs >&2; test "$(wc -l < runs)" = 2'
    job = system.job(line, repeatable=True, memory_max=0.2)
    child = system.job("echo ran", [job])
    grandchild = system.job("echo ran", [child])
    job_id, child_id, _ = system.go(job, child, grandchild)
    system.wait_for(job, JobState.FAILED)
    system.wait_for_row(child_id, f"PENDING|DependencyNeverSatisfied|afterok:{job_id}(failed)")
    bigger = dataclasses.replace(job, resources={**job.resources, "memory_max": 0.4})
    assert system.backend.rerun(bigger, job_id, {child_id: [job_id]}) == job_id
    system.wait_for(grandchild, JobState.COMPLETED)
    seen = system.command("scontrol", "-o", "show", "job", job_id).stdout
    assert "MinMemoryNode=410M" in seen
    assert "Restarts=1" in seen
    assert (system.logs / "runs").read_text() == "x\nx\n"
    log = system.logs / f"{job.index}.err"
    assert log.read_text() == f"x\n{AGAIN}\nx\nx\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_running_again_what_waits_or_runs_already_changes_nothing(system):
    job = system.job("echo x >> runs; sleep 1000", repeatable=True)
    (job_id,) = system.go(job)
    system.wait_for(job, JobState.RUNNING)
    assert system.backend.rerun(job, job_id, {}) == job_id
    assert system.status(job).state is JobState.RUNNING


def test_a_mark_failed_stays_until_the_dependency_is_written_anew(system):
    job = system.job("test -e now", repeatable=True)
    child = system.job("true", [job])
    job_id, child_id = system.go(job, child)
    system.wait_for_row(child_id, f"PENDING|DependencyNeverSatisfied|afterok:{job_id}(failed)")
    assert system.command("scontrol", "requeuehold", job_id).returncode == 0
    assert system.row(job_id) == "PENDING|job requeued in held state|(null)"
    assert system.row(child_id) == f"PENDING|DependencyNeverSatisfied|afterok:{job_id}(failed)"
    again = system.command("scontrol", "requeuehold", job_id)
    assert (again.returncode, again.stderr + again.stdout) == (
        1,
        f"Job is pending execution for job {job_id}\n",
    )
    update = ["scontrol", "update", f"JobId={child_id}", f"Dependency=afterok:{job_id}"]
    assert system.command(*update).returncode == 0
    assert system.row(child_id, "%E") == f"afterok:{job_id}(unfulfilled)"


def test_a_requeued_job_waits_for_its_time_unless_that_is_set(system):
    job = system.job("exit 1")
    (job_id,) = system.go(job)
    system.wait_for(job, JobState.FAILED)
    assert system.command("scontrol", "requeue", job_id).returncode == 0
    system.wait_for_row(job_id, "PENDING|BeginTime|(null)")
    assert system.command("scontrol", "update", f"JobId={job_id}", "StartTime=now").returncode == 0
    system.wait_for_row(job_id, "FAILED|NonZeroExitCode|(null)")


def test_a_job_after_failures_runs_if_one_fails(system):
    good, bad = system.job("true", repeatable=True), system.job("false", repeatable=True)
    ids = system.submit(good, bad)
    keeper = system.job("echo ran", after_failure=ids)
    system.submit(keeper)
    assert system.status(keeper).state is JobState.WAITING
    system.backend.release(ids)
    system.wait_for(keeper, JobState.COMPLETED)
    assert system.output(keeper) == "ran\n"


def test_a_job_after_failures_is_dropped_if_all_succeed(system):
    ids = system.submit(*(system.job("true", repeatable=True) for _ in range(2)))
    keeper = system.job("echo ran", after_failure=ids)
    system.submit(keeper)
    system.backend.release(ids)
    assert system.wait_for(keeper, JobState.DEPENDENCY_FAILED).word == "CANCELLED"


def test_a_job_after_ends_runs_however_they_end(system):
    ids = system.submit(system.job("true"), system.job("false"), system.job("sleep 1000"))
    keeper = system.job("echo ran", after_end=ids)
    system.submit(keeper)
    system.backend.release(ids)
    system.backend.cancel(ids[2:])
    system.wait_for(keeper, JobState.COMPLETED)


# ---- dependencies that are not what one would think ---------------------------------------------


@each_version
def test_an_unknown_parent_counts_as_met_or_is_refused(system):
    for kind in ("afterok", "afternotok", "afterany"):
        done = sbatch(system, f"--dependency={kind}:67000000")
        if kind != "afterany" and system.version >= (23, 2):
            assert done.stderr.endswith("submission failed: Job dependency problem\n")
        else:
            system.wait_for_row(done.stdout.strip(), "COMPLETED|None|(null)")


@each_version
def test_parents_that_slurm_has_forgotten_are_not_waited_for(system):
    parent = system.job("test -e ran || { touch ran; exit 1; }", repeatable=True)
    (parent_id,) = system.submit(parent)
    of_two = system.job("echo of two", after=["67000000", "67000001"])
    steward = system.job("echo steward", after_failure=["67000000", parent_id])
    child = system.job("echo child", after=[parent_id, "67000000"], patient=True)
    system.submit(of_two, steward, child)
    if system.version >= (23, 2):
        assert "67000000" not in system.row(system.ids[child.name])
    system.wait_for(steward, JobState.COMPLETED)
    system.backend.release([parent_id, system.ids[of_two.name], system.ids[child.name]])
    system.wait_for(of_two, JobState.COMPLETED)
    system.wait_for(parent, JobState.FAILED)
    again = dataclasses.replace(parent, after=("67000000",))
    dependents = {system.ids[child.name]: ["67000001", parent_id]}
    system.backend.rerun(again, parent_id, dependents)
    system.wait_for(child, JobState.COMPLETED)


def test_a_parent_that_failed_and_is_still_known(system):
    parent = system.job("exit 2")
    (parent_id,) = system.go(parent)
    system.wait_for(parent, JobState.FAILED)
    kept = sbatch(system, f"--dependency=afterok:{parent_id}").stdout.strip()
    option = "--kill-on-invalid-dep=yes"
    dropped = sbatch(system, f"--dependency=afterok:{parent_id}", option).stdout.strip()
    row = f"DependencyNeverSatisfied|afterok:{parent_id}(failed)"
    system.wait_for_row(kept, f"PENDING|{row}")
    system.wait_for_row(dropped, f"CANCELLED|{row}")
    system.command("scontrol", "update", f"JobId={kept}", "Dependency=")
    system.wait_for_row(kept, "COMPLETED|None|(null)")


def test_a_comma_begins_another_kind_of_dependency(system):
    first, second = system.submit(system.job(), system.job())
    job_id = sbatch(system, f"--dependency=afterok:{first},{second}").stdout.strip()
    seen = system.row(job_id, "%E")
    assert seen == f"afterok:{first}(unfulfilled),afterany:{second}(unfulfilled)"


def test_a_held_job_does_not_look_at_its_parents(system):
    (parent,) = system.submit(system.job("false"))
    arguments = ["--hold", f"--dependency=afterok:{parent}", "--kill-on-invalid-dep=yes"]
    job_id = sbatch(system, *arguments).stdout.strip()
    system.backend.release([parent])
    system.wait_for_row(parent, "FAILED|NonZeroExitCode|(null)")
    assert system.row(job_id) == f"PENDING|JobHeldUser|afterok:{parent}(unfulfilled)"
    system.backend.release([job_id])
    row = f"CANCELLED|DependencyNeverSatisfied|afterok:{parent}(failed)"
    system.wait_for_row(job_id, row)
