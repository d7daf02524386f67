"""One suite for the fake Slurm and for a real one, through the backend: they must agree."""

from __future__ import annotations

import dataclasses
import os
import re
import time

import pytest

from dask_batch.backends.base import JobState
from dask_batch.errors import QueueFullError, SubmissionError
from dask_batch.testing import FakeSlurm
from slurm_systems import CI_CLUSTER, System

REAL = pytest.param("real", marks=pytest.mark.slurm)
BOTH = ["fake", REAL]
UID = str(os.getuid())


@pytest.fixture(params=BOTH)
def system(request, tmp_path, monkeypatch):
    """Yield the fake and the real one in turn."""
    if request.param == "real":
        request.getfixturevalue("slurm")  # which cancels what a test leaves behind
        system = System(tmp_path / "logs")
        yield system
        system.backend.close()
        return
    with FakeSlurm(tmp_path / "fake", **CI_CLUSTER) as fake:
        monkeypatch.setenv("PATH", fake.environment()["PATH"])
        system = System(tmp_path / "logs", fake)
        yield system
        system.backend.close()


def only_fake(why):
    """Run a test against the fake alone, for a reason."""
    return pytest.mark.parametrize("system", ["fake"], indirect=True, ids=[f"fake, {why}"])


# ---- hand-over -------------------------------------------------------------------------------


def test_roots_are_held_and_what_depends_on_them_waits(system):
    first, second = system.job(), system.job()
    child = system.job("echo ran", [first, second])
    system.submit(first, second, child)
    assert [system.status(job).state for job in (first, second, child)] == [
        JobState.HELD,
        JobState.HELD,
        JobState.WAITING,
    ]
    a, b, c = (system.ids[job.name] for job in (first, second, child))
    assert system.row(a) == "PENDING|JobHeldUser|(null)"
    assert system.row(c) == f"PENDING|Dependency|afterok:{a}(unfulfilled),afterok:{b}(unfulfilled)"
    system.backend.release([a])
    system.wait_for(first, JobState.COMPLETED)
    assert system.status(child).state is JobState.WAITING
    system.backend.release([b])
    system.wait_for(child, JobState.COMPLETED)
    assert system.output(child) == "ran\n"


def test_the_name_comes_with_the_status(system):
    job = system.job()
    system.go(job)
    assert system.wait_for(job, JobState.COMPLETED).name == job.name


def test_jobs_of_an_earlier_hand_over_are_waited_for(system):
    early = system.job("sleep 1; echo early > order")
    system.go(early)
    late = system.job("cat order", after=[system.ids[early.name]])
    system.submit(late)
    assert system.status(late).state is JobState.HELD
    system.backend.release([system.ids[late.name]])
    system.wait_for(late, JobState.COMPLETED)
    assert system.output(late) == "early\n"


def test_a_failure_takes_its_descendants_down_and_nothing_else(system):
    good, bad = system.job(), system.job("exit 3")
    child = system.job("true", [good])
    orphan = system.job("true", [good, bad])
    grandchild = system.job("true", [orphan])
    system.go(good, bad, child, orphan, grandchild)
    system.wait_for(child, JobState.COMPLETED)
    for job in (orphan, grandchild):
        assert system.wait_for(job, JobState.DEPENDENCY_FAILED).word == "CANCELLED"


def test_a_refusal_leaves_what_was_accepted_held(system):
    roots = [system.job() for _ in range(2)]
    refused = system.job("true", roots, account="nosuchaccount")
    with pytest.raises(SubmissionError, match="Invalid account or account/partition") as caught:
        system.submit(*roots, refused, system.job("true", [refused]))
    assert caught.value.job_name == refused.name
    assert set(system.ids) == {root.name for root in roots}
    assert {system.status(root).state for root in roots} == {JobState.HELD}


def test_a_job_has_its_environment_and_its_place(system, monkeypatch):
    monkeypatch.setenv("MY_SETTING", "a b")
    line = (
        'echo "$MY_SETTING,$SLURM_NTASKS,$SLURM_CPUS_PER_TASK,$SLURM_JOB_ID,$SLURM_JOB_NAME,'
        '$SLURM_JOB_NUM_NODES,$SLURM_CPUS_ON_NODE,$SLURM_MEM_PER_NODE,${SLURM_RESTART_COUNT-no}"; '
        "pwd; umask"
    )
    job = system.job(line, cores=2, memory_max=0.5)
    (job_id,) = system.go(job)
    system.wait_for(job, JobState.COMPLETED)
    assert system.output(job).splitlines()[:2] == [
        f"a b,1,2,{job_id},{job.name},1,2,512,no",
        str(system.logs),
    ]


