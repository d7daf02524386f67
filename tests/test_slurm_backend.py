"""The backend on a real Slurm; the jobs run small shell commands in place of tasks."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time

import pytest

from dask_batch.backends.base import JobState
from dask_batch.backends.slurm import inquiry
from dask_batch.errors import QueueFullError, ResourceError, SubmissionError, TemplateError
from slurm_cluster import OWN_TEMPLATE, PATIENCE_S, Cluster, until

pytestmark = pytest.mark.slurm


@pytest.fixture
def cluster(slurm, tmp_path):
    logs = tmp_path / 'logs, 100% %j "x"'
    cluster = Cluster(logs)
    yield cluster
    cluster.backend.close()


def test_nothing_starts_before_it_is_released(cluster, slurm):
    first, second = cluster.job(), cluster.job()
    child = cluster.job(parents=[first, second])
    cluster.submit(first, second, child)
    states = {job.name: cluster.state(job) for job in (first, second, child)}
    assert states == {
        first.name: JobState.HELD,
        second.name: JobState.HELD,
        child.name: JobState.WAITING,
    }
    assert len(slurm()) == 3
    cluster.backend.release([cluster.ids[first.name], cluster.ids[second.name]])
    cluster.wait_for(child, JobState.COMPLETED)


def test_a_child_runs_after_all_its_parents_and_only_if_all_succeeded(cluster):
    good = [cluster.job(f"echo {i} >> order") for i in range(2)]
    bad = cluster.job("exit 3")
    child = cluster.job("cat order", parents=good)
    orphan = cluster.job("true", parents=[*good, bad])
    grandchild = cluster.job("true", parents=[orphan])
    cluster.go(*good, bad, child, orphan, grandchild)
    cluster.wait_for(child, JobState.COMPLETED)
    assert sorted(cluster.output(child).split()) == ["0", "1"]
    cluster.wait_for(orphan, JobState.DEPENDENCY_FAILED)
    cluster.wait_for(grandchild, JobState.DEPENDENCY_FAILED)
    status = cluster.backend.status([cluster.ids[bad.name]])[cluster.ids[bad.name]]
    assert (status.state, status.exit_code) == (JobState.FAILED, 3)


def test_jobs_of_an_earlier_hand_over_are_waited_for(cluster):
    early = cluster.job("sleep 1; echo early > order")
    cluster.go(early)
    late = cluster.job("cat order", after=[cluster.ids[early.name]])
    cluster.submit(late)
    assert cluster.state(late) is JobState.HELD
    cluster.backend.release([cluster.ids[late.name]])
    cluster.wait_for(late, JobState.COMPLETED)
    assert cluster.output(late) == "early\n"


def test_a_template_of_executorlib_with_three_parents(cluster):
    own = {"submission_template": OWN_TEMPLATE, "partition": "debug", "run_time_max": 180}
    parents = [cluster.job("true", **own) for _ in range(2)]
    parents.append(cluster.job("false", memory_max=0.5, **own))
    child = cluster.job("true", parents=parents[:2], cores=2, **own)
    orphan = cluster.job("true", parents=parents, **own)
    cluster.go(*parents, child, orphan)
    cluster.wait_for(child, JobState.COMPLETED)
    cluster.wait_for(orphan, JobState.DEPENDENCY_FAILED)
    seen = cluster.described(child)
    assert (seen["NumCPUs"], seen["TimeLimit"]) == ("2", "00:03:00")


def test_cpus_are_allocated_and_threads_set(cluster):
    job = cluster.job("echo $OMP_NUM_THREADS $SLURM_CPUS_PER_TASK", cores=4, memory_max=0.3)
    cluster.go(job)
    cluster.wait_for(job, JobState.COMPLETED)
    assert cluster.output(job) == "4 4\n"
    seen = cluster.described(job)
    assert (seen["NumCPUs"], seen["MinMemoryNode"]) == ("4", "308M")


def test_a_gpu_is_allocated_whether_the_template_prints_it_or_not(cluster):
    bare = "#!/bin/bash\n#SBATCH --ntasks={{ cores }}\n{{ command }}\n"
    jobs = [
        cluster.job("echo $CUDA_VISIBLE_DEVICES", gpus_per_core=1),
        cluster.job("echo $CUDA_VISIBLE_DEVICES", gpus_per_core=1, submission_template=bare),
    ]
    cluster.go(*jobs)
    for job in jobs:
        cluster.wait_for(job, JobState.COMPLETED)
        assert cluster.output(job).strip() in ("0", "1")


def test_the_job_has_the_clients_environment_less_the_schedulers(cluster, monkeypatch):
    monkeypatch.setenv("MY_SETTING", "a b")
    monkeypatch.setenv("SLURM_NTASKS", "77")
    monkeypatch.setenv("SBATCH_ARRAY_INX", "0-3")
    monkeypatch.setenv("SQUEUE_FORMAT", "%j")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    job = cluster.job('echo "$MY_SETTING,$SLURM_NTASKS,$LC_ALL,$DASK_BATCH_BACKEND"; pwd')
    cluster.go(job)
    cluster.wait_for(job, JobState.COMPLETED)
    assert cluster.output(job) == f"a b,1,C.UTF-8,slurm\n{cluster.logs}\n"


def test_jobs_are_found_by_name(cluster):
    done, held = cluster.job(), cluster.job()
    cluster.go(done)
    cluster.submit(held)
    cluster.wait_for(done, JobState.COMPLETED)
    assert cluster.backend.find([done.name, held.name, "test.job-none"]) == cluster.ids


def test_cancelling_waiting_running_ended_and_unknown(cluster):
    held, running, ended = cluster.job(), cluster.job("sleep 1000"), cluster.job()
    cluster.submit(held)
    cluster.go(running, ended)
    cluster.wait_for(ended, JobState.COMPLETED)
    cluster.wait_for(running, JobState.RUNNING)
    cluster.backend.cancel([*cluster.ids.values(), "99999999"])
    cluster.wait_for(held, JobState.CANCELLED)
    cluster.wait_for(running, JobState.CANCELLED)
    assert cluster.state(ended) is JobState.COMPLETED


def test_releasing_what_was_cancelled_lets_the_others_go(cluster):
    first, second = cluster.job(), cluster.job()
    cluster.submit(first, second)
    cluster.backend.cancel([cluster.ids[first.name]])
    cluster.wait_for(first, JobState.CANCELLED)
    cluster.backend.release([cluster.ids[first.name], cluster.ids[second.name]])
    cluster.wait_for(second, JobState.COMPLETED)


def test_a_signal_is_told(cluster):
    job = cluster.job("kill -SEGV $$")
    cluster.go(job)
    cluster.wait_for(job, JobState.FAILED)
    assert cluster.backend.status([cluster.ids[job.name]])[cluster.ids[job.name]].signal == 11


def python(program: str) -> str:
    """Return the shell line that becomes a Python program."""
    return f"exec {shlex.quote(sys.executable)} -c {shlex.quote(program)}"


def test_python_itself_is_warned_before_the_time_limit(cluster):
    job = cluster.job(
        python(
            "import signal, sys, time; "
            "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7)); "
            "time.sleep(1000)"
        ),
        run_time_max=60,
    )
    cluster.go(job)
    cluster.wait_for(job, JobState.FAILED)
    assert cluster.status(job).exit_code == 7


def test_a_warning_that_nobody_handles_ends_nothing(cluster):
    job = cluster.job("echo begun; sleep 5")
    cluster.go(job)
    # A job is called running before its script has begun, and then nothing ignores the signal yet.
    log = cluster.logs / f"{job.index}.out"
    until(lambda: log.exists() and log.read_text(), lambda: "it has not begun")
    argv = ["scancel", "--batch", "--signal=USR1", cluster.ids[job.name]]
    subprocess.run(argv, check=True)
    cluster.wait_for(job, JobState.COMPLETED)


def test_memory_is_told(cluster):
    if "task/cgroup" not in subprocess.getoutput("scontrol show config"):
        pytest.skip("Slurm tells of memory where it has a cgroup to enforce it (SLURM_TEST_OOM)")
    job = cluster.job(python("print(len(bytearray(400 << 20)))"), memory_max=0.1)
    cluster.go(job)
    cluster.wait_for(job, JobState.OUT_OF_MEMORY)


def test_a_users_limit_on_jobs_is_a_full_queue(cluster, slurm):
    if "limits" not in subprocess.getoutput("scontrol show config | grep StorageEnforce"):
        pytest.skip("this Slurm enforces no limits; that of ci/slurm/slurm-up does")
    roots = [cluster.job(qos="tiny") for _ in range(9)]
    with pytest.raises(QueueFullError, match="QOSMaxSubmitJobPerUserLimit") as caught:
        cluster.submit(*roots)
    assert caught.value.job_name not in cluster.ids
    assert len(slurm()) == len(cluster.ids) <= 5


def test_a_job_that_the_queue_forgot_is_in_the_accounting(cluster, monkeypatch):
    good, bad = cluster.job(), cluster.job("exit 4")
    orphan = cluster.job(parents=[bad])
    cluster.go(good, bad, orphan)
    # Neither the queue nor the accounting always keeps the reason.
    cluster.wait_for(orphan, JobState.DEPENDENCY_FAILED, JobState.CANCELLED)
    cluster.wait_for(good, JobState.COMPLETED)
    ask = cluster.backend._ask

    def forgetful(argv):
        # MinJobAge is 300 s: asking about another user's jobs stands in for waiting that long.
        return ask([*argv, "-u", "nobody"] if argv[0] == "squeue" else argv)

    monkeypatch.setattr(cluster.backend, "_ask", forgetful)
    monkeypatch.setattr(inquiry, "LONGEST_PAUSE_S", 0.2)  # it may hear late of the orphan's end
    cluster.wait_for(good, JobState.COMPLETED)
    cluster.wait_for(bad, JobState.FAILED)
    # Of a job that never started, the accounting may keep what it keeps of one that was lost.
    cluster.wait_for(orphan, JobState.DEPENDENCY_FAILED, JobState.CANCELLED, JobState.LOST)
    status = cluster.backend.status([cluster.ids[bad.name]])[cluster.ids[bad.name]]
    assert (status.source, status.exit_code) == ("sacct", 4)
    # By name the accounting finds a job some seconds later than by id (22.05).
    deadline = time.monotonic() + PATIENCE_S
    while cluster.backend.find([good.name]) != {good.name: cluster.ids[good.name]}:
        assert time.monotonic() < deadline, "the accounting does not know the name"
        time.sleep(0.05)


def test_an_unknown_id_is_lost(cluster):
    assert cluster.backend.status(["99999999"])["99999999"].state is JobState.LOST
    assert cluster.backend.status(["99999999"]) == {}  # not asked for again so soon
    assert cluster.backend.status([]) == {}
    assert cluster.backend.find([]) == {}


def test_a_refusal_leaves_nothing_running(cluster, slurm):
    roots = [cluster.job() for _ in range(3)]
    refused = cluster.job(parents=roots, account="nosuchaccount")
    child = cluster.job(parents=[refused])
    with pytest.raises(SubmissionError, match="Invalid account") as caught:
        cluster.submit(*roots, refused, child)
    assert caught.value.job_name == refused.name
    assert caught.value.script.read_text().startswith("#!/bin/bash")
    assert set(cluster.ids) == {root.name for root in roots}
    assert {cluster.state(root) for root in roots} == {JobState.HELD}


@pytest.mark.parametrize(
    ("resources", "error", "named"),
    [
        ({"memory_max": 5000}, ResourceError, "memory_max"),
        ({"num_nodes": 1000}, ResourceError, "num_nodes"),
        ({"cores": 1000}, ResourceError, "cores"),
        ({"run_time_max": 3600, "partition": "debug"}, ResourceError, "run_time_max.* 30"),
        ({"submission_template": OWN_TEMPLATE}, TemplateError, "partition"),
        ({"submission_template": "#!/bin/sh\n{% if %}"}, TemplateError, "line 2"),
        ({"submission_template": "echo {{ command }}"}, TemplateError, "#!/bin/bash"),
        ({"slurm_cmd_args": ["--array=1-2"]}, ResourceError, "--array"),
    ],
)
def test_what_is_wrong_is_found_before_submission(cluster, slurm, resources, error, named):
    with pytest.raises(error, match=named):
        cluster.backend.check([cluster.job(), cluster.job(**resources)])
    assert slurm() == []


def test_what_is_right_is_accepted(cluster):
    cluster.backend.check(
        [
            cluster.job(cores=4, memory_max=4.8, gpus_per_core=2, run_time_max=1800),
            cluster.job(partition="debug,long", exclusive=True, num_nodes=4),
        ]
    )


def test_every_directive_of_the_builtin_template_is_accepted_by_sbatch(cluster):
    """It stays held: others may be at work on the nodes that it is to have for itself."""
    job = cluster.job(
        cores=2,
        memory_max=0.5,
        run_time_max=90,
        partition="debug",
        account="test",
        num_nodes=2,
        exclusive=True,
        priority=-10,
        gpus_per_core=1,
        job_extra_directives=["--mail-type=NONE", "--comment='a b'"],
        slurm_cmd_args="--nodelist=n[1-2]",
        job_script_prologue="export FROM_PROLOGUE=yes",
    )
    cluster.backend.check([job])
    cluster.submit(job)
    seen = cluster.described(job)
    assert (seen["TimeLimit"], seen["Account"], seen["Nice"]) == ("00:02:00", "test", "10")
    assert (seen["NumTasks"], seen["CPUs/Task"], seen["MinMemoryNode"]) == ("2", "2", "512M")
    assert (seen["OverSubscribe"], seen["ReqNodeList"], seen["Partition"]) == (
        "NO",
        "n[1-2]",
        "debug",
    )


def test_nodes_and_prologue(cluster):
    job = cluster.job(num_nodes=2, job_script_prologue="export FROM_PROLOGUE=yes")
    cluster.lines[job.index] = "echo $FROM_PROLOGUE $SLURM_JOB_NUM_NODES $SLURM_NTASKS"
    cluster.go(job)
    cluster.wait_for(job, JobState.COMPLETED)
    assert cluster.output(job) == "yes 2 2\n"
