"""The contract of fake and real Slurm: what their commands say."""

from __future__ import annotations

import pytest

from dask_batch.backends.base import JobState
from slurm_systems import each_version, sbatch

pytest_plugins = ["slurm_systems"]


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
    "scontrol requeuehold 67000000": (1, "Invalid job id specified for job 67000000\n"),
    "scontrol update JobId=67000000 TimeLimit=3": (
        1,
        "Invalid job id specified for job 67000000\n",
    ),
    "scontrol nosuch": (1, "invalid keyword: nosuch\n"),
    "sbatch nosuch.sh": (1, "sbatch: error: Unable to open file nosuch.sh\n"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_commands_say(system, command):
    done = system.command(*command.split())
    assert (done.returncode, done.stdout + done.stderr) == COMMANDS[command]


@each_version
def test_what_a_release_says_of_jobs_that_are_not_there(system):
    newer = system.version >= (25, 5)
    known = system.submit(system.job())[0]
    rows = "Invalid job id specified for job 67000000\n"
    for arguments, heading in {
        "67000000": f"slurm_suspend error:{'' if newer else ' '}Invalid job id specified\n",
        f"67000000,{known}": "slurm_suspend error",
    }.items():
        done = system.command("scontrol", "release", arguments)
        assert done.returncode == 1
        assert (done.stdout + done.stderr).startswith(rows + heading)


@each_version
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
        f"update JobId={ended_id} Dependency=afterok:{held_id}": (
            f"Job has already finished for job {ended_id}\n"
        ),
        f"update JobId={held_id} Dependency=afterok:{held_id}": (
            f"Job dependency problem for job {held_id}\n"
        ),
        f"update JobId={held_id} NoSuch=3": (
            "Update of this parameter is not supported: NoSuch=3\nRequest aborted\n"
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
