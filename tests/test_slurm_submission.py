"""Submission against programs that stand in for Slurm's, so that each failure can be had."""

from __future__ import annotations

import os
import re
import stat
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from dask_batch.backends.base import Job, JobState
from dask_batch.backends.parallel import submit_together
from dask_batch.backends.patience import PATIENCE_S, Waiting
from dask_batch.backends.slurm import commands, rerun, submission
from dask_batch.backends.slurm.backend import SlurmBackend
from dask_batch.backends.slurm.commands import Commands
from dask_batch.backends.slurm.inquiry import Inquiry
from dask_batch.backends.slurm.rerun import ANSWER_PATIENCE_S, Rerun
from dask_batch.backends.slurm.submission import Submitter, submission_environment
from dask_batch.configuration.resources import for_dask_task
from dask_batch.errors import (
    BackendUnavailableError,
    CommandError,
    JobEndingError,
    QueueFullError,
    SubmissionError,
)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Return what makes a program for the path out of shell lines."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(name: str, body: str) -> None:
        path = folder / name
        path.write_text("#!/bin/sh\n" + textwrap.dedent(body))
        path.chmod(0o755)

    return make


@pytest.fixture
def job(tmp_path):
    def make(index=0, parents=(), environment=None, **resources):
        return Job(
            name=f"job-{index}",
            definition=Path("/definition"),
            index=index,
            resources=for_dask_task(resources),
            parents=tuple(parents),
            log_directory=tmp_path / "logs",
            environment={"PATH": os.environ["PATH"], **(environment or {})},
        )

    return make


