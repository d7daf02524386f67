"""What batch systems say to who is inside an allocation, read: pure."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from dask_batch.backends.base import JobState
from dask_batch.backends.reach import Reach, ends_with_client, reach_of
from dask_batch.backends.within import place
from dask_batch.backends.within.allocation import Allocation, cpus_per_node, read_allocation
from dask_batch.backends.within.fluxrun import FluxRunLauncher, Instance, read_attached
from dask_batch.backends.within.launcher import Room
from dask_batch.backends.within.place import is_over, this_place
from dask_batch.backends.within.room import bounded
from dask_batch.backends.within.steps import StepLauncher, read_end
from dask_batch.cache.owner import Owner
from dask_batch.cache.run import Run
from dask_batch.errors import ResourceError
from dask_batch.evidence.whereabouts import Sight, sight_of
from within_harness import shell_job

SHOWN = "JobId=7 JobState=RUNNING NumCPUs=6 TRES=cpu=6,mem=3G,node=2,billing=6,gres/gpu=3 Socks=*"
ALLOCATED = SHOWN.replace(" TRES=", " ReqTRES=cpu=1,mem=1G,node=1 AllocTRES=")
SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_CPUS_PER_NODE": "4,2", "SLURMD_NODENAME": "n1"}


# ---- the allocation ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("4", (4,)), ("4(x2),2", (4, 4, 2)), ("72(x3)", (72, 72, 72)), ("", ())],
)
def test_cpus_of_nodes(text, cpus):
    assert cpus_per_node(text) == cpus


@pytest.mark.parametrize("shown", [SHOWN, ALLOCATED])
def test_an_allocation_is_read_from_scontrol_and_the_environment(shown):
    there = read_allocation("7", shown, SLURM)
    assert there.cpus == (4, 2)
    assert there.room == Room(cpus=6, gpus=3, memory_bytes=3 * 2**30)
    assert there.memory_of_node == 1.5 * 2**30
    assert (there.in_step, there.on_node) == (False, True)


def test_without_scontrol_the_environment_has_to_do():
    there = read_allocation("7", "", {**SLURM, "SLURM_GPUS": "2"})
    assert there.room == Room(cpus=6, gpus=2)
    assert read_allocation("7", "", SLURM).room == Room(cpus=6)


def test_without_the_environment_scontrol_has_to_do():
    assert read_allocation("7", SHOWN, {"SLURM_JOB_ID": "7"}).cpus == (3, 3)


@pytest.mark.parametrize(("step", "inside"), [("3", True), ("4294967290", False), ("", False)])
def test_an_interactive_shell_is_no_step(step, inside):
    environ = {**SLURM, "SLURM_STEP_ID": step, "SLURM_CPUS_ON_NODE": "1"}
    there = read_allocation("7", SHOWN, environ)
    assert there.in_step is inside
    assert there.cpus == ((1,) if inside else (4, 2))


def test_caps_bound_a_room_that_may_have_no_bound():
    assert bounded(Room(), max_workers=3, max_cores=None) == Room(jobs=3)
    there = Room(cpus=8, jobs=2, gpus=1)
    assert bounded(there, max_workers=3, max_cores=4) == Room(cpus=4, jobs=2, gpus=1)


# ---- ends --------------------------------------------------------------------------------------

BUSY = "srun: Job 7 step creation temporarily disabled, retrying (Requested nodes are busy)\n"


@pytest.mark.parametrize(
    ("code", "said", "state", "exit_code", "reason"),
    [
        (0, BUSY, JobState.COMPLETED, 0, ""),
        (7, "srun: error: n1: task 0: Exited with exit code 7", JobState.FAILED, 7, "exit code 7"),
        (137, "srun: error: n1: task 0: Killed", JobState.FAILED, 137, "137"),
        (1, "srun: error: n1: task 0: Out Of Memory", JobState.OUT_OF_MEMORY, 1, "Out Of Memory"),
        (-9, "", JobState.FAILED, None, "SIGKILL"),
        (
            1,
            "srun: error: Unable to create step for job 7: Memory required is not available",
            JobState.FAILED,
            None,
            "srun could not run its step: srun: error: Unable to create step",
        ),
    ],
)  # fmt: skip
def test_what_srun_says_of_a_step(code, said, state, exit_code, reason):
    how = read_end(code, said)
    assert (how.state, how.exit_code) == (state, exit_code)
    assert reason in how.reason


@pytest.mark.parametrize(
    ("code", "said", "state", "reason"),
    [
        (0, "", JobState.COMPLETED, ""),
        (7, "flux-job: task(s) exited with exit code 7", JobState.FAILED, "exit code 7"),
        (142, "1.0s: job.exception f1 type=timeout severity=0 resource allocation expired",
         JobState.TIMEOUT, "expired"),
        (1, "0.0s: job.exception f1 type=alloc severity=0 unsatisfiable request: 100 core(s)",
         JobState.FAILED, "Flux could not run it: unsatisfiable request"),
        (143, "9.1s: job.exception f1 type=cancel severity=0 ", JobState.CANCELLED, "cancelled"),
        (1, "flux-submit: ERROR: no such queue", JobState.FAILED, "no such queue"),
    ],
)  # fmt: skip
def test_what_flux_says_of_a_job(code, said, state, reason):
    how = read_attached(code, said)
    assert how.state is state
    assert reason in how.reason


# ---- commands ----------------------------------------------------------------------------------


def launcher(*, in_step: bool = False) -> StepLauncher:
    there = Allocation("7", (4, 2), 3, 2**31, in_step, on_node=True)
    return StepLauncher(there, {**SLURM, "SLURM_NTASKS": "6", "SLURM_CONF": "/conf"})


def test_a_step_gets_what_its_task_asks_for_and_no_more(tmp_path):
    job = shell_job(tmp_path, 3, "true", cores=2, memory_max=0.5, gpus_per_core=1)
    script = launcher().script(job)
    for word in (
        "--jobid=7", "--cpus-per-task=2", "--ntasks=1", "--exact", "--mem=512M",
        "--gpus-per-task=1", "--input=none", f"--job-name={job.name}",
    ):  # fmt: skip
        assert word in script.split(), word
    assert "--overlap" not in script


def test_a_step_that_asks_for_nothing_leaves_memory_and_gpus_to_others(tmp_path):
    words = launcher(in_step=True).script(shell_job(tmp_path, 0, "true")).split()
    assert {"--mem=0", "--gres=none", "--overlap"} <= set(words)


def test_further_options_go_to_srun_but_none_that_are_ours(tmp_path):
    asked = {"slurm_cmd_args": ["--hint=nomultithread"]}
    assert "--hint=nomultithread" in launcher().script(shell_job(tmp_path, 0, "true", **asked))
    for word in ("--ntasks=2", "-n2", "--job-na=x", "-Jx", "--output=/tmp/x"):
        with pytest.raises(ResourceError, match="cannot be given here"):
            launcher().check(shell_job(tmp_path, 0, "true", slurm_cmd_args=[word]))


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"cores": 5}, "5 CPUs are asked for, its largest node has 4"),
        ({"gpus_per_core": 4}, "4 GPUs are asked for, the allocation has 3"),
        ({"memory_max": 2}, r"memory_max=2 \(GB\): the allocation has 1 GB on a node"),
        ({"qos": "high"}, "no quality of service to choose; leave it out"),
    ],
)
def test_what_an_allocation_cannot_give_is_refused(tmp_path, asked, why):
    with pytest.raises(ResourceError, match=why):
        launcher().check(shell_job(tmp_path, 0, "true", **asked))


def test_the_step_of_ranks_leaves_to_others_what_is_theirs(tmp_path):
    started = {}
    one = launcher()
    one._leaders.start = lambda job, job_id, variables: started.update(variables)
    job = dataclasses.replace(
        shell_job(tmp_path, 0, "true"),
        resources={
            **shell_job(tmp_path, 0, "true", slurm_cmd_args=["--hint=nomultithread"]).resources,
            "cores": 4,
        },
    )
    one.start(job, "slurm-step-1-0")
    assert started == {
        "DASK_BATCH_STEP_OPTIONS": f"--job-name={job.name} --hint=nomultithread",
        "SLURM_MEM_PER_NODE": "0",
        "SLURM_GRES": "none",
        "SLURM_JOB_NUM_NODES": "1-2",
    }
    assert "SLURM_NTASKS" not in one._leaders._variables
    assert one._leaders._variables["SLURM_JOB_ID"] == "7"


def test_what_an_instance_cannot_give_is_refused(tmp_path):
    there = FluxRunLauncher(Instance(nodes=1, cores=8, gpus=2), "local:///x")
    script = there.script(shell_job(tmp_path, 0, "true", gpus_per_core=1))
    assert "-o gpu-affinity=per-task" in script
    for asked, why in (
        ({"cores": 9}, "9 cores are asked for, the instance of Flux has 8"),
        ({"gpus_per_core": 3}, "3 GPUs are asked for"),
        ({"memory_max": 1}, "Flux sets none"),
    ):
        with pytest.raises(ResourceError, match=why):
            there.check(shell_job(tmp_path, 0, "true", **asked))


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"python": "/opt/{{id}}/bin/python"}, "resource 'python'"),
        ({"job_script_prologue": ["echo {{id}}"]}, "resource 'job_script_prologue'"),
        ({}, "the cache directory"),
    ],
)
def test_what_flux_would_replace_is_refused(tmp_path, asked, what):
    there = FluxRunLauncher(Instance(nodes=1, cores=8, gpus=2), "local:///x")
    good = shell_job(tmp_path, 0, "true")
    there.check(good)
    logs = tmp_path if asked else tmp_path / "{{id}}"
    bad = dataclasses.replace(good, resources={**good.resources, **asked}, log_directory=logs)
    with pytest.raises(ResourceError, match=what):
        there.check(bad)
    # Their leader is a process, and no job of Flux.
    there.check(dataclasses.replace(bad, resources={**bad.resources, "cores": 2}))


# ---- who lives ---------------------------------------------------------------------------------


def test_what_is_declared_of_a_name():
    assert [reach_of(name) for name in ("slurm", "local", "slurm-step")] == [
        Reach.CLUSTER,
        Reach.HOST,
        Reach.CLIENT,
    ]
    assert [ends_with_client(name) for name in ("flux", "flux-step", "workers")] == [
        False,
        True,
        True,
    ]


def run(backend: str, place: str = "", **changes: object) -> Run:
    owner = dataclasses.replace(Owner.current(), **changes)
    return Run("r", owner, backend, 0.0, (), place)


@pytest.mark.parametrize(
    ("run", "sight"),
    [
        (run("slurm", host="elsewhere"), Sight.SEEN),
        (run("local"), Sight.SEEN),
        (run("local", host="elsewhere"), Sight.HIDDEN),
        (run("slurm-step"), Sight.SEEN),
        (run("slurm-step", pid=1, started="0"), Sight.GONE),
        (run("slurm-step", host="elsewhere"), Sight.HIDDEN),
        (run("slurm-step", "slurm:here:7:0", host="elsewhere"), Sight.GONE),
        (run("slurm-step", "slurm:there:7:0", host="elsewhere"), Sight.HIDDEN),
        (run("slurm-step", "slurm:7:0", host="elsewhere"), Sight.HIDDEN),
        (run("slurm-step", "slurm:here:7:1", host="elsewhere"), Sight.HIDDEN),
    ],
)
def test_whom_one_can_ask_and_who_has_gone(run, sight, tmp_path, monkeypatch):
    # This process is in the first repetition of that job.
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "here")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    cluster_of_stand_in(tmp_path, monkeypatch)
    assert sight_of(run) is sight


def cluster_of_stand_in(folder, monkeypatch, *, cluster="here", jobs=()):
    """Put an ``scontrol`` on PATH that knows these jobs of a cluster, and no other ones."""
    shown = "".join(f'"job {n}") echo "JobId={n} Restarts=0 JobState={s} Reason=None";;\n'
                    for n, s in dict(jobs).items())  # fmt: skip
    script = folder / "scontrol"
    script.write_text(
        f"""#!/bin/sh
