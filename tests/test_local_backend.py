"""The local queue with real processes: how jobs start, end, and are ended."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dask_batch.backends.base import JobState
from dask_batch.backends.local import LocalBackend, local_jobs
from dask_batch.errors import ConfigurationError, ResourceError, SubmissionError
from local_harness import Bench, alive, bench, eventually, queue_pid


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with bench(monkeypatch) as a_bench:
        yield a_bench


# ---- how jobs end ------------------------------------------------------------------------------


def test_ends_are_told_apart(given: Bench) -> None:
    good, bad, raising, killed = given.run(
        *(given.job(body) for body in ("nothing", "exit_three", "raises", "killed"))
    )
    assert (good.state, good.exit_code) == (JobState.COMPLETED, 0)
    assert (bad.state, bad.exit_code) == (JobState.FAILED, 3)
    assert (raising.state, raising.exit_code) == (JobState.FAILED, 1)
    assert (killed.state, killed.signal, killed.exit_code) == (JobState.FAILED, 9, None)
    assert {status.source for status in (good, bad, killed)} == {"local queue"}


def test_time_limit(given: Bench) -> None:
    kind, stubborn = given.run(
        given.job("forever", run_time_max=0.2), given.job("stubborn", run_time_max=0.2)
    )
    assert (kind.state, kind.signal) == (JobState.TIMEOUT, signal.SIGTERM)
    assert (stubborn.state, stubborn.signal) == (JobState.TIMEOUT, signal.SIGKILL)
    assert "run_time_max" in kind.reason


def test_memory_limit(given: Bench) -> None:
    (status,) = given.run(given.job("memory", memory_max=0.25))
    assert status.state is JobState.OUT_OF_MEMORY
    assert "memory_max" in status.reason


def test_a_mapped_file_is_not_the_jobs_memory(given: Bench) -> None:
    with (given.folder / "large").open("wb") as file:
        file.truncate(400 * 2**20)
    (status,) = given.run(given.job("mapped_file", memory_max=0.25))
    assert status.state is JobState.COMPLETED


def test_dependents_of_a_failure_never_run(given: Bench) -> None:
    bad = given.job("exit_three", "bad")
    child = given.job("count", "child", parents=["bad"])
    grandchild = given.job("count", "grandchild", parents=["child"])
    other = given.job("count", "other")
    ended = given.run(bad, child, grandchild, other)
    assert [status.state for status in ended[1:3]] == [JobState.DEPENDENCY_FAILED] * 2
    assert "bad" in ended[1].reason
    assert given.runs() == [other.index]


def test_parents_come_first(given: Bench) -> None:
    jobs = [given.job("count", "0")]
    jobs += [given.job("count", str(i), parents=[str(i - 1)]) for i in range(1, 20)]
    given.run(*jobs)
    assert given.runs() == [job.index for job in jobs]


def test_after_a_job_handed_over_earlier(given: Bench) -> None:
    first = given.job("until_file")
    ids = given.submit(first)
    second = given.job("count", after=list(ids.values()))
    failed = given.end(given.submit(bad := given.job("exit_three")))[bad.name]
    third = given.job("count", after=[failed.job_id])
    unknown = given.job("count", after=["local-nobody-knows-it-1"])
    ids |= given.submit(second, third, unknown)
    given.finding(first)
    (given.folder / "go").touch()
    ended = given.end(ids)
    assert ended[second.name].state is JobState.COMPLETED
    assert ended[third.name].state is JobState.DEPENDENCY_FAILED
    assert set(given.runs()) == {second.index, unknown.index}


# ---- hand-over ---------------------------------------------------------------------------------


def test_nothing_runs_before_the_release(given: Bench) -> None:
    jobs = [given.job("count", "root"), given.job("count", "child", parents=["root"])]
    ids = given.submit(*jobs, release=False)
    states = given.backend.status(ids.values())
    assert [states[ids[name]].state for name in ("root", "child")] == [
        JobState.HELD,
        JobState.WAITING,
    ]
    given.run(given.job("nothing"))
    assert given.runs() == []
    given.backend.release(list(ids.values()))
    given.end(ids)
    assert len(given.runs()) == 2


def test_a_refused_hand_over_leaves_nothing(given: Bench) -> None:
    given.submit(given.job("nothing", "same"), release=False)
    with pytest.raises(SubmissionError) as caught:
        given.submit(given.job("nothing", "fresh"), given.job("nothing", "same"))
    assert caught.value.job_name == "same"
    assert "same" in str(caught.value)
    assert given.backend.find(["fresh"]) == {}


def test_ids_are_found_by_name_and_never_used_again(given: Bench) -> None:
    ids = given.submit(given.job("nothing", "one"), given.job("nothing", "two"))
    given.end(ids)
    assert given.backend.find(["one", "two", "three"]) == ids
    again = given.submit(given.job("nothing", "one"))
    assert again["one"] not in ids.values()
    assert given.backend.find(["one"]) == again


def test_a_large_hand_over(given: Bench) -> None:
    jobs = [given.job("nothing", "root")]
    jobs += [given.job("nothing", f"j{i}", parents=["root"]) for i in range(30_000)]
    ids = given.submit(*jobs, release=False)
    assert len(set(ids.values())) == len(jobs)
    assert len(given.backend.status(ids.values())) == len(jobs)
    given.backend.cancel([ids["root"]])
    states = given.backend.status(ids.values())
    assert states[ids["j29999"]].state is JobState.DEPENDENCY_FAILED


def test_two_clients_share_the_queue(given: Bench) -> None:
    other = LocalBackend()
    try:
        ids = given.submit(given.job("count"), given.job("count"))
        ids |= given.submit(given.job("count"), backend=other)
        assert given.end(ids).keys() == ids.keys()
        assert len(other.status(ids.values())) == 3
        assert len({job_id.rpartition("-")[0] for job_id in ids.values()}) == 1
    finally:
        other.close()


def test_max_workers_binds_its_own_jobs_only(given: Bench) -> None:
    capped = LocalBackend(max_workers=1)
    try:
        slow, waiting, free = (given.job("until_file") for _ in range(3))
        ids = given.submit(slow, waiting, backend=capped)
        given.finding(slow)
        ids |= given.submit(free)
        given.finding(free)
        assert capped.status([ids[waiting.name]])[ids[waiting.name]].state is JobState.WAITING
        (given.folder / "go").touch()
        assert {status.state for status in given.end(ids).values()} == {JobState.COMPLETED}
    finally:
        capped.close()
    with pytest.raises(ConfigurationError):
        LocalBackend(max_workers=0)


def test_a_parent_must_be_handed_over_before_its_child(given: Bench) -> None:
    with pytest.raises(ValueError, match="nobody"):
        given.submit(given.job("nothing", parents=["nobody"]))


def test_many_kinds_of_preload_share_few_parents(given: Bench) -> None:
    modules = ["fractions", "decimal", "colorsys", "calendar", "csv", "cmd", "chunk", "crypt"]
    statuses = given.run(*(given.job("look", preload=(name,)) for name in modules * 2))
    assert {status.state for status in statuses} == {JobState.COMPLETED}
    queue = queue_pid()
    parents = [p for p in psutil.process_iter(["cmdline", "ppid"]) if p.info["ppid"] == queue]
    assert len(parents) <= 8


# ---- cancelling --------------------------------------------------------------------------------


def test_cancel_waiting_and_running(given: Bench) -> None:
    running = given.job("forever")
    waiting = given.job("count", parents=[running.name])
    held = given.job("count")
    ids = given.submit(running, waiting)
    ids |= given.submit(held, release=False)
    pid = given.finding(running)
    given.backend.cancel([ids[held.name], ids[running.name], "local-no-such-job-1", "nonsense"])
    ended = given.end(ids)
    assert ended[running.name].state is JobState.CANCELLED
    assert ended[waiting.name].state is JobState.DEPENDENCY_FAILED
    assert ended[held.name].state is JobState.CANCELLED
    assert not alive(pid)
    given.backend.cancel(ids.values())
    assert given.runs() == []


@pytest.mark.parametrize("body", ["leaves_children", "leaves_children_forever"])
def test_what_a_job_leaves_behind_is_killed(given: Bench, body: str) -> None:
    job = given.job(body)
    ids = given.submit(job)
    pids = given.finding(job)
    if body.endswith("forever"):
        assert all(map(alive, pids))
        given.backend.cancel(ids.values())
    given.end(ids)
    assert not any(map(alive, pids))


# ---- how jobs start ----------------------------------------------------------------------------


def test_a_forked_job_sees_what_a_new_process_would_see(given: Bench) -> None:
    environment = given.environment | {"ODD": "a=b\nc\udcff", "OMP_NUM_THREADS": "77"}
    job = given.job("look", environment=environment)
    (status,) = given.run(job)
    seen = given.finding(job)
    own = {"DASK_BATCH_JOB_ID": status.job_id, "DASK_BATCH_BACKEND": "local"}
    assert seen["environment"].items() >= own.items()
    assert seen["environment"]["OMP_NUM_THREADS"] == "1"
    added = seen["environment"].keys() - environment.keys() - own.keys()
    assert all(name.endswith("_THREADS") for name in added)
    assert environment.keys() <= seen["environment"].keys()
    assert seen["environment"]["ODD"] == environment["ODD"]
    assert seen["directory"] == str(given.folder)
    assert seen["session"]
    assert seen["threads"] == 1
    assert seen["blocked"] == []
    assert seen["ignored"] == sorted([signal.SIGPIPE, signal.SIGXFSZ, signal.SIGUSR1])
    assert seen["main"] == "__main__"
    assert not {"networkx", "jinja2", "dask.array"} & set(seen["modules"])


def test_a_job_has_its_own_files_and_no_others(given: Bench) -> None:
    job = given.job("look")
    given.run(job)
    base = given.folder / str(job.index)
    assert given.finding(job)["files"] == {"0": "/dev/null", "1": f"{base}.out", "2": f"{base}.err"}
    assert base.with_suffix(".out").read_text() == "to stdout\n"
    assert base.with_suffix(".err").read_text() == "to stderr\n"
    assert {base.with_suffix(s).stat().st_mode & 0o777 for s in (".out", ".err")} == {0o600}


def test_forks_do_not_share_their_randomness(given: Bench) -> None:
    jobs = [given.job("look", preload=("numpy.random",)) for _ in range(2)]
    given.run(*jobs)
    assert given.finding(jobs[0])["random"] != given.finding(jobs[1])["random"]


def test_preloaded_modules_are_there_for_who_asked_for_them_alone(given: Bench) -> None:
    asked, plain = given.job("look", preload=("fractions", "no_such_module")), given.job("look")
    statuses = given.run(asked, plain)
    assert {status.state for status in statuses} == {JobState.COMPLETED}
    assert "fractions" in given.finding(asked)["modules"]
    assert "fractions" not in given.finding(plain)["modules"]


def test_a_preload_that_starts_threads_is_not_forked_from(given: Bench) -> None:
    module = given.folder / "threaded_module.py"
    module.write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(9,),"
        " daemon=True).start()\n"
    )
    path = f"{given.environment['PYTHONPATH']}{os.pathsep}{given.folder}"
    job = given.job(
        "look", preload=("threaded_module",), environment=given.environment | {"PYTHONPATH": path}
    )
    (status,) = given.run(job)
    assert status.state is JobState.COMPLETED
    assert given.finding(job)["threads"] == 1


def test_a_job_whose_parent_hangs_in_an_import_can_be_cancelled(given: Bench) -> None:
    (given.folder / "hanging_module.py").write_text("import time\ntime.sleep(600)\n")
    path = f"{given.environment['PYTHONPATH']}{os.pathsep}{given.folder}"
    job = given.job(
        "count", preload=("hanging_module",), environment=given.environment | {"PYTHONPATH": path}
    )
    ids = given.submit(job)
    given.backend.cancel(ids.values())
    assert given.end(ids)[job.name].state is JobState.CANCELLED
    assert given.runs() == []


def interpreter(folder: Path) -> Path:
    """Return an interpreter that reports what it was started with."""
    program = folder / "some python"
    program.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@"\n'
        'echo "$OMP_NUM_THREADS|$PROLOGUE|$DASK_BATCH_BACKEND"\npwd\n'
    )
    program.chmod(0o700)
    return program


def test_a_fresh_process_for_another_interpreter(given: Bench) -> None:
    job = given.job("x y'z", python=str(interpreter(given.folder)), threads_per_core=2)
    (status,) = given.run(job)
    assert status.state is JobState.COMPLETED
    said = (given.folder / f"{job.index}.out").read_text().splitlines()
    assert said[:3] == ["-P", "-m", "dask_batch.job"]
    assert said[3:] == [str(job.definition), str(job.index), "2||local", str(given.folder)]


def test_a_prologue_runs_before_the_job_in_the_same_shell(given: Bench) -> None:
    prologue = ("export PROLOGUE='first line'", "cd /")
    program = str(interpreter(given.folder))
    job = given.job("x y'z", python=program, job_script_prologue=prologue)
    (status,) = given.run(job)
    assert status.state is JobState.COMPLETED, (given.folder / f"{job.index}.err").read_text()
    said = (given.folder / f"{job.index}.out").read_text().splitlines()
    assert said[3:] == [str(job.definition), str(job.index), "1|first line|local", "/"]


def test_an_interpreter_that_is_not_there(given: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = given.job("nothing")
    given.backend.check([job])
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    (status,) = given.run(job)
    assert status.state is JobState.FAILED
    assert "/no/such/python" in (given.folder / f"{job.index}.err").read_text()


def test_something_was_installed_meanwhile(given: Bench) -> None:
    folder = given.folder / "site-packages"
    folder.mkdir()
    (folder / "library_a.py").touch()
    path = f"{given.environment['PYTHONPATH']}{os.pathsep}{folder}"
    environment = given.environment | {"PYTHONPATH": path}
    before = given.job("look", environment=environment, preload=("library_a",))
    given.run(before)
    (folder / "library_b.py").touch()
    after = given.job("look", environment=environment, preload=("library_a", "library_b"))
    same = given.job("look", environment=environment, preload=("library_a",))
    statuses = given.run(after, same)
    assert {status.state for status in statuses} == {JobState.COMPLETED}
    assert "library_a" in given.finding(same)["modules"]


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resources", "named"),
    [
        ({"threads_per_core": 100_000}, "threads_per_core"),
        ({"cores": 100_000}, "cores"),
        ({"memory_max": 10**6}, "memory_max"),
        ({"run_time_max": 10**15}, "run_time_max"),
        ({"gpus_per_core": 100}, "gpus_per_core"),
        ({"partition": "debug"}, "partition"),
        ({"num_nodes": 2}, "num_nodes"),
        ({"exclusive": True}, "exclusive"),
        ({"cwd": "/no/such/directory"}, "cwd"),
        ({"python": "/no/such/python"}, "python"),
    ],
)
def test_check_names_what_this_machine_cannot_give(
    given: Bench, resources: dict[str, object], named: str
) -> None:
    good = given.job("nothing", gpus_per_core=0, partition=None, num_nodes=1, exclusive=False)
    given.backend.check([good])
    with pytest.raises(ResourceError, match=named):
        given.backend.check([good, given.job("nothing", **resources)])


def test_script_shows_what_would_run(given: Bench) -> None:
    job = given.job("x y'z", job_script_prologue=("module load x",), threads_per_core=3)
    text = given.backend.script(job, ["local-1"])
    assert text.startswith("#!/usr/bin/env bash\n# starts when local-1 has completed\n")
    assert "OMP_NUM_THREADS=3" in text
    assert "\nmodule load x\nexec " in text
    assert text.endswith(f""" {job.index}\n""")


# ---- looking -----------------------------------------------------------------------------------


def test_news_end_a_wait(given: Bench) -> None:
    job = given.job("until_file")
    ids = given.submit(job)
    given.finding(job)
    given.backend.status(ids.values())
    given.backend.wait(0)
    (given.folder / "go").touch()
    given.backend.wait(600)
    (status,) = given.backend.status(ids.values()).values()
    assert status.state is JobState.COMPLETED


def test_wake_ends_the_wait_that_comes_next(given: Bench) -> None:
    given.backend.wake()
    given.backend.wait(600)
    given.backend.wake()
    given.backend.status([])
    given.backend.wait(600)


def test_what_is_not_known_is_missing(given: Bench) -> None:
    assert given.backend.status(["nonsense", "123", "local-a-b-c-1", "local-1"]) == {}


def test_jobs_that_have_not_ended_are_listed(given: Bench) -> None:
    job = given.job("forever")
    ids = given.submit(job)
    given.run(given.job("nothing"))
    given.finding(job)
    assert [(j.name, j.status.job_id) for j in local_jobs()] == list(ids.items())


def test_many_jobs_leave_no_descriptors_behind(given: Bench) -> None:
    given.run(*(given.job("nothing") for _ in range(5)))
    queue = Path(f"/proc/{queue_pid()}/fd")
    before = len(list(queue.iterdir()))
    ours = len(os.listdir("/proc/self/fd"))
    given.run(*(given.job("nothing") for _ in range(50)))
    for _ in range(5):
        passing = LocalBackend()
        passing.status([])
        passing.close()
    eventually(lambda: len(list(queue.iterdir())) <= before, what="no more descriptors than before")
    assert len(os.listdir("/proc/self/fd")) == ours