# ---- states ----------------------------------------------------------------------------------

ENDS = {
    "exit 0": ("true", JobState.COMPLETED, None, None),
    "exit 3": ("exit 3", JobState.FAILED, 3, None),
    "no command": ("nosuchcommand", JobState.FAILED, 127, None),
    "SIGSEGV": ("kill -SEGV $$", JobState.FAILED, None, 11),
    "SIGKILL": ("kill -KILL $$", JobState.FAILED, None, 9),
    "SIGTERM": ("kill -TERM $$", JobState.FAILED, None, 15),
}


def forget(system, monkeypatch):
    """Let squeue know nothing of the jobs: others' are asked about instead."""
    ask = system.backend._ask

    def forgetful(argv):
        return ask([*argv, "-u", "nobody"] if argv[0] == "squeue" else argv)

    monkeypatch.setattr(system.backend, "_ask", forgetful)


@pytest.mark.parametrize("how", ENDS)
def test_the_end_of_a_job(system, how, monkeypatch):
    line, state, exit_code, signal = ENDS[how]
    job = system.job(line)
    (job_id,) = system.go(job)
    seen = system.wait_for(job, state)
    assert (seen.exit_code or None, seen.signal, seen.source) == (exit_code, signal, "squeue")
    forget(system, monkeypatch)
    later = system.wait_for(job, state)
    assert (later.exit_code or None, later.signal, later.source) == (exit_code, signal, "sacct")
    assert later.name in ("", job.name)
    # Until the record of its start has come in, the accounts call a short job "allocation".
    wait_until(lambda: system.command(*sacct(job_id, "JobName")).stdout == f"{job.name}\n")


def test_logs_that_cannot_be_opened(system):
    job = system.job()
    system.submit(job)
    system.logs.joinpath("0.out").mkdir()
    system.backend.release([system.ids[job.name]])
    system.wait_for(job, JobState.FAILED)
    job_id = system.ids[job.name]
    assert system.row(job_id, "%T|%r") == "FAILED|JobLaunchFailure"
    argv = sacct(job_id, "State,ExitCode")
    wait_until(lambda: system.command(*argv).stdout == "FAILED|0:53\n")


def sacct(job_id, fields):
    return ["sacct", "-X", "-n", "-P", "-j", job_id, "--format", fields]


def wait_until(condition, patience_s=60.0):
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_directory_that_does_not_exist(system):
    argv = ["sbatch", "--parsable", "--chdir=/nosuch", f"--output={system.logs}/x"]
    system.logs.mkdir()
    job_id = system.command(*argv, "--wrap=pwd").stdout.strip()
    system.wait_for_row(job_id, "COMPLETED|None|(null)")
    said = (system.logs / "x").read_text()
    assert "couldn't chdir to `/nosuch': No such file or directory: going to /tmp instead" in said
    assert said.endswith("\n/tmp\n")


def test_cancelling_waiting_running_ended_and_unknown(system, monkeypatch):
    held, running, ended = system.job(), system.job("sleep 1000"), system.job()
    system.submit(held)
    system.go(running, ended)
    system.wait_for(ended, JobState.COMPLETED)
    system.wait_for(running, JobState.RUNNING)
    system.backend.cancel([*system.ids.values(), "67000000"])
    system.wait_for(held, JobState.CANCELLED)
    system.wait_for(running, JobState.CANCELLED)
    assert system.status(ended).state is JobState.COMPLETED
    forget(system, monkeypatch)
    for job in (held, running):
        assert system.wait_for(job, JobState.CANCELLED).word == f"CANCELLED by {UID}"
    said = (system.logs / f"{running.index}.err").read_text()
    assert re.search(rf"\*\*\* JOB {system.ids[running.name]} ON n\d CANCELLED AT \S+ \*\*\*", said)


