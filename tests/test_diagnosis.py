"""What exit code and stderr add to the verdict on a job that died."""

from __future__ import annotations

import pytest

from dask_batch.backends.base import NO_LOGS
from dask_batch.job import exit_codes
from dask_batch.verdicts.diagnosis import diagnose, hint
from dask_batch.verdicts.follow import Outcome

OVER_MEMORY = (
    "slurmstepd: error: Step 7.batch exceeded memory limit (310000 > 204800), being killed\n"
    "slurmstepd: error: Exceeded job memory limit"
)


@pytest.mark.parametrize(
    ("tail", "outcome"),
    [
        (OVER_MEMORY, Outcome.OUT_OF_MEMORY),
        (
            "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=3.batch. Some of your "
            "processes may have been killed by the cgroup out-of-memory handler.",
            Outcome.OUT_OF_MEMORY,
        ),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=3.0", Outcome.OUT_OF_MEMORY),
        ("srun: error: n1: task 0: Out Of Memory", Outcome.OUT_OF_MEMORY),
        (
            "slurmstepd: error: *** JOB 3 ON n1 CANCELLED AT 2026-11-22T10:00:00 DUE TO TIME "
            "LIMIT ***",
            Outcome.TIMEOUT,
        ),
        (
            "slurmstepd: error: *** JOB 3 ON n1 CANCELLED AT 2026-11-22T10:00:00 DUE TO "
            "PREEMPTION ***",
            Outcome.PREEMPTED,
        ),
        (
            "slurmstepd: error: *** STEP 3.0 ON n1 CANCELLED AT 2026-11-22T10:00:00 DUE TO NODE "
            "FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***",
            Outcome.NODE_FAILURE,
        ),
    ],
)
@pytest.mark.parametrize("started", [False, True])
def test_what_the_batch_systems_daemon_wrote_counts(
    tail: str, outcome: Outcome, started: bool
) -> None:
    found = diagnose(f"some output\n{tail}\n", None, 9, started=started)
    assert found is not None
    assert found[0] is outcome


@pytest.mark.parametrize(
    "tail",
    [
        "Out Of Memory: the model said so",
        "my log: CANCELLED DUE TO TIME LIMIT",
        "oom-kill? exceeded memory limit?",
        "",
    ],
)
def test_what_the_function_printed_is_no_evidence(tail: str) -> None:
    assert diagnose(tail, 1, None) is None
    assert diagnose(tail, None, 9) is None


@pytest.mark.parametrize("code", sorted(exit_codes.ENVIRONMENT))
def test_a_job_that_cannot_begin_says_so(code: int) -> None:
    found = diagnose("dask-batch: /tmp/cache is not there on node n1", code, None)
    assert found is not None
    assert found[0] is Outcome.ENVIRONMENT
    assert "/tmp/cache is not there on node n1" in found[1]
    assert exit_codes.MEANINGS[code] in found[1]


@pytest.mark.parametrize(
    ("tail", "code", "named"),
    [
        ("/usr/bin/python3: No module named dask_batch", 1, "dask_batch"),
        ("ModuleNotFoundError: No module named 'dask_batch.job'", 1, "dask_batch.job"),
        ("Traceback ...\nModuleNotFoundError: No module named 'h5py'", 1, "h5py"),
        (
            "slurmstepd: error: couldn't chdir to `/home/no': No such file or directory: going "
            "to /tmp instead",
            1,
            "/home/no",
        ),
        ("/var/spool/job1/slurm_script: line 5: /opt/python: No such file or directory", 127,
         "/opt/python"),
        ("slurm_script: line 3: pythn: command not found", 127, "pythn"),
        (
            "slurmstepd-n2: error: execve(): bad interpreter(/no/bash): No such file or directory",
            2,
            "bad interpreter(/no/bash): No such file or directory",
        ),
        ("", 126, "126"),
        ("Unknown option: -P\nusage: /usr/bin/python3.6 [option] ...", 2, "older than Python 3.11"),
        ("unknown option -P\nusage: python2 [option] ...", 2, "older than Python 3.11"),
        ("/bin/cat: invalid option -- 'P'", 1, "is no Python"),
    ],
)  # fmt: skip
def test_what_keeps_a_job_from_beginning_is_named(tail: str, code: int, named: str) -> None:
    found = diagnose(tail, code, None)
    assert found is not None
    assert found[0] is Outcome.ENVIRONMENT
    assert named in found[1]
    # Of a job that has begun, these would be the function's own words.
    assert diagnose(tail, code, None, started=True) is None


def test_no_space_left_is_not_the_environments_fault() -> None:
    found = diagnose("", exit_codes.NO_SPACE, None, started=True)
    assert found is not None
    assert found[0] is Outcome.UNSTORABLE


def test_what_could_not_be_written_is_told_in_the_jobs_own_words() -> None:
    said = "dask-batch: how the job ended cannot be recorded: /c/ab.end: Too many open files\n"
    found = diagnose(said, exit_codes.NO_SPACE, None, started=True)
    assert found is not None
    assert "Too many open files" in found[1]


def test_a_job_without_log_files_could_not_begin() -> None:
    found = diagnose("", None, None, reason=NO_LOGS)
    assert found is not None
    assert found[0] is Outcome.ENVIRONMENT
    assert "log files" in found[1]


@pytest.mark.parametrize(
    "message",
    [
        "RuntimeError: No CUDA GPUs are available",
        "cudaErrorNoDevice: no CUDA-capable device is detected",
        "[100] Call to cuInit results in CUDA_ERROR_NO_DEVICE",
        "hipErrorNoDevice: no ROCm-capable device is detected",
        "No HIP GPUs are available",
    ],
)
def test_a_function_that_saw_no_gpu_is_told_how_to_ask_for_one(message: str) -> None:
    advice = hint(message)
    assert advice is not None
    assert "gpus_per_core" in advice


def test_other_exceptions_get_no_advice() -> None:
    assert hint("CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0)") is None
    assert hint("no such device") is None
