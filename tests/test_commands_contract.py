"""What each batch system must do for the backend: the fakes, and a real Grid Engine."""

from __future__ import annotations

import re
import stat

import pytest

from batch_systems import NAMES, Batch, batch_of
from contract_system import until
from dask_batch.backends.base import JobState
from dask_batch.backends.commands.asking import Asking
from dask_batch.backends.commands.inquiry import Inquiry
from dask_batch.backends.commands.moab import MOAB
from dask_batch.backends.commands.pbs import PBS
from dask_batch.backends.commands.script import refuse_reserved
from dask_batch.backends.commands.torque import TORQUE
from dask_batch.errors import (
    BackendUnavailableError,
    CommandError,
    ConfigurationError,
    QueueFullError,
    ResourceError,
    SubmissionError,
    TemplateError,
)

DELETES = ("pbs", "torque", "moab", "lsf")
"""Systems that delete what depends on a failure."""


@pytest.fixture(params=[*NAMES, "real sge"])
def batch(request, tmp_path, monkeypatch):
    yield from batch_of(request.param, tmp_path, monkeypatch)


@pytest.fixture(params=NAMES)
def fake(request, tmp_path, monkeypatch):
    yield from batch_of(request.param, tmp_path, monkeypatch)


def states(batch: Batch, *jobs: object) -> set[JobState]:
    return {batch.status(job).state for job in jobs}


# ---- hand-over ---------------------------------------------------------------------------------


def test_nothing_starts_before_it_is_released_and_children_come_last(batch):
    first, second = batch.job("echo a >> order"), batch.job("echo b >> order")
    child = batch.job("cat order", [first, second])
    batch.backend.check([first, second, child])
    a, b, _ = batch.submit(first, second, child)
    assert states(batch, first, second) == {JobState.HELD}
    assert states(batch, child) == {JobState.WAITING}
    batch.backend.release([a])
    batch.wait_for(first, JobState.COMPLETED)
    assert states(batch, second) == {JobState.HELD}
    assert states(batch, child) == {JobState.WAITING}
    batch.backend.release([b])
    assert batch.wait_for(child, JobState.COMPLETED).name == child.name
    assert batch.output(child) == "a\nb\n"


def test_jobs_of_an_earlier_hand_over_are_waited_for(batch):
    early = batch.job("sleep 0.5; echo early > order")
    batch.go(early)
    late = batch.job("cat order", after=[batch.ids[early.name]])
    batch.go(late)
    batch.wait_for(late, JobState.COMPLETED)
    assert batch.output(late) == "early\n"


def test_an_earlier_job_that_has_ended_and_is_forgotten_is_not_waited_for(fake):
    early = fake.job()
    fake.go(early)
    fake.wait_for(early, JobState.COMPLETED)
    fake.fake.forget()
    late = fake.job(after=[fake.ids[early.name]])
    fake.go(late)
    fake.wait_for(late, JobState.COMPLETED)


def test_a_failure_takes_its_descendants_down_and_nothing_else(batch):
    good, bad = batch.job(), batch.job("exit 3")
    child, orphan = batch.job("true", [good]), batch.job("echo ran", [good, bad])
    grandchild = batch.job("true", [orphan])
    batch.go(good, bad, child, orphan, grandchild)
    batch.wait_for(child, JobState.COMPLETED)
    if batch.system in DELETES:
        # Moab does not tell why: the engine sees what else has failed.
        state = JobState.CANCELLED if batch.system == "moab" else JobState.DEPENDENCY_FAILED
        for job in (orphan, grandchild):
            batch.wait_for(job, state)
    else:  # it starts, and a real job sees by itself that its input is missing
        batch.wait_for(orphan, JobState.COMPLETED)
        assert batch.output(orphan) == "ran\n"


def test_what_comes_after_any_end_and_after_a_failure(batch):
    jobs = [batch.job(), batch.job("exit 1")]
    batch.submit(*jobs)
    ids = [batch.ids[job.name] for job in jobs]
    last = [batch.job("echo there", after_end=[job_id]) for job_id in ids]
    steward = batch.job("echo there", after_failure=ids)
    batch.submit(*last, steward)
    batch.backend.release(ids)
    for job in (*last, steward):
        batch.wait_for(job, JobState.COMPLETED)
        assert batch.output(job) == "there\n"


