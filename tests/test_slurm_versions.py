"""What newer versions of Slurm printed on a cluster of virtual nodes, and what is read from it.

24.11.5, 25.05.8 and 26.05.5 print the same rows, unless a version is named.
"""

from __future__ import annotations

import pytest

from dask_batch.backends.base import JobState
from dask_batch.backends.slurm import parse, refusals
from dask_batch.errors import CommandError
from dask_batch.verdicts.diagnosis import diagnose
from dask_batch.verdicts.follow import Outcome

SQUEUE = """\
60|COMPLETED|0:0|0|a|None
61|FAILED|3:0|0|a|NonZeroExitCode
62|FAILED|0:11|0|a|RaisedSignal:11(Segmentation fault)
63|FAILED|0:9|0|a|RaisedSignal:9(Killed)
65|FAILED|0:53|0|a|RaisedSignal:53(Real-time signal 19)
66|FAILED|2:0|0|a|NonZeroExitCode
68|OUT_OF_MEMORY|0:125|0|a|OutOfMemory
70|CANCELLED|0:15|0|a|None
72|PENDING|0:0|0|a|JobHeldUser
73|CANCELLED|0:0|0|a|DependencyNeverSatisfied
74|PENDING|0:0|0|a|DependencyNeverSatisfied
75|CANCELLED|0:0|0|a|JobHeldUser
76|PENDING|0:0|0|a|BeginTime
79|RUNNING|0:0|0|a|None
"""

SACCT = """\
60|COMPLETED|0:0|a|2026-11-28T11:20:40|2026-11-28T11:20:41|None
61|FAILED|3:0|a|2026-11-28T11:20:40|2026-11-28T11:20:41|None
62|FAILED|0:11|a|2026-11-28T11:20:40|2026-11-28T11:20:41|None
65|FAILED|0:53|a|2026-11-28T11:20:40|2026-11-28T11:20:41|None
68|OUT_OF_MEMORY|0:125|a|2026-11-28T11:20:40|2026-11-28T11:20:41|None
70|CANCELLED by 0|0:0|a|2026-11-28T11:20:40|2026-11-28T11:20:44|None
72|PENDING|0:0|a|Unknown|Unknown|None
73|CANCELLED|0:0|a|None|2026-11-28T11:20:44|None
75|CANCELLED by 0|0:0|a|None|2026-11-28T11:20:44|None
80|CANCELLED|0:0|run|2026-11-28T11:25:46|2026-11-28T11:25:59|None
81|CANCELLED|0:0|pend|None|2026-11-28T11:25:59|None
"""
"""``--kill-on-invalid-dep`` removed 73. 80 and 81 slurmctld had forgotten when it came up again:
what is written of 81 does not differ from what is written of 73."""


def test_squeue():
    found = parse.parse_squeue(SQUEUE)
    assert parse.is_whole(SQUEUE)
    assert [status.state for status in found.values()] == [
        JobState.COMPLETED,
        *[JobState.FAILED] * 5,
        JobState.OUT_OF_MEMORY,
        JobState.CANCELLED,
        JobState.HELD,
        JobState.DEPENDENCY_FAILED,
        JobState.DEPENDENCY_FAILED,
        JobState.CANCELLED,
        JobState.WAITING,
        JobState.RUNNING,
    ]


@pytest.mark.parametrize(
    ("job_id", "exit_code", "signal", "reason"),
    [
        ("61", 3, None, "NonZeroExitCode"),
        ("62", 0, 11, ""),
        ("63", 0, 9, ""),
        ("65", 0, None, "the node could not open the job's log files"),
        ("66", 2, None, "NonZeroExitCode"),
    ],
)
def test_how_a_job_failed(job_id, exit_code, signal, reason):
    found = parse.parse_squeue(SQUEUE)[job_id]
    assert (found.exit_code, found.signal, found.reason) == (exit_code, signal, reason)


def test_sacct():
    found = parse.parse_sacct(SACCT)
    assert {job_id: status.state for job_id, status in found.items()} == {
        "60": JobState.COMPLETED,
        "61": JobState.FAILED,
        "62": JobState.FAILED,
        "65": JobState.FAILED,
        "68": JobState.OUT_OF_MEMORY,
        "70": JobState.CANCELLED,
        "72": JobState.WAITING,
        "73": JobState.LOST,
        "75": JobState.CANCELLED,
        "80": JobState.LOST,
        "81": JobState.LOST,
    }
    assert found["65"].reason == "the node could not open the job's log files"


# ---- what the node writes into a job's stderr ---------------------------------------------------