def test_releasing_what_was_cancelled_lets_the_others_go(system):
    first, second = system.job(), system.job()
    system.submit(first, second)
    system.backend.cancel([system.ids[first.name]])
    system.wait_for(first, JobState.CANCELLED)
    system.backend.release([system.ids[first.name], system.ids[second.name]])
    system.wait_for(second, JobState.COMPLETED)


def test_jobs_are_found_by_name_and_unknown_ones_are_not(system):
    done, held = system.job(), system.job()
    system.go(done)
    system.submit(held)
    system.wait_for(done, JobState.COMPLETED)
    assert system.backend.find([done.name, held.name, "contract.job-none"]) == system.ids
    assert system.backend.status(["67000000"])["67000000"].state is JobState.LOST


@only_fake("because the real one looks at its time limits once a minute")
def test_a_time_limit(system, tmp_path, monkeypatch):
    system.fake.stop()
    system.fake._config["minute_s"] = 1.0
    system.fake.start()
    job = system.job("sleep 1000", run_time_max=60)
    child = system.job("true", [job])
    system.go(job, child)
    system.wait_for(job, JobState.TIMEOUT)
    system.wait_for(child, JobState.DEPENDENCY_FAILED)
    assert "DUE TO TIME LIMIT ***" in (system.logs / f"{job.index}.err").read_text()
    forget(system, monkeypatch)
    assert system.wait_for(job, JobState.TIMEOUT).source == "sacct"


# ---- repeating -------------------------------------------------------------------------------


def test_a_job_runs_again_in_its_place_and_those_that_wait_for_it_run_then(system):
    job = system.job('echo x >> runs; test "$(wc -l < runs)" = 2', repeatable=True, memory_max=0.2)
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


def sbatch(system, *arguments):
    system.logs.mkdir(exist_ok=True)
    argv = ["sbatch", "--parsable", f"--output={system.logs}/%j.out", *arguments, "--wrap=true"]
    return system.command(*argv)


def test_an_unknown_parent_counts_as_met(system):
    for kind in ("afterok", "afternotok", "afterany"):
        job_id = sbatch(system, f"--dependency={kind}:67000000").stdout.strip()
        system.wait_for_row(job_id, "COMPLETED|None|(null)")


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


# ---- words -----------------------------------------------------------------------------------

BJF = "sbatch: error: Batch job submission failed: "
REFUSALS = {
    "--partition=nosuch": (
        1,
        f"sbatch: error: invalid partition specified: nosuch\n{BJF}Invalid partition name "
        "specified\n",
    ),
    "--time=9:00:00": (
        1,
        f"{BJF}Requested time limit is invalid (missing or exceeds some limit)\n",
    ),
    "--time=abc": (255, "sbatch: error: Invalid --time specification\n"),
    "--mem=abc": (255, "sbatch: error: Invalid --mem specification\n"),
    "--begin=abc": (
        255,
        "Invalid time specification (pos=0): abc\nsbatch: error: Invalid --begin specification\n",
    ),
    "--nosuchopt": (
        255,
        "sbatch: unrecognized option '--nosuchopt'\nTry \"sbatch --help\" for more information\n",
    ),
    "--mem=999G": (
        1,
        "sbatch: error: Memory specification can not be satisfied\n"
        f"{BJF}Requested node configuration is not available\n",
    ),
    "--cpus-per-task=99": (1, f"{BJF}More processors requested than permitted\n"),
    "--ntasks=99": (1, f"{BJF}More processors requested than permitted\n"),
    "--cpus-per-task=5": (
        1,
        "sbatch: error: CPU count per node can not be satisfied\n"
        f"{BJF}Requested node configuration is not available\n",
    ),
    "--gres=gpu:9": (1, f"{BJF}Requested node configuration is not available\n"),
    "--gres=nosuch": (1, "sbatch: error: Invalid generic resource (gres) specification\n"),
    "--account=nosuch": (
        1,
        f"{BJF}Invalid account or account/partition combination specified\n",
    ),
    "--dependency=nosuch:1": (1, f"{BJF}Job dependency problem\n"),
    "--dependency=afterok:abc": (1, f"{BJF}Job dependency problem\n"),
}


@pytest.mark.parametrize("option", REFUSALS)
def test_what_sbatch_refuses(system, option):
    done = sbatch(system, option)
    assert (done.returncode, done.stderr) == REFUSALS[option]