def test_a_refusal_names_the_job_and_leaves_what_was_accepted_held(batch):
    root = batch.job()
    refused = batch.job("true", [root], partition="nosuch.q")
    with pytest.raises(SubmissionError, match=re.compile("queue", re.IGNORECASE)) as caught:
        batch.submit(root, refused)
    assert caught.value.job_name == refused.name
    assert caught.value.returncode != 0
    assert caught.value.advice.startswith("Choose one with resource_dict={'partition'")
    assert caught.value.script.read_text().startswith("#!/bin/bash\n")
    assert states(batch, root) == {JobState.HELD}


def test_a_full_queue_is_told_from_a_refusal(fake):
    fake.fake._config["max_jobs"] = 2
    fake.fake.start()
    with pytest.raises(QueueFullError):
        fake.submit(*(fake.job() for _ in range(3)))
    assert len(fake.ids) == 2


def test_a_submission_whose_answer_is_lost_is_not_made_twice(fake, monkeypatch):
    monkeypatch.setattr("dask_batch.backends.patience._PAUSES_S", (0.05,))
    job = fake.job()
    fake.fake.fail(fake.backend._system.submit[0], "connection timed out\n", after=True)
    fake.go(job)
    fake.wait_for(job, JobState.COMPLETED)
    assert [each["name"] for each in fake.fake.jobs()] == [job.name]


def test_a_submission_that_did_not_arrive_is_made_again(fake, monkeypatch):
    monkeypatch.setattr("dask_batch.backends.patience._PAUSES_S", (0.05,))
    job = fake.job()
    fake.fake.fail(fake.backend._system.submit[0], "cannot connect to server: timeout\n", times=2)
    fake.go(job)
    fake.wait_for(job, JobState.COMPLETED)
    assert len(fake.fake.jobs()) == 1


# ---- a job's surroundings ----------------------------------------------------------------------


def test_a_job_has_the_clients_environment_which_nobody_else_can_read(batch, monkeypatch):
    monkeypatch.setenv("MY_SETTING", 'it\'s, "a" $b\\')
    monkeypatch.setenv("PBS_JOBID", "of the client")
    job = batch.job('echo "$MY_SETTING,$OMP_NUM_THREADS"; pwd; umask', cores=2)
    batch.go(job)
    batch.wait_for(job, JobState.COMPLETED)
    said = batch.output(job).splitlines()
    assert said[:2] == ['it\'s, "a" $b\\,2', str(batch.logs)]
    (file,) = batch.logs.glob("environment-*.sh")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "PBS_JOBID" not in file.read_text()
    if batch.fake:
        assert not any("MY_SETTING" in " ".join(call.arguments) for call in batch.fake.calls())


def test_the_prologue_and_an_own_template(batch):
    template = "#!/bin/bash\n# {{ job_name }}\necho own\n{{ command }}\n"
    job = batch.job(
        'echo "$SAID"', submission_template=template, job_script_prologue=["export SAID=before"]
    )
    batch.go(job)
    batch.wait_for(job, JobState.COMPLETED)
    assert batch.output(job) == "own\nbefore\n"


def test_a_name_that_begins_without_a_letter(batch):
    job = batch.job(function="_private")
    batch.go(job)
    assert batch.wait_for(job, JobState.COMPLETED).name == job.name
    assert batch.backend.find([job.name]) == {job.name: batch.ids[job.name]}


def test_what_would_be_lost_is_refused(fake):
    template = "#!/bin/bash\n{{ command }}\n"
    fake.backend.check([fake.job(submission_template=template)])
    for name, value in (("gpus_per_core", 1), ("memory_max", 4), ("cores", 2)):
        with pytest.raises(ResourceError, match=f"'{name}'|'threads_per_core'"):
            fake.backend.check([fake.job(submission_template=template, **{name: value})])
    with pytest.raises(ResourceError, match="slurm_cmd_args"):
        fake.backend.check([fake.job(slurm_cmd_args=["--x"])])
    with pytest.raises(ResourceError, match=r"'pmi_mode' = 'pmix'.*'mpiexec'"):
        fake.backend.check([fake.job(pmi_mode="pmix")])
    fake.backend.check([fake.job(pmi_mode="mpiexec")])
    with pytest.raises(ConfigurationError, match="must begin with a line"):
        fake.backend.check([fake.job(submission_template="{{ command }}")])


