"""What Slurm 22.05.8 printed, and what is read from it."""

from __future__ import annotations

import logging
import math

import pytest

from dask_batch.backends.base import JobState
from dask_batch.backends.slurm import parse, states

SQUEUE = """\
4|COMPLETED|0|0|a|None
5|FAILED|768|0|a|NonZeroExitCode
6|FAILED|11|0|a|JobLaunchFailure
7|CANCELLED|0|0|a|DependencyNeverSatisfied
8|CANCELLED|0|0|a|JobHeldUser
9|PENDING|0|0|a|DependencyNeverSatisfied
10|PENDING|0|0|a|Dependency
11|PENDING|0|0|a|JobHeldUser
12|PENDING|0|0|a|(launch failed requeued held)
13|RUNNING|0|0|a|None
14|COMPLETING|0|0|a|None
15|PENDING|768|0|a|job requeued in held state
23|CANCELLED|0|0|a|Dependency
24|PENDING|0|0|a|ReqNodeNotAvail, Reserved for maintenance|x
40|FAILED|4021|0|a|JobLaunchFailure
41|FAILED|9|0|a|JobLaunchFailure
42|FAILED|512|0|a|NonZeroExitCode
43|FAILED|4014|0|a|JobLaunchFailure
44|FAILED|13568|0|a|NonZeroExitCode
45|FAILED|3840|0|a|NonZeroExitCode
46|FAILED|139|0|a|JobLaunchFailure
squeue: some warning
"""

SACCT = """\
5|FAILED|3:0|a|2026-11-22T19:17:50|2026-11-22T19:17:51|None
6|FAILED|0:11|a|2026-11-22T19:17:50|2026-11-22T19:17:51|None
7|CANCELLED|0:0|a|2026-11-22T19:17:51|2026-11-22T19:17:51|Dependency
8|CANCELLED by 0|0:0|a|2026-11-22T19:17:50|2026-11-22T19:17:51|None
22|CANCELLED by 0|0:0|a|2026-11-22T19:17:51|2026-11-22T19:17:51|JobHeldUser
23|CANCELLED by 1000|0:0|a|2026-11-22T19:17:51|2026-11-22T19:17:51|Dependency
30|OUT_OF_MEMORY|0:125|a|2026-11-22T19:17:50|2026-11-22T19:17:51|None
31|FAILED|0:53|a|2026-11-22T19:17:50|2026-11-22T19:17:50|None
32|TIMEOUT|0:0|a|2026-11-22T19:17:50|2026-11-22T19:18:51|None
33|PENDING|0:0|a|Unknown|Unknown|None
34|NODE_FAIL|1:0|a|2026-11-22T19:17:50|2026-11-22T19:17:51|None
35|CANCELLED|0:0|usercancel|2026-11-22T19:17:51|2026-11-22T19:17:51|JobHeldUser
36|CANCELLED|0:15|usercancelrun|2026-11-22T19:17:50|2026-11-22T19:17:51|None
37|CANCELLED|0:0|run|2026-11-22T19:20:29|2026-11-22T19:20:33|None
38|CANCELLED|0:0|pend|Unknown|2026-11-22T19:20:33|None
"""
"""35 and 36 a user had cancelled before slurmctld was restarted; 37 and 38 it had forgotten."""


def test_squeue():
    found = parse.parse_squeue(SQUEUE)
    assert {job_id: status.state for job_id, status in found.items()} == {
        "4": JobState.COMPLETED,
        "5": JobState.FAILED,
        "6": JobState.FAILED,
        "7": JobState.DEPENDENCY_FAILED,
        "8": JobState.CANCELLED,
        "9": JobState.DEPENDENCY_FAILED,
        "10": JobState.WAITING,
        "11": JobState.HELD,
        "12": JobState.LOST,
        "13": JobState.RUNNING,
        "14": JobState.ENDING,
        "15": JobState.HELD,
        "23": JobState.CANCELLED,
        "24": JobState.WAITING,
        **dict.fromkeys(("40", "41", "42", "43", "44", "45", "46"), JobState.FAILED),
    }
    assert (found["5"].exit_code, found["5"].signal) == (3, None)
    assert (found["6"].exit_code, found["6"].signal) == (0, 11)
    assert found["10"].exit_code is None
    assert found["4"].reason == ""
    assert {status.source for status in found.values()} == {"squeue"}