case "$3 $4" in
"config ") printf 'BOOT_TIME = x\\nClusterName             = {cluster}\\n';;
{shown}*) echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1;;
esac
"""
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(place, "_known", {})


def test_a_place_that_says_nothing_is_not_over():
    assert this_place({}) == ""
    assert this_place(SLURM) == ""  # of which cluster?
    assert is_over("", {}) is None
    assert is_over("slurm:8:0", {}) is None


def test_a_place_names_its_cluster():
    assert this_place({**SLURM, "SLURM_CLUSTER_NAME": "here"}) == "slurm:here:7:0"


def test_a_cluster_is_not_asked_about_the_jobs_of_another(tmp_path, monkeypatch):
    cluster_of_stand_in(tmp_path, monkeypatch, jobs={8: "COMPLETED"})
    assert is_over("slurm:here:9:0", {}) is True  # forgotten
    assert is_over("slurm:there:9:0", {}) is None
    assert is_over("slurm:there:8:0", {}) is None
    other = {**SLURM, "SLURM_CLUSTER_NAME": "there"}
    assert is_over("slurm:there:8:0", other) is None  # what is asked counts, not where one is
    assert is_over("slurm:here:7:0", other) is True


@pytest.mark.parametrize(
    ("word", "over"),
    [
        *[
            (word, False)
            for word in ("RUNNING", "SIGNALING", "RESIZING", "STAGE_OUT", "COMPLETING")
        ],
        *[(word, False) for word in ("POWER_UP_NODE", "EXPEDITING", "REQUEUED", "STOPPED")],
        *[(word, True) for word in ("COMPLETED", "FAILED", "NODE_FAIL", "PREEMPTED", "CANCELLED")],
        ("OF_A_LATER_SLURM", None),
    ],
)
def test_a_job_is_over_in_its_last_states_alone(word, over, tmp_path, monkeypatch):
    cluster_of_stand_in(tmp_path, monkeypatch, jobs={8: word})
    assert is_over("slurm:here:8:0", {}) is over


def test_only_what_is_certain_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(place, "_KEEP_S", 0.0)
    for word, over in (("OF_A_LATER_SLURM", None), ("RUNNING", False), ("FAILED", True)):
        cluster_of_stand_in(tmp_path, monkeypatch, jobs={8: word})
        assert is_over("slurm:here:8:0", {}) is over
        known = dict(place._known)
    (tmp_path / "scontrol").unlink()
    monkeypatch.setattr(place, "_known", known)
    assert is_over("slurm:here:8:0", {}) is True


@pytest.mark.slurm
def test_slurm_is_asked_about_the_jobs_that_others_are_in(tmp_path: Path, slurm: object) -> None:
    import subprocess

    def said(*argv: str) -> str:
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout

    cluster = re.search(r"ClusterName\s*= (\S+)", said("scontrol", "show", "config"))[1]
    job = said("sbatch", "--parsable", f"--chdir={tmp_path}", "--hold", "--wrap=true").strip()
    assert is_over(f"slurm:{cluster}:{job}:0", {}) is False
    assert is_over(f"slurm:{cluster}:3999999:0", {}) is True
    assert is_over("slurm:elsewhere:3999999:0", {}) is None