def test_what_would_be_no_plain_job_is_refused(fake):
    option = {"pbs": "-J 1-3", "torque": "-t 1-3", "sge": "-t 1-3", "lsf": "-K", "moab": "-I"}
    with pytest.raises(TemplateError, match="a task is one job"):
        fake.backend.check([fake.job(job_extra_directives=[option[fake.system]])])
    fake.backend.check([fake.job(job_extra_directives=["-m n"])])


@pytest.mark.parametrize("option", ["-W block=true", "-Wblock=true", "-W block = true"])
@pytest.mark.parametrize("system", [PBS, TORQUE])
def test_a_submission_that_would_wait_for_its_job_is_refused(system, option):
    assert "line 2" in refuse_reserved(system, f"#!/bin/sh\n#PBS {option}\n")


def test_books_that_cannot_be_read_are_no_answer_and_no_evidence():
    """Moab may warn before its XML."""
    said = {"showq": "WARNING: the server is slow\n<Data/>"}

    class Shown(Asking):
        def ask(self, argv):
            return said["showq"] if "-c" in argv else "<Data/>"

    now = 0.0
    inquiry = Inquiry(MOAB, Shown(MOAB.words, lambda seconds: None), lambda: now)
    assert inquiry.status(["Moab.1"]) == {}
    with pytest.raises(CommandError, match="unreadable"):
        inquiry.find(["a name"])
    said["showq"] = "<Data/>"
    assert inquiry.find(["a name"]) == {}
    now = 10.0
    assert inquiry.status(["Moab.1"])["Moab.1"].state is JobState.LOST


def test_a_log_folder_that_means_something_else_is_refused(fake):
    fake.logs = fake.logs / "50%,$x:y"
    with pytest.raises(ConfigurationError, match="mean something to it there"):
        fake.backend.check([fake.job()])


# ---- ends --------------------------------------------------------------------------------------

ENDS = {
    "true": (JobState.COMPLETED, {0}),
    "exit 3": (JobState.FAILED, {3}),
    "nosuchcommand": (JobState.FAILED, {127}),
    "kill -KILL $$": (JobState.FAILED, {137, 265, None}),
}


def test_the_ends_of_jobs(batch):
    jobs = {line: batch.job(line) for line in ENDS}
    batch.go(*jobs.values())
    for line, (state, codes) in ENDS.items():
        seen = batch.wait_for(jobs[line], state)
        assert seen.exit_code in codes
        assert seen.signal == (9 if seen.exit_code is None else None)


def test_a_time_limit(batch):
    job = batch.job("sleep 1000", run_time_max=2 if batch.fake is None else 60)
    if batch.fake is None:
        job = batch.job("sleep 1000", job_extra_directives=["-l h_rt=2"])
    batch.go(job)
    if batch.system == "moab":  # it tells no reasons
        batch.wait_for(job, JobState.CANCELLED)
    else:
        batch.wait_for(job, JobState.TIMEOUT)


def test_cancelling_waiting_running_ended_and_unknown(batch):
    held, running, ended = batch.job(), batch.job("sleep 1000"), batch.job()
    batch.submit(held)
    batch.go(running, ended)
    batch.wait_for(ended, JobState.COMPLETED)
    batch.wait_for(running, JobState.RUNNING)
    unknown = batch.ids[held.name].replace(re.search(r"\d+", batch.ids[held.name])[0], "99999")
    batch.backend.cancel([*batch.ids.values(), unknown])
    for job in (held, running):
        batch.wait_for(job, JobState.CANCELLED, JobState.FAILED, JobState.LOST)
    assert batch.status(ended).state is JobState.COMPLETED
    batch.backend.release([batch.ids[held.name], batch.ids[ended.name]])


