"""What is concluded from the answers of squeue and sacct, and how often they are asked."""

from __future__ import annotations

import pytest

from dask_batch.backends.base import JobState
from dask_batch.backends.command import Completed
from dask_batch.backends.slurm.inquiry import Inquiry
from dask_batch.errors import BackendUnavailableError, CommandError

NO_ANSWER = CommandError(("sacct",), 1, "", "sacct: error: slurm_persist_conn_open: refused")
DISABLED = CommandError(("sacct",), 1, "", "Slurm accounting storage is disabled")
INVALID = CommandError(("squeue",), 1, "", "slurm_load_jobs error: Invalid job id specified")


class Slurm:
    """Answers as told, and counts."""

    def __init__(self, squeue: str | Exception = "", sacct: str | Exception = "") -> None:
        self.answers = {"squeue": squeue, "sacct": sacct}
        self.calls: list[list[str]] = []
        self.now = 0.0
        self.inquiry = Inquiry(self.ask, lambda: self.now)

    def ask(self, argv):
        self.calls.append(list(argv))
        answer = self.answers[argv[0]]
        if isinstance(answer, Exception):
            raise answer
        return Completed(answer, "")

    def count(self, program: str) -> int:
        return sum(call[0] == program for call in self.calls)

    def states(self, *job_ids: str) -> dict[str, JobState]:
        return {i: s.state for i, s in self.inquiry.status(job_ids).items()}


def row(job_id, state, name="a", exit_code="0:0", start="1", end="2", reason="None"):
    return f"{job_id}|{state}|{exit_code}|{name}|{start}|{end}|{reason}\n"


def test_one_call_for_all_that_the_queue_knows():
    slurm = Slurm("".join(f"{i}|RUNNING|0|0|job-{i}|None\n" for i in range(5000)))
    ids = [str(i) for i in range(5000)]
    assert set(slurm.states(*ids).values()) == {JobState.RUNNING}
    assert len(slurm.calls) == 1
    assert max(len(word) for word in slurm.calls[0]) < 100


def test_the_name_tells_whose_an_id_is_now():
    status = Slurm("7|RUNNING|0|0|somebody-else|None\n").inquiry.status(["7"])["7"]
    assert status.name == "somebody-else"


@pytest.mark.parametrize("known", ["", row(7, "RUNNING"), row(7, "PENDING"), "garbage\n|||\n"])
def test_what_neither_knows_to_have_ended_is_lost(known):
    assert Slurm("", known).states("7") == {"7": JobState.LOST}


@pytest.mark.parametrize("known", [row(7, "COMPLETED"), row(7, "CANCELLED by 1000")])
def test_what_the_accounting_knows_to_have_ended_is_not_lost(known):
    assert Slurm("", known).states("7")["7"] is not JobState.LOST


def test_an_accounting_that_does_not_answer_loses_nothing():
    assert Slurm("", NO_ANSWER).states("7") == {}


@pytest.mark.parametrize("absence", [DISABLED, BackendUnavailableError("no sacct")])
def test_without_accounting_the_queue_alone_decides(absence):
    slurm = Slurm("1|RUNNING|0|0|a|None\n", absence)
    assert slurm.states("1", "2") == {"1": JobState.RUNNING, "2": JobState.LOST}
    assert slurm.states("1", "3") == {"1": JobState.RUNNING, "3": JobState.LOST}
    assert slurm.count("sacct") == 1


@pytest.mark.parametrize(
    "broken",
    [
        "6|RUNNING|0|0|a|None\n7|RUNN",
        "6|RUNNING|0|0|a|None",
        "6|RUNNING|0|0|a|None\nsqueue: error: something\n",
        "slurm_load_jobs: warning\n6|RUNNING|0|0|a|None\n",
        "6|RUNNING|0|0|a|None\n|RUNNING|0|0|a|None\n",
    ],
)
def test_what_is_missing_in_a_broken_answer_is_not_gone(broken):
    assert "7" not in Slurm(broken).states("6", "7")
    # But an end that the accounting knows is one.
    ended = Slurm(broken, row(7, "FAILED", exit_code="3:0")).states("7")
    assert ended == {"7": JobState.FAILED}


