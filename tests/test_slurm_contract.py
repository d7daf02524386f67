"""One suite for the fake Slurm and for a real one, through the backend: they must agree."""

from __future__ import annotations

import errno
import re

import pytest

from dask_batch.backends.base import JobState
from dask_batch.errors import SubmissionError
from dask_batch.verdicts.diagnosis import diagnose
from dask_batch.verdicts.follow import Outcome
from slurm_systems import UID, each_version, forget, only_fake, sacct, wait_until

pytest_plugins = ["slurm_systems"]


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


@each_version
@pytest.mark.parametrize("how", ENDS)
def test_the_end_of_a_job(system, how, monkeypatch):
    line, state, exit_code, signal = ENDS[how]
    job = system.job(line)
    (job_id,) = system.go(job)
    seen = system.wait_for(job, state)
    assert (seen.exit_code or None, seen.signal, seen.source) == (exit_code, signal, "squeue")
    assert seen.reason in ("", "NonZeroExitCode")
    forget(system, monkeypatch)
    later = system.wait_for(job, state)
    assert (later.exit_code or None, later.signal, later.source) == (exit_code, signal, "sacct")
    assert later.name in ("", job.name)
    # Until the record of its start has come in, the accounts call a short job "allocation".
    wait_until(lambda: system.command(*sacct(job_id, "JobName")).stdout == f"{job.name}\n")


@each_version
def test_logs_that_cannot_be_opened(system, monkeypatch):
    job = system.job()
    system.submit(job)
    system.logs.joinpath("0.out").unlink()
    system.logs.joinpath("0.out").mkdir()
    system.backend.release([system.ids[job.name]])
    seen = system.wait_for(job, JobState.FAILED)
    job_id = system.ids[job.name]
    newer = system.version >= (24, 11)
    reason = "RaisedSignal:53(Real-time signal 19)" if newer else "JobLaunchFailure"
    assert system.row(job_id, "%T|%r") == f"FAILED|{reason}"
    argv = sacct(job_id, "State,ExitCode")
    wait_until(lambda: system.command(*argv).stdout == "FAILED|0:53\n")
    forget(system, monkeypatch)
    later = system.wait_for(job, JobState.FAILED)
    for status, source in ((seen, "squeue"), (later, "sacct")):
        assert (status.exit_code, status.signal, status.source) == (0, None, source)
        assert status.reason == "the node could not open the job's log files"


def test_a_script_whose_interpreter_is_not_there(system):
    job = system.job(submission_template="#!/nosuch/bash\n{{ command }}\n")
    system.go(job)
    seen = system.wait_for(job, JobState.FAILED)
    assert (seen.exit_code, seen.signal, seen.reason) == (errno.ENOENT, None, "NonZeroExitCode")
    said = (system.logs / f"{job.index}.err").read_text()
    found = diagnose(said, seen.exit_code, seen.signal)
    assert found is not None
    assert found[0] is Outcome.ENVIRONMENT
    assert found[1].endswith("bad interpreter(/nosuch/bash): No such file or directory")


def test_a_directory_that_does_not_exist(system):
    argv = ["sbatch", "--parsable", "--chdir=/nosuch", f"--output={system.logs}/x"]
    system.logs.mkdir()
    job_id = system.command(*argv, "--wrap=pwd").stdout.strip()
    system.wait_for_row(job_id, "COMPLETED|None|(null)")
    said = (system.logs / "x").read_text()
    assert "couldn't chdir to `/nosuch': No such file or directory: going to /tmp instead" in said
    assert said.endswith("\n/tmp\n")


@each_version
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
    why = " DUE to SIGNAL Terminated" if system.version >= (25, 5) else ""
    job_id = system.ids[running.name]
    assert re.search(rf"\*\*\* JOB {job_id} ON n\d CANCELLED AT \S+{why} \*\*\*", said)


@each_version
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