@pytest.mark.parametrize(
    ("job_id", "exit_code", "signal", "reason"),
    [
        ("40", 0, None, "the node could not open the job's log files"),
        ("41", 0, 9, ""),
        ("42", 2, None, "NonZeroExitCode"),  # a bad interpreter: slurmstepd ends with its errno
        ("43", 0, None, "the node could not start the job: slurmd's error 4014"),
        ("44", 53, None, "NonZeroExitCode"),
        ("45", 15, None, "NonZeroExitCode"),
        ("46", 0, 11, ""),  # and dumped core
    ],
)
def test_how_a_job_failed(job_id, exit_code, signal, reason):
    found = parse.parse_squeue(SQUEUE)[job_id]
    assert (found.exit_code, found.signal, found.reason) == (exit_code, signal, reason)


def test_a_job_that_the_accounting_cannot_name_yet_has_no_name():
    row = "5|FAILED|3:0|{}|2026-11-22T20:16:28|2026-11-22T20:16:28|None\n"
    assert parse.parse_sacct(row.format("allocation"))["5"].name == ""
    assert parse.parse_sacct(row.format("allocation-1_2"))["5"].name == "allocation-1_2"


def test_sacct():
    found = parse.parse_sacct(SACCT)
    assert {job_id: status.state for job_id, status in found.items()} == {
        "5": JobState.FAILED,
        "6": JobState.FAILED,
        "7": JobState.DEPENDENCY_FAILED,
        "8": JobState.CANCELLED,
        "22": JobState.CANCELLED,
        "23": JobState.CANCELLED,
        "30": JobState.OUT_OF_MEMORY,
        "31": JobState.FAILED,
        "32": JobState.TIMEOUT,
        "33": JobState.WAITING,
        "34": JobState.NODE_FAILURE,
        "35": JobState.CANCELLED,
        "36": JobState.CANCELLED,
        "37": JobState.LOST,
        "38": JobState.LOST,
    }
    assert (found["5"].exit_code, found["5"].signal) == (3, None)
    assert found["6"].signal == 11
    assert found["30"].signal is None
    assert "log files" in found["31"].reason
    assert found["31"].signal is None
    assert found["8"].word == "CANCELLED by 0"


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("CANCELLED by 1000", JobState.CANCELLED),
        ("CANCELLED+", JobState.CANCELLED),
        ("OUT_OF_ME+", JobState.UNKNOWN),
        ("SUSPENDED", JobState.RUNNING),
        ("CONFIGURING", JobState.RUNNING),
        ("STAGE_OUT", JobState.ENDING),
        ("REQUEUED", JobState.WAITING),
        ("DEADLINE", JobState.TIMEOUT),
        ("", JobState.UNKNOWN),
    ],
)
def test_words(word, state):
    assert states.job_state(word) is state


def test_an_unknown_word_is_not_finished_and_warned_of_once(caplog, monkeypatch):
    monkeypatch.setattr(states, "_warned", set())
    with caplog.at_level(logging.WARNING, logger="dask_batch"):
        found = parse.parse_squeue("1|HIBERNATING|0|0|a|None\n2|HIBERNATING|0|0|a|None\n")
    assert {status.state for status in found.values()} == {JobState.UNKNOWN}
    assert not found["1"].state.ended
    assert len(caplog.records) == 1
    assert "HIBERNATING" in caplog.text


@pytest.mark.parametrize(
    ("stdout", "job_id"),
    [
        ("123\n", "123"),
        ("123;cluster\n", "123"),
        ("Welcome to the cluster\n4 nodes are free\n77\n", "77"),
        ("77\nsubmitted to partition debug\n", "77"),
        ("Submitted batch job\n", None),
        ("", None),
    ],
)
def test_job_id(stdout, job_id):
    assert parse.parse_job_id(stdout) == job_id


def test_of_two_jobs_of_one_name_the_later_counts():
    assert parse.parse_names("9|a\n10|a\n8|a\n3|b|c\n4_[1-2]|d\n") == {"a": "10", "b|c": "3"}


