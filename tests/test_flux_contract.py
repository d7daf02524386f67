"""One suite for the fake Flux and for a real one, through the backend: they must agree."""

from __future__ import annotations

import stat

import pytest

from contract_system import until
from dask_batch.backends.base import JobState
from dask_batch.backends.logs import AGAIN
from dask_batch.errors import ResourceError, SubmissionError

pytest_plugins = ["flux_systems"]


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
    assert system.status(child).reason == "Dependency"
    a, b = (system.ids[job.name] for job in (first, second))
    system.backend.release([a])
    system.wait_for(first, JobState.COMPLETED)
    assert system.status(child).state is JobState.WAITING
    system.backend.release([b])
    system.wait_for(child, JobState.COMPLETED)
    assert system.output(child) == "ran\n"


def test_another_client_sees_and_frees_the_same_jobs(system):
    job, child = system.job(priority=5), None
    child = system.job("echo ran", [job])
    system.submit(job, child)
    other = system.client()
    try:
        assert system.status(job, other).state is JobState.HELD
        assert system.status(job, other).name == job.name
        assert other.find([job.name, child.name, "none"]) == system.ids
        other.release(list(system.ids.values()))
        system.wait_for(child, JobState.COMPLETED, backend=other)
        (row,) = system.instance.named([job.name])
        assert row.urgency == 21
    finally:
        other.close()


def test_jobs_of_an_earlier_hand_over_are_waited_for(system):
    early = system.job("sleep 0.5; echo early > order")
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
        seen = system.wait_for(job, JobState.DEPENDENCY_FAILED)
        assert (seen.word, seen.exit_code) == ("FAILED", None)


def test_a_parent_that_has_failed_before_the_hand_over(system):
    good, bad = system.job(), system.job("exit 3")
    ids = system.go(good, bad)
    system.wait_for(bad, JobState.FAILED)
    system.wait_for(good, JobState.COMPLETED)
    fine, orphan = system.job(after=ids[:1]), system.job(after=ids)
    child = system.job("true", [orphan])
    system.go(fine, orphan, child)
    system.wait_for(fine, JobState.COMPLETED)
    for job in (orphan, child):
        system.wait_for(job, JobState.DEPENDENCY_FAILED)
    assert not (system.logs / f"{orphan.index}.out").read_text()


def test_a_parent_that_nobody_knows_is_left_to_the_job_to_check(system):
    job = system.job("echo ran", after=["f1234567"])
    system.go(job)
    system.wait_for(job, JobState.COMPLETED)


def test_a_refusal_leaves_what_was_accepted_held(system):
    roots = [system.job() for _ in range(2)]
    refused = system.job("true", roots, partition="nosuchqueue")
    with pytest.raises(SubmissionError, match="'nosuchqueue' is not a valid queue") as caught:
        system.submit(*roots, refused, system.job("true", [refused]))
    assert caught.value.job_name == refused.name
    assert set(system.ids) == {root.name for root in roots}
    assert {system.status(root).state for root in roots} == {JobState.HELD}


def test_a_job_has_its_environment_and_its_place(system, monkeypatch):
    monkeypatch.setenv("MY_SETTING", "a b")
    line = (
        'echo "$MY_SETTING,$OMP_NUM_THREADS,$DASK_BATCH_JOB_ID,$DASK_BATCH_BACKEND,'
        '${FLUX_JOB_ID#?}"; pwd; echo words >&2'
    )
    job = system.job(line, threads_per_core=2)
    (job_id,) = system.go(job)
    system.wait_for(job, JobState.COMPLETED)
    assert system.output(job).splitlines() == [
        f"a b,2,{job_id},flux,{job_id[1:]}",
        str(system.logs),
    ]
    for suffix, text in (("out", system.output(job)), ("err", "words\n")):
        path = system.logs / f"{job.index}.{suffix}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text() == text


def test_a_prologue_runs_first_and_is_the_owners_alone(system):
    job = system.job(
        'echo "$A and $OMP_NUM_THREADS"',
        job_script_prologue=["export A='x y'", "export OMP_NUM_THREADS=7"],
    )
    system.go(job)
    system.wait_for(job, JobState.COMPLETED)
    assert system.output(job) == "x y and 7\n"
    assert stat.S_IMODE((system.logs / f"{job.index}.sh").stat().st_mode) == 0o600


# ---- states ----------------------------------------------------------------------------------

ENDS = {
    "exit 0": ("true", JobState.COMPLETED, 0),
    "exit 3": ("exit 3", JobState.FAILED, 3),
    "no command": ("nosuchcommand", JobState.FAILED, 127),
    "SIGSEGV": ("kill -SEGV $$", JobState.FAILED, 139),
    "SIGKILL": ("kill -KILL $$", JobState.FAILED, 137),
    "SIGTERM": ("kill -TERM $$", JobState.FAILED, 143),
}