class Clock:
    """Records pauses instead of waiting."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.closed = False

    def pause(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        return self.closed

    def submitter(self, find=lambda names: {}, busy=lambda: True) -> Submitter:
        return Submitter(find, busy, Waiting(self.pause, lambda: sum(self.pauses)))


def test_a_refusal_carries_sbatchs_words_and_the_script(program, job):
    program("sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    clock = Clock()
    with pytest.raises(SubmissionError, match="invalid partition") as caught:
        clock.submitter()(job(7), ["--parsable"], "#!/bin/sh\ntrue\n")
    error = caught.value
    assert error.output == "sbatch: error: invalid partition specified: x\n"
    assert error.returncode == 1
    assert error.job_name == "job-7"
    assert error.cmd[:2] == ["sbatch", "--parsable"]
    assert error.script.read_text() == "#!/bin/sh\ntrue\n"
    assert "sinfo" in error.advice
    assert clock.pauses == []


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("Invalid account or account/partition combination specified", "'account'"),
        ("Invalid partition name specified", "'partition'"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "'run_time_max'"),
        ("Memory specification can not be satisfied", "'memory_max'"),
        ("Invalid feature specification", "%f"),
    ],
)
def test_a_refusal_says_what_to_try(program, job, words, advice):
    program("sbatch", f'echo "sbatch: error: Batch job submission failed: {words}" >&2; exit 1')
    with pytest.raises(SubmissionError) as caught:
        Clock().submitter()(job(), [], "text")
    assert advice in caught.value.advice


def test_the_script_is_for_its_owner_alone(program, job):
    program("sbatch", "echo 5")
    old = os.umask(0)
    try:
        assert Clock().submitter()(job(), [], "text") == "5"
    finally:
        os.umask(old)
    path = job().log_directory / "0.sh"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_lost_answer_is_looked_up_before_it_is_repeated(program, job, tmp_path):
    program(
        "sbatch",
        f"""
        echo x >> {tmp_path}/calls
        echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv' >&2
        exit 1
        """,
    )
    submit = Clock().submitter(lambda names: {names[0]: "42"})
    assert submit(job(), [], "text") == "42"
    assert (tmp_path / "calls").read_text() == "x\n"


def test_a_busy_controller_is_asked_again(program, job, tmp_path):
    program(
        "sbatch",
        f"""
        echo x >> {tmp_path}/calls
        if [ $(wc -l < {tmp_path}/calls) -lt 3 ]; then
            echo 'sbatch: error: Slurm temporarily unable to accept job' >&2; exit 1
        fi
        echo 43
        """,
    )
    clock = Clock()
    assert clock.submitter()(job(), [], "text") == "43"
    assert clock.pauses == [2, 4]


def test_a_controller_that_stays_away_is_a_refusal(program, job, monkeypatch):
    program("sbatch", "echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1")
    clock = Clock()

    def find(names):
        raise CommandError(("squeue",), 1, "", "Unable to contact slurm controller")

    with pytest.raises(SubmissionError, match="Unable to contact"):
        clock.submitter(find)(job(), [], "text")
    assert sum(clock.pauses) == PATIENCE_S


def test_no_answer_is_no_refusal_where_a_job_is_to_take_anothers_place(program, job, monkeypatch):
    program("sinfo", "echo 'debug|1|4|5000|30:00|(null)'")
    program("sbatch", "echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1")
    program(
        "squeue",
        """
        test "$6" != -j || { echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1; }
        """,
    )
    clock = Clock()
    backend = SlurmBackend()
    monkeypatch.setattr(
        backend._submit_one, "_waiting", Waiting(clock.pause, lambda: sum(clock.pauses))
    )
    with pytest.raises(CommandError, match="Unable to contact"):
        backend.rerun(job(), "5", {})
    # Whoever repeats jobs follows others as well.
    assert sum(clock.pauses) == ANSWER_PATIENCE_S


@pytest.mark.parametrize(("known_for_s", "waits_s"), [(0.0, 1.1), (0.5, 0.6), (5.0, 0.0)])
def test_a_job_is_released_in_a_later_second_than_that_of_its_end(
    program, job, tmp_path, known_for_s, waits_s
):
    """A node refuses credentials that were made up to the second in which it ended the job."""
    program(
        "squeue",
        f"""
        if test -e {tmp_path}/requeued; then echo '5|PENDING|256|1|job-0|JobHeldUser'
        else echo '5|FAILED|256|0|job-0|NonZeroExitCode'; fi
        """,
    )
    program(
        "scontrol",
        f'touch {tmp_path}/requeued; echo "$1 $(cat {tmp_path}/now)" >> {tmp_path}/calls',
    )
    now = 0.0

    def pause(seconds: float) -> bool:
        nonlocal now
        now += seconds
        (tmp_path / "now").write_text(f"{now:.1f}")
        return False

    pause(0.0)
    asks = Commands(Waiting(pause, lambda: now))
    inquiry = Inquiry(asks.ask, lambda: now)
    inquiry.status(["5"])
    now += known_for_s
    began = now
    Rerun(asks, inquiry, lambda job: "6")(job(), "5", {})
    assert now - began == pytest.approx(waits_s)
    words = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert [word for word, *_ in words] == ["requeuehold", "update", "release"]
    assert float(words[-1][1]) - float(words[0][1]) >= waits_s


def test_a_job_that_does_not_leave_its_node_is_come_back_to(program, job, monkeypatch):
    monkeypatch.setattr(rerun, "ENDING_PATIENCE_S", 0.0)
    program("sinfo", "echo 'debug|1|4|5000|30:00|(null)'")
    program("squeue", "echo '5|COMPLETING|0|0|job-0|None'")
    with pytest.raises(JobEndingError, match="job 5"):
        SlurmBackend().rerun(job(), "5", {})


def test_a_closed_backend_does_not_go_on_trying(program, job):
    program("sbatch", "echo 'Socket timed out' >&2; exit 1")
    clock = Clock()
    clock.closed = True
    with pytest.raises(SubmissionError):
        clock.submitter()(job(), [], "text")
    assert len(clock.pauses) == 1


def test_a_wrapper_that_hides_the_id_is_looked_up(program, job):
    program("sbatch", "echo 'Your job has been submitted, thank you'")
    assert Clock().submitter(lambda names: {"job-0": "9"})(job(), [], "text") == "9"


def test_a_wrapper_that_hides_the_id_of_a_job_that_is_not_there_is_not_called_again(
    program, job, tmp_path
):
    program("sbatch", f"echo x >> {tmp_path}/calls; echo 'Thank you'")
    with pytest.raises(SubmissionError, match="Thank you"):
        Clock().submitter()(job(), [], "text")
    assert (tmp_path / "calls").read_text() == "x\n"


def test_nothing_is_repeated_as_long_as_the_look_up_fails(program, job, tmp_path):
    program("sbatch", f"echo x >> {tmp_path}/calls; echo 'Socket timed out' >&2; exit 1")
    answers = iter([CommandError(("squeue",), None, "", "")] * 5)

    def find(names):
        for error in answers:
            raise error
        return {"job-0": "44"}

    clock = Clock()
    assert clock.submitter(find)(job(), [], "text") == "44"
    assert len(clock.pauses) == 6
    assert (tmp_path / "calls").read_text() == "x\n"


POLICY = (
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy "
    "(job submit limit, user's size and/or time limits)"
)


@pytest.mark.parametrize(
    ("limit", "busy", "error"),
    [
        ("QOSMaxSubmitJobPerUserLimit", True, QueueFullError),
        ("AssocMaxSubmitJobLimit", True, QueueFullError),
        # Of somebody without jobs it is a limit of 0: an account without rights, or none named.
        ("AssocMaxSubmitJobLimit", False, SubmissionError),
        # Others use these up as well.
        ("AssocGrpSubmitJobsLimit", False, QueueFullError),
        ("QOSGrpSubmitJobsLimit", False, QueueFullError),
        ("QOSMaxSubmitJobPerAccountLimit", False, QueueFullError),
        # Larger than is ever given.
        ("QOSMaxWallDurationPerJobLimit", True, SubmissionError),
        ("AssocMaxCpuPerJobLimit", True, SubmissionError),
        # Older versions do not name the limit.
        (None, True, QueueFullError),
        (None, False, SubmissionError),
    ],
)
def test_a_full_queue_is_told_from_a_request_that_will_never_be_met(
    program, job, limit, busy, error
):
    named = f'echo "sbatch: error: {limit}" >&2; ' if limit else ""
    program("sbatch", f'{named}echo "{POLICY}" >&2; exit 1')
    with pytest.raises(SubmissionError) as caught:
        Clock().submitter(busy=lambda: busy)(job(), [], "text")
    assert type(caught.value) is error
    assert caught.value.job_name == "job-0"


def test_jobs_that_end_between_the_two_questions_make_no_refusal(program, job, tmp_path):
    program(
        "sbatch",
        f"""
        echo x >> {tmp_path}/calls
        [ $(wc -l < {tmp_path}/calls) = 1 ] || {{ echo 45; exit 0; }}
        echo AssocMaxSubmitJobLimit >&2; echo "{POLICY}" >&2; exit 1
        """,
    )
    assert Clock().submitter(busy=lambda: False)(job(), [], "text") == "45"


SATURATED = "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying"


@pytest.mark.parametrize("queued", [{}, {"job-0": "46"}])
def test_an_sbatch_that_waits_at_a_full_queue_is_not_waited_for(program, job, monkeypatch, queued):
    monkeypatch.setattr(submission, "SATURATED_S", 0.1)
    program("sbatch", f"echo '{SATURATED}' >&2; sleep 1000")
    submit = Clock().submitter(lambda names: queued)
    if queued:  # it got through in the last moment
        assert submit(job(), [], "text") == "46"
    else:
        with pytest.raises(QueueFullError, match="sleeping and retrying"):
            submit(job(), [], "text")


def test_waiting_is_said_in_the_log(program, job, caplog):
    program("sbatch", "echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1")
    with caplog.at_level("INFO", logger="dask_batch"), pytest.raises(SubmissionError):
        Clock().submitter()(job(), [], "text")
    levels = [record.levelname for record in caplog.records]
    assert levels[0] == "INFO"
    assert levels[-1] == "WARNING"
    assert "submitting job job-0" in caplog.text
    assert "Unable to contact slurm controller" in caplog.text


def test_an_sbatch_that_hangs_is_looked_up(program, job, monkeypatch):
    program("sbatch", "sleep 1000")
    monkeypatch.setattr(submission, "SUBMIT_TIMEOUT_S", 0.3)
    assert Clock().submitter(lambda names: {"job-0": "9"})(job(), [], "text") == "9"


def test_a_users_sbatch_variables_do_not_override_a_resource(job):
    environment = {
        "SBATCH_ACCOUNT": "mine",
        "SBATCH_PARTITION": "long",
        "SBATCH_ARRAY_INX": "0-9",
        "OMP_NUM_THREADS": "64",
        "MINE": "kept",
    }
    seen = submission_environment(job(partition="debug", environment=environment))
    assert seen["SBATCH_ACCOUNT"] == "mine"
    assert seen["MINE"] == "kept"
    assert not {"SBATCH_PARTITION", "SBATCH_ARRAY_INX", "OMP_NUM_THREADS", "LC_ALL"} & set(seen)


@pytest.mark.parametrize("gpus", [None, 1])
def test_the_clients_lists_of_gpus_are_those_of_another_machine(job, gpus):
    environment = {
        "CUDA_VISIBLE_DEVICES": "3",
        "ROCR_VISIBLE_DEVICES": "",
        "SBATCH_GRES": "gpu:4",
        "SBATCH_GPUS_PER_TASK": "4",
    }
    seen = submission_environment(job(gpus_per_core=gpus, environment=environment))
    assert "CUDA_VISIBLE_DEVICES" not in seen
    assert seen["ROCR_VISIBLE_DEVICES"] == ""
    assert ("SBATCH_GRES" in seen) == ("SBATCH_GPUS_PER_TASK" in seen) == (gpus is None)


def test_sbatch_gets_the_jobs_environment_and_not_this_process(program, job, tmp_path, monkeypatch):
    monkeypatch.setenv("ONLY_HERE", "1")
    program("sbatch", f"env > {tmp_path}/seen; pwd > {tmp_path}/where; echo 1")
    Clock().submitter()(job(environment={"THERE": "2"}), [], "text")
    seen = (tmp_path / "seen").read_text()
    assert "THERE=2" in seen
    assert "ONLY_HERE" not in seen
    assert (tmp_path / "where").read_text().strip() == str(tmp_path / "logs")


# ---- the backend's use of it -----------------------------------------------------------------

COUNTING = """
echo "$@" >> {folder}/argv
(
    flock 9
    n=$(cat {folder}/n 2>/dev/null || echo 0); n=$((n + 1)); echo $n > {folder}/n
    case "$*" in *"--job-name={refused}"*) echo 'sbatch: error: no' >&2; exit 1 ;; esac
    echo $n
) 9> {folder}/lock
"""


def test_children_name_the_ids_of_their_parents(program, job, tmp_path):
    program("sbatch", COUNTING.format(folder=tmp_path, refused="none"))
    roots = [job(i) for i in range(5)]
    child = job(5, parents=[root.name for root in roots])
    ids: dict[str, str] = {}
    SlurmBackend().submit([*roots, child], ids.__setitem__)
    assert sorted(ids.values(), key=int) == [str(i) for i in range(1, 7)]
    last = (tmp_path / "argv").read_text().splitlines()[-1]
    expected = ":".join(ids[root.name] for root in roots)
    assert f"--dependency=afterok:{expected} --kill-on-invalid-dep=yes" in last
    assert "--hold" not in last


def test_who_is_held_and_who_outlives_a_failure(program, job, tmp_path):
    program("sbatch", COUNTING.format(folder=tmp_path, refused="none"))
    root = replace(job(0), repeatable=True)
    child, grandchild = job(1, parents=["job-0"]), job(2, parents=["job-1"])
    late = replace(job(3), after=("900",))
    patient = replace(job(4), after=("900",), patient=True)
    failures = replace(job(5), after_failure=("901", "902"))
    ends = replace(job(6), after_end=("903", "904"), program="dask_batch.steward")
    jobs = [root, child, grandchild, late, patient, failures, ends]
    SlurmBackend().submit(jobs, lambda name, job_id: None)
    argv = {
        re.search("--job-name=(job-.)", line)[1]: line.split()
        for line in (tmp_path / "argv").read_text().splitlines()
    }
    held = {name for name, words in argv.items() if "--hold" in words}
    assert held == {"job-0", "job-3", "job-4"}
    assert {name for name, words in argv.items() if "--requeue" in words} == {"job-0"}
    assert {name for name, words in argv.items() if "--kill-on-invalid-dep=no" in words} == {
        "job-1", "job-4"
    }  # fmt: skip
    assert "--dependency=afternotok:901?afternotok:902" in argv["job-5"]
    assert "--dependency=afterany:903:904" in argv["job-6"]
    assert "-m dask_batch.steward /definition 6" in (tmp_path / "logs" / "6.sh").read_text()


def test_more_parents_than_slurm_can_be_told_of_are_refused(program, job):
    program("sbatch", "echo 1")
    many = tuple(str(10**7 + i) for i in range(20_000))
    with pytest.raises(SubmissionError, match="waits for more jobs") as caught:
        SlurmBackend().submit([replace(job(), after=many)], lambda name, job_id: None)
    assert caught.value.job_name == "job-0"
    ids: dict[str, str] = {}
    SlurmBackend().submit([replace(job(), after=many[:10_000])], ids.__setitem__)
    assert ids == {"job-0": "1"}


def test_a_full_queue_ends_the_hand_over_and_all_accepted_are_known(program, job, tmp_path):
    program(
        "sbatch",
        f"""
        (
            flock 9
            n=$(cat {tmp_path}/n 2>/dev/null || echo 0); n=$((n + 1)); echo $n > {tmp_path}/n
            [ $n -le 5 ] || {{ echo QOSMaxSubmitJobPerUserLimit >&2; exit 1; }}
            echo $n
        ) 9> {tmp_path}/lock
        """,
    )
    program("squeue", "echo 1")
    roots = [job(i) for i in range(3)]
    children = [job(3 + i, parents=[f"job-{i}"]) for i in range(3)]
    ids: dict[str, str] = {}
    with pytest.raises(QueueFullError):
        SlurmBackend().submit([*roots, *children], ids.__setitem__)
    assert len(ids) == 5
    assert ids.keys() >= {"job-0", "job-1", "job-2"}


def test_after_a_refusal_nothing_more_is_begun_and_all_accepted_are_known(program, job, tmp_path):
    program("sbatch", COUNTING.format(folder=tmp_path, refused="job-2 "))
    jobs = [job(i) for i in range(40)]
    ids: dict[str, str] = {}
    with pytest.raises(SubmissionError) as caught:
        SlurmBackend().submit([*jobs, job(40, parents=["job-39"])], ids.__setitem__)
    assert caught.value.job_name == "job-2"
    calls = (tmp_path / "argv").read_text().splitlines()
    assert len(ids) == len(calls) - 1 < 20
    assert "job-2" not in ids


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
def test_what_is_on_its_way_is_reported_whatever_happens(job, failure):
    """A report that fails, or Ctrl-C while waiting, must not lose the jobs that were taken."""
    reported: list[str] = []
    begun: list[str] = []

    def submit(item):
        begun.append(item.name)
        if len(begun) == 2 and isinstance(failure, KeyboardInterrupt):
            raise failure
        return "1"

    def accepted(name, job_id):
        reported.append(name)
        if isinstance(failure, OSError):
            raise failure

    with ThreadPoolExecutor(4) as pool, pytest.raises(type(failure)):
        submit_together([job(i) for i in range(20)], submit, accepted, pool=pool, at_a_time=4)
    lost = 0 if isinstance(failure, OSError) else 1
    assert len(reported) == len(begun) - lost < 20


def test_without_sbatch_there_is_no_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailableError, match="backend='local'"):
        SlurmBackend()


def test_without_a_controller_there_is_no_slurm(program, job):
    program("sbatch", "exit 1")
    program("sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(BackendUnavailableError, match=r"Unable to contact.*backend='local'"):
        SlurmBackend().check([job()])


def test_without_accounting_the_queue_alone_is_asked(program, tmp_path):
    program("sbatch", "exit 1")
    program("squeue", "echo '1|RUNNING|0|0|a|None'")
    program(
        "sacct",
        f"echo x >> {tmp_path}/sacct; echo 'Slurm accounting storage is disabled' >&2; exit 1",
    )
    backend = SlurmBackend()
    assert backend.status(["1", "2"])["2"].state is JobState.LOST
    assert set(backend.status(["1", "3"])) == {"1", "3"}
    assert (tmp_path / "sacct").read_text() == "x\n"


def test_no_answer_of_squeue_is_no_status(program):
    program("sbatch", "exit 1")
    program("squeue", "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1")
    program("sacct", "echo '1|COMPLETED|0:0|None'")
    with pytest.raises(CommandError):
        SlurmBackend().status(["1"])


def test_many_ids_go_in_few_calls(program, tmp_path):
    program("sbatch", "exit 1")
    program("scancel", f"echo $# >> {tmp_path}/counts")
    SlurmBackend().cancel([str(i) for i in range(2 * commands.IDS_PER_CALL + 1)])
    counts = [int(line) for line in (tmp_path / "counts").read_text().split()]
    assert counts == [commands.IDS_PER_CALL] * 2 + [1]


def test_cancelling_what_is_gone_is_no_error_but_another_users_job_is(program):
    program("sbatch", "exit 1")
    program(
        "scancel", "echo 'scancel: error: Kill job error on job id 1: Invalid job id' >&2;exit 1"
    )
    SlurmBackend().cancel(["1"])
    program("scancel", "echo 'scancel: error: 2: Access/permission denied' >&2; exit 210")
    with pytest.raises(CommandError, match="denied"):
        SlurmBackend().cancel(["2"])


def test_a_wait_ends_when_woken(program):
    program("sbatch", "exit 1")
    backend = SlurmBackend()
    backend.wake()
    backend.wait(1000)
    backend.close()
    backend.wait(1000)