def test_sinfo():
    text = (
        "debug|2|4|5000|30:00|gpu:2\n"
        "debug|1|64+|257000+|30:00|(null)\n"
        "long|2|4|5000|7-00:00:00|gpu:a100:4(S:0-1),gpu:t4:1,shard:8\n"
        "free|100|4|5000|infinite|mps:100\n"
    )
    first, second, third, fourth = parse.parse_sinfo(text)
    assert (first.partition, first.cpus, first.memory_mb, first.gpus) == ("debug", 4, 5000, 2)
    assert (first.count, fourth.count) == (2, 100)
    assert first.time_s == 1800
    assert (second.cpus, second.memory_mb, second.gpus) == (64, 257000, 0)
    assert (third.time_s, third.gpus) == (7 * 86400, 5)
    assert (fourth.time_s, fourth.gpus) == (math.inf, 0)


# ---- captured from newer versions --------------------------------------------------------------

SQUEUE_24_11 = """\
101|PENDING|0:0|1|a|Dependency
102|RUNNING|0:0|1|a|None
103|COMPLETED|0:0|1|a|None
104|FAILED|3:0|1|a|NonZeroExitCode
105|CANCELLED|0:15|1|a|None
106|OUT_OF_MEMORY|0:125|1|a|OutOfMemory
107|TIMEOUT|0:0|1|a|TimeLimit
108|PENDING|0:0|1|a|launch_failed_requeued_held
109|PENDING|3:0|1|a|job_requeued_in_held_state
"""
"""``squeue -O exit_code`` prints pairs in 24.11.3 (as captured by a project that emulates squeue,
with each of these states); reasons have underscores where scontrol prints them."""


def test_squeue_of_24_11():
    found = parse.parse_squeue(SQUEUE_24_11)
    assert [status.state for status in found.values()] == [
        JobState.WAITING,
        JobState.RUNNING,
        JobState.COMPLETED,
        JobState.FAILED,
        JobState.CANCELLED,
        JobState.OUT_OF_MEMORY,
        JobState.TIMEOUT,
        JobState.LOST,
        JobState.HELD,
    ]
    assert (found["104"].exit_code, found["104"].signal) == (3, None)
    assert (found["105"].exit_code, found["105"].signal) == (0, 15)
    assert found["106"].signal is None
    assert parse.is_whole(SQUEUE_24_11)


SACCT_23_11 = """\
2699001|CANCELLED by 54321|0:0|V_ALPHA_321800001_0_0|2026-08-13T10:00:00|2026-08-13T10:05:00|None
2699101|TIMEOUT|0:0|V_ALPHA_321800101_0_0|2026-08-13T10:00:00|2026-08-13T10:05:00|None
2699102|OUT_OF_MEMORY|0:125|V_ALPHA_321800102_0_0|2026-08-13T10:00:00|2026-08-13T10:05:00|None
2699103|NODE_FAIL|1:0|V_ALPHA_321800103_0_0|2026-08-13T10:00:00|2026-08-13T10:05:00|None
2699104|FAILED|1:0|V_ALPHA_321800104_0_0|2026-08-13T10:00:00|2026-08-13T10:05:00|None
"""
"""Ids, names and states as the fixtures of the Virtual Cell project have them from 23.11.10."""


def test_sacct_of_23_11():
    found = parse.parse_sacct(SACCT_23_11)
    assert [status.state for status in found.values()] == [
        JobState.CANCELLED,
        JobState.TIMEOUT,
        JobState.OUT_OF_MEMORY,
        JobState.NODE_FAILURE,
        JobState.FAILED,
    ]
    assert found["2699001"].name == "V_ALPHA_321800001_0_0"


def test_names_that_hold_anything_make_no_rows():
    """A history of 23.11.4 held names with newlines, tabs, bars and escapes."""
    text = "5|COMPLETED|0:0|x\n6|FAILED\ty|\x1b[1m|\n|1|2|None\n7|FAILED|1:0|a|1|2|None\n"
    assert parse.parse_sacct(text).keys() == {"7"}
    separators = "8|RUNNING|0|2|a\u2028b\x0b|None\n"
    assert parse.parse_squeue(separators)["8"].state is JobState.RUNNING
    assert parse.parse_squeue(separators)["8"].restarts == 2


def test_the_state_that_25_11_adds():
    assert states.job_state("EXPEDITING") is JobState.WAITING


def test_a_column_that_was_cut_is_no_verdict():
    """``squeue -O State`` without a width prints 20 characters, seen as COMPLETININVALID."""
    assert states.job_state("COMPLETININVALID") is JobState.UNKNOWN
    assert parse.SQUEUE_FORMAT.count(":") == len(parse.SQUEUE_FORMAT.split(","))