@pytest.mark.parametrize("how", ENDS)
def test_the_end_of_a_job(system, how):
    line, state, exit_code = ENDS[how]
    job = system.job(line)
    system.go(job)
    other = system.client()
    try:
        for backend in (system.backend, other):  # one has read the journal, one has to ask
            seen = system.wait_for(job, state, backend=backend)
            assert (seen.exit_code, seen.signal, seen.source) == (exit_code, None, "flux")
    finally:
        other.close()


def test_a_time_limit(system):
    job = system.job("sleep 1000", run_time_max=1)
    child = system.job("true", [job])
    system.go(job, child)
    assert system.wait_for(job, JobState.TIMEOUT).word == "TIMEOUT"
    system.wait_for(child, JobState.DEPENDENCY_FAILED)


def test_cancelling_waiting_running_ended_and_unknown(system):
    held, running, ended = system.job(), system.job("sleep 1000"), system.job()
    system.submit(held)
    system.go(running, ended)
    system.wait_for(ended, JobState.COMPLETED)
    system.wait_for(running, JobState.RUNNING)
    system.backend.cancel([*system.ids.values(), "f1234567"])
    for job in (held, running):
        assert system.wait_for(job, JobState.CANCELLED).word == "CANCELED"
    assert system.status(ended).state is JobState.COMPLETED


def test_releasing_what_was_cancelled_lets_the_others_go(system):
    first, second = system.job(), system.job()
    system.submit(first, second)
    system.backend.cancel([system.ids[first.name]])
    system.backend.release([system.ids[first.name], system.ids[second.name]])
    system.wait_for(second, JobState.COMPLETED)


def test_nothing_is_said_of_jobs_that_nobody_knows(system):
    assert system.backend.status(["f1234567"]) == {}
    assert system.backend.find(["contract.job-none"]) == {}


def test_news_of_a_job_end_a_wait(system):
    job = system.job("true")
    system.submit(job)
    system.status(job)
    system.backend.wait(0.01)
    system.backend.release([system.ids[job.name]])
    system.wait_for(job, JobState.COMPLETED)


# ---- repeating -------------------------------------------------------------------------------


def test_a_job_runs_again_and_those_that_wait_for_it_run_then(system):
    job = system.job('echo x >> runs; cat runs >&2; test "$(wc -l < runs)" = 2', repeatable=True)
    child = system.job("echo ran", [job])
    grandchild = system.job("echo ran", [child])
    job_id, child_id, _ = system.go(job, child, grandchild)
    system.wait_for(job, JobState.FAILED)
    assert system.status(child).state is JobState.WAITING
    again = system.backend.rerun(job, job_id, {child_id: [job_id]})
    assert again != job_id
    assert system.backend.find([job.name]) == {job.name: again}
    system.wait_for(grandchild, JobState.COMPLETED)
    assert (system.logs / "runs").read_text() == "x\nx\n"
    log = system.logs / f"{job.index}.err"
    assert log.read_text() == f"x\n{AGAIN}\nx\nx\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    until(lambda: not system.active())  # no gate is left


def test_a_repeatable_job_that_succeeds_lets_its_dependents_go(system):
    job = system.job(repeatable=True)
    child = system.job("echo ran", [job])
    system.go(job, child)
    system.wait_for(child, JobState.COMPLETED)
    until(lambda: not system.active())


def test_running_again_what_waits_or_runs_already_changes_nothing(system):
    job = system.job("echo x >> runs; sleep 1000", repeatable=True)
    (job_id,) = system.go(job)
    system.wait_for(job, JobState.RUNNING)
    assert system.backend.rerun(job, job_id, {}) == job_id
    system.backend.cancel([job_id])
    system.wait_for(job, JobState.CANCELLED)
    again = system.backend.rerun(job, job_id, {})
    other = system.client()
    try:
        assert other.rerun(job, job_id, {}) == again
    finally:
        other.close()


def test_a_repetition_that_was_begun_is_finished(system):
    job = system.job("test -e now", repeatable=True)
    child = system.job("echo ran", [job])
    job_id, _ = system.go(job, child)
    system.wait_for(job, JobState.FAILED)
    (system.logs / "now").touch()
    begun = system.backend._submitter.again(job)  # and then its client has died
    assert system.backend.rerun(job, job_id, {}) == begun
    system.wait_for(child, JobState.COMPLETED)


def test_what_waits_for_a_repeatable_job_of_an_earlier_hand_over(system):
    job = system.job("sleep 0.3; test -e now", repeatable=True)
    (job_id,) = system.go(job)
    late = system.job("echo ran", after=[job_id], patient=True)
    later = system.job("echo ran", after=[job_id], patient=True)
    system.go(late, later)
    system.wait_for(job, JobState.FAILED)
    (system.logs / "now").touch()
    assert {system.status(each).state for each in (late, later)} == {JobState.WAITING}
    system.backend.rerun(job, job_id, {})
    for each in (late, later):
        system.wait_for(each, JobState.COMPLETED)
    until(lambda: not system.active())