def test_jobs_are_found_by_name_and_unknown_ones_are_not(batch):
    done, held = batch.job(), batch.job()
    batch.go(done)
    batch.submit(held)
    batch.wait_for(done, JobState.COMPLETED)
    assert batch.backend.find([done.name, held.name, "contract.job-none"]) == batch.ids


def test_what_the_system_has_forgotten_is_lost_and_no_failure(fake, monkeypatch):
    job = fake.job()
    fake.go(job)
    fake.wait_for(job, JobState.COMPLETED)
    fake.fake.forget()
    stranger = Batch(fake.system, fake.logs)
    stranger.ids = fake.ids
    if fake.system == "sge":  # its books may be late: not known yet
        assert stranger.status(job) is None
        inquiry = stranger.backend._inquiry
        clock = inquiry._clock
        monkeypatch.setattr(inquiry, "_clock", lambda: clock() + 1000)
    assert stranger.status(job).state is JobState.LOST


def test_no_answer_is_no_evidence(fake):
    job = fake.job()
    fake.submit(job)
    ask = fake.backend._system.listings[0].argv(["1"])[0]
    fake.fake.fail(ask, "cannot connect to server\n", times=2)
    with pytest.raises(Exception, match="cannot connect"):
        fake.status(job)
    with pytest.raises(BackendUnavailableError, match="does not answer"):
        fake.backend.check([job])


# ---- once more ---------------------------------------------------------------------------------


def test_a_job_is_run_once_more_under_its_name(batch):
    job = batch.job("test -e once || { touch once; exit 1; }; echo twice")
    child = batch.job("echo child", [job])
    (first, _) = batch.go(job, child)
    batch.wait_for(job, JobState.FAILED)
    second = batch.rerun(job, [child])
    assert second != first
    assert batch.wait_for(job, JobState.COMPLETED).name == job.name
    assert "twice" in batch.output(job)
    assert batch.backend.find([job.name]) == {job.name: second}


def test_running_once_more_twice_does_no_harm(fake):
    job = fake.job("test -e once || { touch once; exit 1; }; sleep 1000")
    fake.go(job)
    fake.wait_for(job, JobState.FAILED)
    second = fake.rerun(job)
    fake.wait_for(job, JobState.RUNNING)
    fake.ids[job.name] = re.sub(r"\d+", "1", second)  # as another client knows it
    assert fake.rerun(job) == second
    assert len(fake.fake.jobs()) == 2


def test_what_waits_for_a_repeated_job_goes_on_waiting_where_it_can(tmp_path, monkeypatch):
    (lsf,) = [next(made := batch_of("lsf", tmp_path, monkeypatch))]
    job = lsf.job("test -e once || { touch once; exit 1; }", repeatable=True)
    child = lsf.job("echo child", [job])
    lsf.go(job, child)
    lsf.wait_for(job, JobState.FAILED)
    assert states(lsf, child) == {JobState.WAITING}
    lsf.rerun(job, [child])
    lsf.wait_for(child, JobState.COMPLETED)
    assert lsf.output(child) == "child\n"
    next(made, None)


def test_one_question_for_all_jobs(fake):
    jobs = [fake.job() for _ in range(5)]
    fake.submit(*jobs)
    before = len(fake.fake.calls())
    known = fake.backend.status(list(fake.ids.values()))
    assert {status.state for status in known.values()} == {JobState.HELD}
    assert len(fake.fake.calls()) == before + 1


def test_a_backend_without_its_commands(monkeypatch, tmp_path):
    from dask_batch.backends.registry import open_backend

    monkeypatch.setenv("PATH", str(tmp_path))
    for name in NAMES:
        with pytest.raises(BackendUnavailableError, match=r"there is no .* on this machine"):
            open_backend(name)


def test_the_fake_leaves_no_process(fake):
    job = fake.job("sleep 1000 & echo $!; wait")
    fake.go(job)
    fake.wait_for(job, JobState.RUNNING)
    until(lambda: fake.output(job).strip(), lambda: "no pid")
    pid = int(fake.output(job))
    fake.fake.stop()
    until(lambda: not alive(pid), lambda: f"{pid} lives")


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