OOM = "Detected 1 oom_kill event in StepId=68.batch. Some of the step tasks have been OOM Killed."
TIME = "*** JOB 7 ON n3 CANCELLED AT 2026-11-28T11:20:44 DUE TO TIME LIMIT ***"
PREEMPTED = "*** JOB 7 ON n3 CANCELLED AT 2026-11-28T11:20:44 DUE TO PREEMPTION ***"
BAD = "execve(): bad interpreter(/nosuch/bash): No such file or directory"
CHDIR = "couldn't chdir to `/nosuch': No such file or directory: going to /tmp instead"
BEGINNINGS = [
    "slurmstepd: error: ",  # 22.05
    "slurmstepd-n3: error: ",  # 24.11
    "[2026-11-28T11:20:41.271] error: ",  # 25.05
    "[2026-11-28T11:20:41.271+01:00] error: ",  # LogTimeFormat=rfc5424_ms
    "[Nov 28 11:20:41] error: ",  # short
]


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_the_words_of_the_node(beginning):
    def said(words, exit_code=None):
        found = diagnose(f"Killed\n{beginning}{words}\n", exit_code, None)
        return found and found[0]

    assert said(OOM) is Outcome.OUT_OF_MEMORY
    assert said(TIME) is Outcome.TIMEOUT
    assert said(PREEMPTED) is Outcome.PREEMPTED
    assert said(BAD, 2) is Outcome.ENVIRONMENT
    assert said(CHDIR, 1) is Outcome.ENVIRONMENT
    assert said("*** JOB 7 ON n3 CANCELLED AT 2026-11-28T11:20:44 DUE to SIGNAL Killed ***") is None


def test_the_log_of_a_program_is_no_word_of_the_node():
    for line in (
        "[2026-11-28T11:20:41.271] error: the solver is out of memory",
        "[2026-11-28T11:20:41.271] error: step 3 ended DUE TO TIME LIMIT",
        "[worker] error: execve: no",
    ):
        assert diagnose(f"{line}\n", 1, None) is None


# ---- refusals ------------------------------------------------------------------------------------


def failure(words, returncode=1):
    return CommandError(("scontrol",), returncode, "", words)


@pytest.mark.parametrize(
    ("words", "harmless"),
    [
        # 24.11
        ("Invalid job id specified for job 5\nslurm_suspend error: No error\n", True),
        ("Unexpected message received for job 5\nslurm_suspend error: Unexpected message\n", False),
        # 25.05
        (
            "Invalid job id specified for job 5\nslurm_suspend error:Invalid job id specified\n",
            True,
        ),
        ("Job has already finished for job 5\nslurm_suspend error\n", True),
        ("Access/permission denied for job 5\nslurm_suspend error\n", False),
        ("slurm_suspend error\n", False),
        ("slurm_suspend error:Unexpected message received\n", False),
    ],
)
def test_a_release_that_failed_for_jobs_that_are_gone(words, harmless):
    assert refusals.is_harmless(failure(words)) is harmless


def test_no_controller():
    words = (
        "Unexpected message received for job 5\nslurm_suspend error:Unexpected message received\n"
    )
    assert refusals.is_temporary(failure(words))
    words = "sbatch: error: Batch job submission failed: Unable to contact slurm controller "
    assert refusals.meaning(failure(words + "(connect failure)\n")) is refusals.Meaning.UNCLEAR


REFUSED = "sbatch: error: Batch job submission failed: "


@pytest.mark.parametrize(
    ("words", "returncode", "what", "hint"),
    [
        (f"{REFUSED}Job dependency problem\n", 1, "REFUSED", ""),
        (f"{REFUSED}Invalid qos specification\n", 1, "REFUSED", "sacctmgr show qos"),
        (f"{REFUSED}Requested reservation is invalid\n", 1, "REFUSED", "show reservation"),
        (
            "sbatch: error: QOSMaxSubmitJobPerUserLimit\n"
            f"{REFUSED}Job violates accounting/QOS policy (job submit limit, user's size and/or "
            "time limits)\n",
            1,
            "PERHAPS_FULL",
            "queue is full",
        ),
        (
            "sbatch: option '--get-user-env' doesn't allow an argument\n"
            'Try "sbatch --help" for more information\n',
            255,
            "REFUSED",
            "write `#SBATCH --get-user-env`",
        ),
    ],
)
def test_what_sbatch_says(words, returncode, what, hint):
    assert refusals.meaning(failure(words, returncode)) is refusals.Meaning[what]
    assert hint in refusals.advice(words)


def test_what_nodes_there_are():
    text = "debug|2|4|5000|30:00|gpu:2\nlong|2|4|5000|7-00:00:00|(null)\n"
    assert [(k.partition, k.gpus) for k in parse.parse_sinfo(text)] == [("debug", 2), ("long", 0)]
