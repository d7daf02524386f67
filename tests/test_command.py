from __future__ import annotations

import logging
import os
import sys
import time

import pytest

from dask_batch.backends.command import client_environment, command_environment, run
from dask_batch.errors import BackendUnavailableError, CommandError


def test_output_and_input():
    done = run([sys.executable, "-c", "print(input()[::-1])"], timeout_s=30, input="abc\n")
    assert done.stdout == "cba\n"


def test_a_failure_carries_everything():
    argv = ["sh", "-c", "echo out; echo err >&2; exit 3"]
    with pytest.raises(CommandError, match="err") as caught:
        run(argv, timeout_s=30)
    error = caught.value
    assert (error.argv, error.returncode) == (tuple(argv), 3)
    assert (error.stdout, error.stderr) == ("out\n", "err\n")


def test_a_missing_program_is_a_missing_batch_system():
    with pytest.raises(BackendUnavailableError, match="no-such-program"):
        run(["no-such-program"], timeout_s=30)


def test_a_program_without_input_reads_nothing():
    assert run(["cat"], timeout_s=30).stdout == ""


def test_a_time_limit_kills_what_the_command_started(tmp_path):
    mark = tmp_path / "pid"
    argv = ["sh", "-c", f"sleep 1000 & echo $! > {mark}; echo begun; wait"]
    with pytest.raises(CommandError, match="did not end in time") as caught:
        run(argv, timeout_s=1)
    assert caught.value.returncode is None
    assert caught.value.stdout == "begun\n"
    pid, deadline = int(mark.read_text()), time.monotonic() + 30
    while _runs(pid):
        assert time.monotonic() < deadline, "the child of the command is still there"
        time.sleep(0.01)


def test_a_command_is_given_up_for_what_it_says():
    heard: list[str] = []

    def give_up(stderr: str) -> bool:
        heard.append(stderr)
        return "hopeless" in stderr

    argv = ["sh", "-c", "cat; echo hopeless >&2; sleep 1000"]
    with pytest.raises(CommandError, match="did not end in time") as caught:
        run(argv, timeout_s=600, give_up=give_up, input="abc\n")
    assert caught.value.returncode is None
    assert (caught.value.stdout, caught.value.stderr) == ("abc\n", "hopeless\n")
    assert heard[-1] == "hopeless\n"
    assert run(["echo", "a"], timeout_s=600, give_up=give_up).stdout == "a\n"


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_output_that_is_not_utf8_is_no_error():
    assert run(["printf", r"a\377b"], timeout_s=30).stdout == "a\ufffdb"


def test_the_debug_log_shows_commands(caplog):
    with caplog.at_level(logging.DEBUG, logger="dask_batch"):
        run(["echo", "a b"], timeout_s=30)
    assert "echo 'a b'" in caplog.text


def test_commands_print_what_can_be_read():
    environ = {
        "PATH": "/bin",
        "LC_ALL": "de_DE.UTF-8",
        "SQUEUE_FORMAT": "%j",
        "SQUEUE_SORT": "t",
        "SACCT_FORMAT": "user",
        "SINFO_FORMAT": "%N",
        "SLURM_TIME_FORMAT": "relative",
        "SLURM_CLUSTERS": "other",
        "SLURM_CONF": "/opt/slurm.conf",
    }
    assert command_environment(environ) == {
        "PATH": "/bin",
        "LC_ALL": "C",
        "SLURM_CONF": "/opt/slurm.conf",
        "SLURM_BITSTR_LEN": "0",
    }


def test_the_clients_environment_loses_what_a_scheduler_put_there():
    environ = {
        "HOME": "/home/me",
        "SLURM_CONF": "x",
        "SLURM_NTASKS": "4",
        "PMI_RANK": "0",
        "PMIX_ID": "1",
        "FLUX_URI": "local:",
        "SBATCH_ACCOUNT": "mine",
        "PMIRROR": "kept",
    }
    kept = {"HOME": "/home/me", "SBATCH_ACCOUNT": "mine", "PMIRROR": "kept"}
    assert client_environment(environ) == kept
    inside = client_environment({**environ, "SLURM_JOB_ID": "7"})
    assert inside == {"HOME": "/home/me", "PMIRROR": "kept"}


def test_the_environment_of_this_process_is_not_changed(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert "SLURM_JOB_ID" not in client_environment()
    assert os.environ["SLURM_JOB_ID"] == "7"