def test_no_answer_of_the_queue_is_no_status():
    slurm = Slurm(CommandError(("squeue",), None, "", ""), row(7, "COMPLETED"))
    with pytest.raises(CommandError):
        slurm.states("7")


def test_the_accounting_is_not_asked_again_and_again():
    """An hour of polls, one each two minutes, about jobs that nobody knows."""
    slurm = Slurm()
    lost = 0
    for poll in range(30):
        slurm.now = poll * 120.0
        lost += "7" in slurm.states("7")
    assert slurm.count("squeue") == 30
    assert len(slurm.calls) <= 60
    assert lost == slurm.count("sacct") < 30  # lost is said of what was asked just now
    assert lost >= 2


def test_a_young_loss_is_asked_about_soon():
    slurm = Slurm()
    heard = []
    for second in range(31):
        slurm.now = float(second)
        if slurm.states("7"):
            heard.append(second)
    assert heard == [0, 2, 6, 14, 30]


def test_an_end_is_remembered():
    slurm = Slurm("", row(7, "COMPLETED"))
    for _ in range(5):
        assert slurm.states("7") == {"7": JobState.COMPLETED}
    assert slurm.count("sacct") == 1


def test_a_job_that_the_queue_knows_again_is_believed():
    """It was requeued, or slurmctld has come back with its memory."""
    slurm = Slurm("", row(7, "FAILED", exit_code="1:0"))
    assert slurm.states("7") == {"7": JobState.FAILED}
    slurm.answers["squeue"] = "7|PENDING|0|0|a|None\n"
    assert slurm.states("7") == {"7": JobState.WAITING}
    slurm.answers |= {"squeue": "", "sacct": row(7, "COMPLETED")}
    assert slurm.states("7") == {"7": JobState.COMPLETED}


def test_ids_go_to_the_accounting_in_pieces():
    slurm = Slurm()
    assert len(slurm.states(*map(str, range(1200)))) == 1200
    assert slurm.count("sacct") == 3


def test_one_job_in_the_queue():
    assert Slurm("7|PENDING|0|0|a|None\n").inquiry.queued("7").state is JobState.WAITING
    assert Slurm("").inquiry.queued("7") is None
    assert Slurm(INVALID).inquiry.queued("7") is None
    with pytest.raises(CommandError):
        Slurm(CommandError(("squeue",), 1, "", "Unable to contact")).inquiry.queued("7")


def test_names_are_looked_up_in_the_queue_first():
    slurm = Slurm("7|a\n9|a\n8|b|c\n", "3|d\n")
    assert slurm.inquiry.find(["a"]) == {"a": "9"}
    assert slurm.count("sacct") == 0
    assert slurm.inquiry.find(["a", "d", "e"]) == {"a": "9", "d": "3"}


def test_a_look_up_that_half_fails_finds_nothing_to_be_missing():
    with pytest.raises(CommandError):
        Slurm("7|a\n", NO_ANSWER).inquiry.find(["a", "b"])
    assert Slurm("7|a\n", NO_ANSWER).inquiry.find(["a"]) == {"a": "7"}
    assert Slurm("7|a\n", DISABLED).inquiry.find(["a", "b"]) == {"a": "7"}


def test_it_is_known_since_when_a_job_is_over():
    """Since it was first called so, whoever asked: its credentials are refused up to then."""
    slurm = Slurm("7|FAILED|256|0|a|None\n8|RUNNING|0|0|b|None\n")
    assert slurm.inquiry.over_for_s("7") is None
    slurm.inquiry.queued("7")
    slurm.now = 2.0
    slurm.states("7", "8")
    slurm.now = 3.0
    assert slurm.inquiry.over_for_s("7") == 3.0
    assert slurm.inquiry.over_for_s("8") is None
    slurm.answers["squeue"] = "7|PENDING|256|1|a|job requeued in held state\n"
    slurm.states("7")
    assert slurm.inquiry.over_for_s("7") is None