COMMANDS = {
    "squeue -j 67000000": (1, "slurm_load_jobs error: Invalid job id specified\n"),
    "squeue -h -j 67000000,67000001": (0, ""),
    "squeue -j abc": (1, "squeue: error: Invalid job id: abc\n"),
    "sacct -X -n -P -j 67000000": (0, ""),
    "sacct -j abc": (1, "sacct: fatal: Bad job/step specified: abc\n"),
    "sacct --format nosuch": (1, 'sacct: error: Invalid field requested: "nosuch"\n'),
    "scancel 67000000": (0, ""),
    "scancel abc": (1, "scancel: error: Invalid job id abc\n"),
    "scancel": (1, "scancel: error: No job identification provided\n"),
    "scontrol show job 67000000": (1, "slurm_load_jobs error: Invalid job id specified\n"),
    "scontrol release 67000000": (
        1,
        "Invalid job id specified for job 67000000\n"
        "slurm_suspend error: Invalid job id specified\n",
    ),
    "scontrol requeuehold 67000000": (1, "Invalid job id specified for job 67000000\n"),
    "scontrol update JobId=67000000 TimeLimit=3": (
        1,
        "Invalid job id specified for job 67000000\n",
    ),
    "scontrol nosuch": (1, "invalid keyword: nosuch\n"),
    "sbatch nosuch.sh": (1, "sbatch: error: Unable to open file nosuch.sh\n"),
    "sbatch --version": (0, "slurm-wlm 22.05.8\n"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_commands_say(system, command):
    done = system.command(*command.split())
    assert (done.returncode, done.stdout + done.stderr) == COMMANDS[command]


def test_what_scontrol_says_of_jobs_that_are_in_no_state_for_it(system):
    held, ended = system.job(), system.job()
    running = sbatch_running(system)
    system.go(ended)
    (held_id,) = system.submit(held)
    system.wait_for(ended, JobState.COMPLETED)
    ended_id = system.ids[ended.name]
    words = {
        f"requeue {held_id}": f"Job is pending execution for job {held_id}\n",
        f"requeue {running}": f"Requested operation is presently disabled for job {running}\n",
        f"requeuehold {running}": f"Requested operation is presently disabled for job {running}\n",
        f"update JobId={running} MinMemoryNode=100": (
            f"Job is no longer pending execution for job {running}\n"
        ),
        f"update JobId={ended_id} Dependency=afterok:{held_id}": (
            f"Job has already finished for job {ended_id}\n"
        ),
        f"update JobId={held_id} Dependency=afterok:{held_id}": (
            f"Job dependency problem for job {held_id}\n"
        ),
        f"update JobId={held_id} NoSuch=3": (
            "Update of this parameter is not supported: NoSuch=3\nRequest aborted\n"
        ),
        f"release {ended_id}": (
            f"Job has already finished for job {ended_id}\n"
            "slurm_suspend error: Job has already finished\n"
        ),
    }
    for arguments, expected in words.items():
        done = system.command("scontrol", *arguments.split())
        assert (done.returncode, done.stdout + done.stderr) == (1, expected), arguments


def sbatch_running(system):
    argv = ["sbatch", "--parsable", "--no-requeue", f"--output={system.logs}/%j.out"]
    system.logs.mkdir(exist_ok=True)
    job_id = system.command(*argv, "--wrap=sleep 1000").stdout.strip()
    system.wait_for_row(job_id, "RUNNING|None|(null)")
    return job_id


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo hi\n", "sbatch: error: This does not look like a batch script.  The first\n"),
        ("#!/bin/sh\n#SBATCH --nosuch=1\n", "sbatch: unrecognized option '--nosuch=1'\n"),
    ],
)
def test_scripts_that_are_none(system, tmp_path, script, said):
    path = tmp_path / "script.sh"
    path.write_text(script)
    done = system.command("sbatch", str(path))
    assert done.returncode != 0
    assert done.stderr.startswith(said)


def test_what_there_is(system):
    done = system.command("sinfo", "-h", "-o", "%R|%c|%m|%l")
    assert set(done.stdout.split()) == {"debug|4|5000|30:00", "long|4|5000|7-00:00:00"}


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