def test_a_gate_behind_which_nobody_waits_any_more_is_taken_away(system):
    job = system.job("false", repeatable=True)
    child, other = system.job("true", [job]), system.job("true", [job])
    _, child_id, other_id = system.go(job, child, other)
    system.wait_for(job, JobState.FAILED)
    system.backend.cancel([child_id])
    system.wait_for(child, JobState.CANCELLED)
    assert system.status(other).state is JobState.WAITING
    system.backend.cancel([other_id])
    until(lambda: not system.active())


def test_a_job_after_failures_runs_if_one_fails(system):
    good, bad = system.job("true", repeatable=True), system.job("false", repeatable=True)
    ids = system.submit(good, bad)
    keeper = system.job("echo ran", after_failure=ids)
    system.submit(keeper)
    assert system.status(keeper).state is JobState.WAITING
    system.backend.release(ids)
    system.wait_for(keeper, JobState.COMPLETED)
    assert system.output(keeper) == "ran\n"


def test_a_job_after_failures_does_nothing_if_all_succeed(system):
    ids = system.submit(*(system.job("true", repeatable=True) for _ in range(2)))
    keeper = system.job("echo ran", after_failure=ids)
    system.submit(keeper)
    system.backend.release(ids)
    system.wait_for(keeper, JobState.COMPLETED)
    assert system.output(keeper) == ""


def test_a_job_after_a_failure_that_has_happened_begins_at_once(system):
    bad = system.job("false", repeatable=True)
    ids = system.go(bad)
    system.wait_for(bad, JobState.FAILED)
    keeper = system.job("echo ran", after_failure=ids)
    system.submit(keeper)
    system.wait_for(keeper, JobState.COMPLETED)
    assert system.output(keeper) == "ran\n"


def test_a_job_after_ends_runs_however_they_end(system):
    ids = system.submit(system.job("true"), system.job("false"), system.job("sleep 1000"))
    keeper = system.job("echo ran", after_end=[*ids, "f1234567"])
    system.submit(keeper)
    system.backend.release(ids)
    system.backend.cancel(ids[2:])
    system.wait_for(keeper, JobState.COMPLETED)
    assert system.output(keeper) == "ran\n"


# ---- what is asked for -----------------------------------------------------------------------


def test_each_job_sees_its_own_gpu(system):
    line = 'echo "$CUDA_VISIBLE_DEVICES"; touch $0.$$; until [ -e go ]; do sleep 0.05; done'
    jobs = [system.job(line, gpus_per_core=1) for _ in range(2)]
    system.go(*jobs)
    for job in jobs:
        system.wait_for(job, JobState.RUNNING)
    (system.logs / "go").touch()
    for job in jobs:
        system.wait_for(job, JobState.COMPLETED)
    assert sorted(system.output(job) for job in jobs) == ["0\n", "1\n"]


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"threads_per_core": 9}, "'threads_per_core' = 9: the largest node .* has 8 CPU"),
        ({"cores": 9}, "'cores' = 9: 9 ranks of 1 .* room for 8; ask for fewer"),
        ({"gpus_per_core": 3}, "'gpus_per_core' = 3: the instance has 2 GPU"),
        ({"num_nodes": 2}, "'num_nodes' = 2: the instance has 1 node"),
        ({"qos": "high"}, "'qos' = 'high': Flux has no qualities of service"),
        ({"constraint": "a"}, "'constraint' = 'a'.*choose a queue"),
        ({"reservation": "r"}, "'reservation' = 'r'.*choose a queue"),
        ({"slurm_cmd_args": ["--x"]}, "'slurm_cmd_args'.*no sbatch; leave it out"),
        ({"job_extra_directives": ["--x"]}, "'job_extra_directives'.*no sbatch"),
        ({"submission_template": "#!/bin/sh\n"}, "'submission_template'.*job_script_prologue"),
        ({"python": "{{id}}"}, "'python'.*between the braces"),
    ],
)
def test_what_cannot_be_is_refused_by_name(system, resources, words):
    with pytest.raises(ResourceError, match=words):
        system.backend.check([system.job(**resources)])
    assert not system.active()


def test_memory_is_not_shared_out_and_that_is_said(system, caplog, monkeypatch):
    monkeypatch.setattr("dask_batch.backends.flux.requests._TOLD", set())
    for _ in range(2):
        system.backend.check([system.job(memory_max=2)])
    assert caplog.text.count("Flux does not share out memory: memory_max=2") == 1


@pytest.mark.parametrize(("priority", "urgency"), [(None, 16), (3, 19), (100, 31), (-100, 1)])
def test_a_priority_is_an_urgency_and_never_holds(system, priority, urgency):
    job = system.job("sleep 1000", priority=priority)
    system.go(job)
    assert [row.urgency for row in system.active()] == [urgency]
