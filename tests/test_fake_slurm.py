"""The fake Slurm itself: its faults, its memory, and that it leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dask_batch.testing import Call, FakeSlurm
from dask_batch.testing.fake_slurm import dependencies, processes
from dask_batch.testing.fake_slurm.dependencies import Outcome
from dask_batch.testing.fake_slurm.requests import Refusal, minutes, options_of

DONE = Outcome(started=True, ended=True, succeeded=True)
FAILED = Outcome(started=True, ended=True, succeeded=False)
RUNNING = Outcome(started=True, ended=False, succeeded=False)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    with FakeSlurm(tmp_path / "fake", message_timeout_s=0.2) as fake:
        monkeypatch.setenv("PATH", fake.environment()["PATH"])
        monkeypatch.chdir(tmp_path)
        yield fake


def run(line):
    return subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60)


def submit(body, options=""):
    done = run(f"sbatch --parsable {options} --wrap={body!r}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_until(condition, patience_s=30.0):
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def script_of(directory):
    """Return the process id of the one job that runs."""
    wait_until(lambda: list((directory / "jobs").glob("*/pid.1")))
    (path,) = (directory / "jobs").glob("*/pid.1")
    return int(path.read_text())


def ended(fake, job_id, state="COMPLETED"):
    wait_until(lambda: fake.states()[job_id] == state)


# ---- faults ----------------------------------------------------------------------------------


def test_calls_are_written_down(fake):
    began = time.time()
    run("squeue -h")
    run("sinfo; squeue -j 1,2")
    assert [(call.command, call.arguments) for call in fake.calls()] == [
        ("squeue", ("-h",)),
        ("sinfo", ()),
        ("squeue", ("-j", "1,2")),
    ]
    (call,) = fake.calls("sinfo")
    assert call == Call("sinfo", (), call.time)
    assert began <= call.time <= time.time()


def test_a_command_fails_for_a_share_of_its_calls_the_same_ones_each_time(fake, tmp_path):
    fake.fail("squeue", share=0.5, seed=3)
    first = [run("squeue").returncode for _ in range(12)]
    assert {0, 1} == set(first)
    fake.heal("squeue")
    assert run("squeue").returncode == 0
    fake.fail("squeue", share=0.5, seed=3)
    assert [run("squeue").returncode for _ in range(12)] == first


def test_a_command_refuses_so_many_times(fake):
    fake.refuse("sbatch", "Batch job submission failed: Socket timed out", times=2)
    for _ in range(2):
        done = run("sbatch --wrap=true")
        assert done.stderr == "sbatch: error: Batch job submission failed: Socket timed out\n"
        assert done.returncode == 1
    assert run("sbatch --wrap=true").returncode == 0
    assert len(fake.states()) == 1


def test_what_a_command_prints_is_spoilt(fake):
    for _ in range(4):
        submit("true", "--hold")
    whole = run("squeue -h").stdout
    fake.reorder("squeue", times=1)
    assert run("squeue -h").stdout == "".join(reversed(whole.splitlines(keepends=True)))
    fake.truncate("squeue", 100, times=1)
    done = run("squeue -h")
    assert (done.stdout, done.stderr) == (whole[:100], "")
    fake.garble("squeue", times=1)
    spoilt = run("squeue -h").stdout.splitlines()
    assert len(spoilt) == 4
    assert 0 < sum(line in spoilt for line in whole.splitlines()) < 4
    assert run("squeue -h").stdout == whole


def test_a_command_that_hangs_does_its_work_in_the_end(fake):
    fake.hang("sbatch", 1.0, times=1)
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(["sbatch", "--wrap=true"], timeout=0.3, capture_output=True)
    assert fake.states() == {}
    assert submit("true") == "1"


def test_the_accounts_lag_behind(fake):
    fake.lag(sacct_s=1000)
    job_id = submit("true")
    ended(fake, job_id)
    assert run("sacct -X -n").stdout == ""
    fake.lag(sacct_s=0)
    assert "COMPLETED" in run("sacct -X -n").stdout


def test_without_accounts_sacct_says_so(tmp_path, monkeypatch):
    with FakeSlurm(tmp_path, accounting=False) as fake:
        monkeypatch.setenv("PATH", fake.environment()["PATH"])
        done = run("sacct -j 1")
    assert (done.returncode, done.stderr) == (1, "Slurm accounting storage is disabled\n")


def test_submissions_are_put_off(fake):
    fake.temporarily_unable(2)
    done = run("sbatch --parsable --wrap=true")
    words = "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
    assert (done.stdout, done.stderr) == ("1\n", words)


def test_a_limit_counts_what_has_not_ended(fake):
    fake.limit(max_submit=1)
    job_id = submit("sleep 1000")
    done = run("sbatch --wrap=true")
    assert "Job violates accounting/QOS policy (job submit limit, user's size" in done.stderr
    run(f"scancel {job_id}")
    ended(fake, job_id, "CANCELLED")
    submit("true")


# ---- a controller that goes and comes ------------------------------------------------------------


def test_jobs_go_on_while_the_controller_is_away(fake, tmp_path):
    job_id = submit("while ! test -e gate; do sleep 0.05; done; exit 3")
    child = submit("true", f"--dependency=afternotok:{job_id}")
    ended(fake, job_id, "RUNNING")
    fake.down()
    done = run("squeue")
    assert (done.returncode, done.stderr) == (
        1,
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n",
    )
    assert "RUNNING" in run("sacct -X -n").stdout
    (tmp_path / "gate").touch()
    fake.up()
    ended(fake, child)
    assert fake.states() == {job_id: "FAILED", child: "COMPLETED"}


def test_a_controller_that_is_killed_loses_what_it_had_not_saved(fake, tmp_path):
    for _ in range(3):
        submit("true", "--hold")
    wait_until(lambda: '"job_id": 3' in (tmp_path / "fake/state.json").read_text())
    fake.down(kill=True)
    fake.up()
    assert sorted(fake.states()) == ["1", "2", "3"]
    fake.lose("3")
    assert "3|CANCELLED" in run("sacct -X -n -P --format JobID,State").stdout
    assert submit("true", "--hold") == "3"


def test_a_job_whose_supervisor_is_killed_has_failed(fake):
    job_id = submit("sleep 1000")
    ended(fake, job_id, "RUNNING")
    job = script_of(fake.directory)
    supervisor = int(Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    ended(fake, job_id, "FAILED")
    assert not processes.alive(job)


def test_a_second_fake_goes_on_where_the_first_one_was(tmp_path, monkeypatch):
    for expected in ("1", "2"):
        with FakeSlurm(tmp_path / "fake") as fake:
            monkeypatch.setenv("PATH", fake.environment()["PATH"])
            assert submit("true", "--hold") == expected
    assert "1|PENDING\n2|PENDING" in run("sacct -X -n -P --format JobID,State").stdout


def test_nothing_is_left_when_the_owner_is_killed(tmp_path):
    program = (
        "import subprocess, sys, time\n"
        "from dask_batch.testing import FakeSlurm\n"
        "fake = FakeSlurm(sys.argv[1])\n"
        "fake.start()\n"
        "environment = fake.environment()\n"
        "subprocess.run(['sbatch', '--wrap=sleep 1000'], env=environment, check=True)\n"
        "while 'RUNNING' not in fake.states().values(): time.sleep(0.02)\n"
        "print('runs', flush=True)\n"
        "time.sleep(1000)\n"
    )
    argv = [sys.executable, "-c", program, str(tmp_path / "fake")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as owner:
        assert owner.stdout is not None
        while "runs" not in owner.stdout.readline():
            assert owner.poll() is None
        job = script_of(tmp_path / "fake")
        owner.kill()
    wait_until(lambda: not processes.alive(job))


def test_what_waits_does_not_begin_when_all_is_stopped(tmp_path, monkeypatch):
    with FakeSlurm(tmp_path / "fake", cpus=1) as fake:
        monkeypatch.setenv("PATH", fake.environment()["PATH"])
        monkeypatch.chdir(tmp_path)
        first, second = submit("sleep 1000"), submit("sleep 1000")
        ended(fake, first, "RUNNING")
        script_of(fake.directory)
    assert list((tmp_path / "fake" / "jobs").glob(f"{second}-*/order.*")) == []
    with fake:
        ended(fake, second, "RUNNING")


def test_a_long_path_is_no_obstacle(tmp_path, monkeypatch):
    with FakeSlurm(tmp_path / ("long" * 40)) as fake:
        monkeypatch.setenv("PATH", fake.environment()["PATH"])
        assert submit("true", "--hold") == "1"


# ---- jobs ------------------------------------------------------------------------------------


def test_as_many_jobs_run_as_there_are_cpus(fake):
    for _ in range(3):
        submit("sleep 1000", "--cpus-per-task=2")
    wait_until(lambda: sorted(fake.states().values()) == ["PENDING", "RUNNING", "RUNNING"])
    assert run("squeue -h -j 3,4 -o %r").stdout == "Resources\n"


def test_what_a_job_leaves_behind_ends_with_it(fake, tmp_path):
    job_id = submit("sleep 1000 & echo $! > pid")
    ended(fake, job_id)
    wait_until(lambda: not processes.alive(int((tmp_path / "pid").read_text())))


def test_a_job_that_ignores_sigterm_is_killed(fake, tmp_path):
    job_id = submit("trap : TERM; touch deaf; while :; do sleep 0.1; done")
    wait_until(lambda: (tmp_path / "deaf").exists())
    run(f"scancel {job_id}")
    ended(fake, job_id, "CANCELLED")


def test_a_job_is_warned_before_its_time_limit(tmp_path, monkeypatch):
    with FakeSlurm(tmp_path / "fake", minute_s=2.0) as fake:
        monkeypatch.setenv("PATH", fake.environment()["PATH"])
        monkeypatch.chdir(tmp_path)
        job_id = submit("trap 'echo warned; exit 5' USR1; while :; do sleep 0.05; done",
                        "--time=1 --signal=B:USR1@30")  # fmt: skip
        ended(fake, job_id, "FAILED")
        assert (tmp_path / f"slurm-{job_id}.out").read_text() == "warned\n"


@pytest.mark.parametrize("both", [False, True])
def test_a_job_runs_twice_under_its_id(fake, tmp_path, both):
    line = "echo x >> runs; while ! test -e gate; do sleep 0.05; done; echo x >> ends"
    job_id = submit(line)
    wait_until(lambda: (tmp_path / "runs").exists())
    fake.run_twice(job_id, both=both)
    wait_until(lambda: (tmp_path / "runs").read_text() == "x\nx\n")
    (tmp_path / "gate").touch()
    ended(fake, job_id)
    wait_until(lambda: (tmp_path / "ends").read_text() == "x\n" * (2 if both else 1))


def test_a_job_that_ended_is_called_running_until_it_is_cancelled(fake):
    gone, dying = submit("true"), submit("sleep 1000")
    ended(fake, gone)
    ended(fake, dying, "RUNNING")
    for job_id in (gone, dying):
        fake.haunt(job_id)
    fake.kill(dying)
    child = submit("true", f"--dependency=afterok:{gone}")
    for _ in range(10):
        assert fake.states() == {gone: "RUNNING", dying: "RUNNING", child: "PENDING"}
    run(f"scancel {gone} {dying}")
    ended(fake, gone, "CANCELLED")
    ended(fake, dying, "CANCELLED")
    assert run(f"squeue -h -j {child} -o %r").stdout == "DependencyNeverSatisfied\n"


def test_a_haunted_job_meets_its_time_limit(tmp_path, monkeypatch):
    with FakeSlurm(tmp_path / "fake", minute_s=1.0) as fake:
        monkeypatch.setenv("PATH", fake.environment()["PATH"])
        monkeypatch.chdir(tmp_path)
        job_id = submit("true", "--time=1")
        ended(fake, job_id)
        fake.haunt(job_id)
        assert fake.states()[job_id] == "RUNNING"
        ended(fake, job_id, "TIMEOUT")


def test_what_others_could_read_or_write_is_closed_to_them(tmp_path, monkeypatch):
    before = os.umask(0)
    try:
        with FakeSlurm(tmp_path / "fake") as fake:
            monkeypatch.setenv("PATH", fake.environment()["PATH"])
            monkeypatch.chdir(tmp_path)
            ended(fake, submit("true"))
            folder = fake.directory
            made = [folder, folder / "socket", folder / "jobs", *(folder / "jobs").iterdir()]
            made += (folder / "jobs").glob("*/environment")
            assert len(made) == 5
            assert [path for path in made if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
    finally:
        os.umask(before)


def test_what_cannot_happen_to_a_job_is_said(fake):
    job_id = submit("true", "--hold")
    with pytest.raises(ValueError, match="does not run: it is PENDING"):
        fake.preempt(job_id)
    with pytest.raises(ValueError, match="has not ended"):
        fake.purge(job_id)
    with pytest.raises(ValueError, match="no job 77"):
        fake.lose("77")


def test_a_word_of_another_version(fake):
    job_id = submit("true", "--hold")
    fake.say(job_id, "LAUNCH_FAILED")
    assert run("squeue -h -t all -o %T").stdout == "LAUNCH_FAILED\n"


def test_old_jobs_are_forgotten(tmp_path, monkeypatch):
    with FakeSlurm(tmp_path / "fake", min_job_age_s=0.2) as fake:
        monkeypatch.setenv("PATH", fake.environment()["PATH"])
        monkeypatch.chdir(tmp_path)
        submit("true")
        wait_until(lambda: fake.states() == {})
        assert "1|COMPLETED" in run("sacct -X -n -P --format JobID,State").stdout


def test_the_names_of_logs_are_patterns(fake, tmp_path):
    job_id = submit("echo hi", "-J name --output=%x-%4j-100%%.out")
    ended(fake, job_id)
    assert (tmp_path / "name-0001-100%.out").read_text() == "hi\n"


# ---- pure ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "outcomes", "left"),
    [
        ("afterok:1", {1: DONE}, ("", False)),
        ("afterok:1", {1: FAILED}, ("afterok:1(failed)", True)),
        ("afterok:1", {}, ("", False)),
        ("afternotok:1", {1: DONE}, ("afternotok:1(failed)", True)),
        ("afternotok:1", {1: FAILED}, ("", False)),
        ("afterany:1", {1: FAILED}, ("", False)),
        ("after:1", {1: RUNNING}, ("", False)),
        ("afterok:1:2", {1: DONE, 2: RUNNING}, ("afterok:2(unfulfilled)", False)),
        (
            "afterok:1:2",
            {1: FAILED, 2: RUNNING},
            ("afterok:1(failed),afterok:2(unfulfilled)", True),
        ),
        ("afternotok:1?afternotok:2", {1: RUNNING, 2: FAILED}, ("", False)),
        (
            "afternotok:1?afternotok:2",
            {1: DONE, 2: RUNNING},
            ("afternotok:1(failed)?afternotok:2(unfulfilled)", False),
        ),
        (
            "afternotok:1?afternotok:2",
            {1: DONE, 2: DONE},
            ("afternotok:1(failed)?afternotok:2(failed)", True),
        ),
    ],
)
def test_dependencies(text, outcomes, left):
    assert dependencies.evaluate(dependencies.normal_form(text), outcomes.get) == left


def test_a_mark_stays():
    assert dependencies.evaluate("afterok:1(failed)", {1: DONE}.get)[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("0:05", 1), ("1:30:00", 90), ("1-0", 1440), ("1-1:30", 1530), ("2:30", 3)],
)
def test_times(text, expected):
    assert minutes(text) == expected


def test_the_command_line_prevails_over_the_environment_and_that_over_the_script():
    script = "#!/bin/sh\n#SBATCH --partition=a --account=a -J 'a b'\ntrue\n#SBATCH --mem=1\n"
    environment = {"SBATCH_PARTITION": "b", "SBATCH_ACCOUNT": "b"}
    options = options_of(["--partition=c"], script, environment)
    assert options == {"partition": "c", "account": "b", "job-name": "a b"}


@pytest.mark.parametrize("option", ["--array=1-3", "--wait", "--clusters=x"])
def test_what_the_fake_does_not_know_is_refused(option):
    with pytest.raises(Refusal, match="this fake of Slurm has no"):
        options_of([option], "#!/bin/sh\n", {})


def test_a_job_that_was_forgotten_after_its_state_was_saved_stays_forgotten(fake):
    forgotten = submit("true", "--hold")
    fake.down()  # saves
    (folder,) = (fake.directory / "jobs").iterdir()
    shutil.rmtree(folder)
    fake.up()
    assert forgotten not in fake.states()
    ended(fake, submit("true"))
