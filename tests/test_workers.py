"""Executors with long-lived workers: they keep their state and take one task after another."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest

import worker_bodies as bodies
from clients import poll
from dask_batch import SingleNodeExecutor, cluster_get
from dask_batch.backends.within.launcher import Room
from dask_batch.backends.workers.process import WorkerProcesses
from dask_batch.backends.workers.worker import State
from dask_batch.errors import (
    ConfigurationError,
    DiedTaskError,
    RemoteTraceback,
    ResourceError,
    TaskError,
)
from dask_batch.job.exit_codes import FAILED
from dask_batch.job.kept import NOTHING
from dask_batch.job.workbench import _run

Open = Callable[..., SingleNodeExecutor]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    folder = tmp_path / "traces"
    folder.mkdir()
    return folder


@pytest.fixture
def open_executor(cache: Path) -> Iterator[Open]:
    """Open executors with workers; what runs when the test is over is ended."""
    opened: list[SingleNodeExecutor] = []

    def make(max_workers: int = 1, **options: Any) -> SingleNodeExecutor:
        executor = SingleNodeExecutor(
            max_workers, cache_directory=cache, block_allocation=True, **options
        )
        opened.append(executor)
        return executor

    yield make
    for executor in opened:
        executor.shutdown(wait=False, cancel_futures=True)
        executor.shutdown()


def seen(folder: Path, word: str) -> list[int]:
    """Return the processes that have left a word."""
    return [int(path.name.split(".")[1]) for path in folder.glob(f"{word}.*")]


def states(exe: SingleNodeExecutor) -> set[State]:
    """Return what the workers of an executor are at."""
    pool = exe._session.workers
    assert pool is not None
    return {worker.state for worker in list(pool._staff.workers.values())}


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# ---- one task after another ------------------------------------------------------------------


def test_a_worker_takes_one_task_after_another_and_keeps_its_state(open_executor: Open) -> None:
    exe = open_executor()
    fresh = {"cache": False}
    pids = [exe.submit(bodies.process, resource_dict=fresh) for _ in range(3)]
    assert len({future.result(timeout=60) for future in pids}) == 1
    counted = [exe.submit(bodies.count, 1, resource_dict=fresh).result(60) for _ in range(3)]
    assert counted == [1, 2, 3]


def test_results_are_found_again_by_workers_and_by_jobs_alike(
    open_executor: Open, cache: Path, traces: Path
) -> None:
    call = functools.partial(bodies.beginning, traces)
    first = open_executor().submit(call).result(60)
    assert open_executor().submit(call).result(60) == first
    with SingleNodeExecutor(cache_directory=cache) as plain:
        assert plain.submit(call).result(60) == first
    assert len(seen(traces, "begin")) == 1


def test_futures_are_arguments_and_graphs_are_computed(open_executor: Open) -> None:
    exe = open_executor(2)
    total: Any = 0
    for number in range(4, 8):
        total = exe.submit(sum, [number, total])
    assert total.result(60) == 22
    squares = [dask.delayed(pow)(number, 2) for number in range(4)]
    assert dask.compute(dask.delayed(sum)(squares), scheduler=exe) == (14,)
    assert exe.compute(dask.delayed(max)(squares)).result(60) == 9


def test_a_graph_may_have_workers_of_its_own(cache: Path) -> None:
    pids = [dask.delayed(bodies.process, pure=False)(number) for number in range(4)]
    how = {"backend": "local", "cache_directory": cache, "block_allocation": True}
    (found,) = dask.compute(pids, scheduler=cluster_get, max_workers=1, fuse="none", **how)
    assert len(set(found)) == 1
    poll(lambda: gone(found[0]), 30, "the end of the worker")


def test_each_task_has_its_own_logs(open_executor: Open) -> None:
    exe = open_executor()
    one, two = (exe.submit(bodies.printed, word) for word in ("one", "two"))
    assert one.result(60) == two.result(60)
    assert one.stdout().splitlines() == ["out one", "child one"]
    assert two.stdout().splitlines() == ["out two", "child two"]
    assert two.stderr() == "err two\n"


def test_an_exception_leaves_the_worker_alive(open_executor: Open) -> None:
    exe = open_executor()
    before = exe.submit(bodies.process, 1)
    failed = exe.submit(bodies.raising, "no")
    after = exe.submit(bodies.process, 2)
    with pytest.raises(ValueError, match="no") as caught:
        failed.result(60)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert before.result(60) == after.result(60)


def test_what_was_edited_is_what_runs(
    open_executor: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    exe = open_executor()
    values = []
    for answer in (1, 2):
        (tmp_path / "edited_for_workers.py").write_text(f"def f():\n    return {answer}\n")
        sys.modules.pop("edited_for_workers", None)
        sys.path_importer_cache.clear()
        (tmp_path / "__pycache__").exists() and _forget(tmp_path / "__pycache__")
        import edited_for_workers  # type: ignore[import-not-found]

        values.append(exe.submit(edited_for_workers.f).result(60))
    assert values == [1, 2]


def _forget(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def test_what_a_task_changes_in_its_process_is_set_right_for_the_next(open_executor: Open) -> None:
    exe = open_executor()
    fresh = {"cache": False}
    before = exe.submit(bodies.standing, resource_dict=fresh).result(60)
    spoilt = exe.submit(bodies.spoiling, resource_dict=fresh).result(60)
    assert exe.submit(bodies.standing, resource_dict=fresh).result(60) == before
    assert exe.submit(bodies.process, resource_dict=fresh).result(60) == spoilt  # and is the same


def test_a_seed_that_a_task_has_set_does_not_hold_for_the_next(open_executor: Open) -> None:
    exe = open_executor()
    fresh = {"cache": False}
    drawn = []
    for _ in range(2):
        exe.submit(bodies.seeded, resource_dict=fresh).result(60)
        drawn.append(exe.submit(bodies.drawn, resource_dict=fresh).result(60))
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]


def test_a_task_whose_log_cannot_be_opened_fails_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0.err").symlink_to(tmp_path / "elsewhere")
    order = {"do": "run", "job": "some-job", "definition": "x", "index": 0, "logs": str(tmp_path)}
    assert _run(order, NOTHING) == FAILED
    print("still here")
    told = capfd.readouterr()
    assert "some-job: its log files cannot be written" in told.err
    assert told.out == "still here\n"
    assert not (tmp_path / "elsewhere").exists()


# ---- init_function ---------------------------------------------------------------------------


def test_init_function_runs_once_per_worker_and_fills_in_by_name(
    open_executor: Open, traces: Path
) -> None:
    exe = open_executor(2, init_function=functools.partial(bodies.beginning, traces))

    def remember(word: str, notes: list[str], name: str = "nobody") -> tuple[int, list[str], str]:
        notes.append(word)
        return os.getpid(), list(notes), name

    results = [exe.submit(remember, str(i)).result(60) for i in range(5)]
    results += [f.result(60) for f in [exe.submit(remember, str(i)) for i in range(5, 9)]]
    for pid in {pid for pid, _, _ in results}:
        notes = [notes for one, notes, _ in results if one == pid]
        assert all(longer[:-1] == shorter for shorter, longer in itertools.pairwise(notes))
    assert {name for _, _, name in results} == {f"worker of {pid}" for pid, _, _ in results}
    given = exe.submit(remember, "x", notes=[], name="given").result(60)
    assert given[1:] == (["x"], "given")
    begun = seen(traces, "begin")
    assert len(begun) == len(set(begun)) == 2


def test_with_init_function_every_call_runs_unless_results_may_be_reused(
    open_executor: Open, traces: Path
) -> None:
    def scaled(folder: Path, by: int) -> int:
        bodies.told(folder, "scaled")
        return by * 10

    def begin(by: int) -> dict[str, int]:
        return {"by": by}

    three = open_executor(init_function=functools.partial(begin, 3))
    assert [three.submit(scaled, traces).result(60) for _ in range(2)] == [30, 30]
    assert len(seen(traces, "scaled")) == 2
    reused = {"cache": True}
    for expected, runs in ((30, 3), (30, 3), (40, 4)):
        exe = open_executor(
            init_function=functools.partial(begin, expected // 10), resource_dict=reused
        )
        assert exe.submit(scaled, traces).result(60) == expected
        assert len(seen(traces, "scaled")) == runs


def test_an_init_function_that_raises_fails_the_calls_with_its_exception(
    open_executor: Open,
) -> None:
    def begin() -> None:
        raise LookupError("no licence")

    exe = open_executor(2, init_function=begin)
    for future in [exe.submit(bodies.process, i) for i in range(3)]:
        with pytest.raises(LookupError, match="no licence") as caught:
            future.result(60)
        assert "in begin" in str(caught.value.__cause__)


def test_an_init_function_must_return_names(open_executor: Open) -> None:
    exe = open_executor(init_function=list)
    with pytest.raises(TypeError, match=r"init_function must return a dictionary.*list"):
        exe.submit(bodies.process).result(60)


def test_an_init_function_that_kills_its_worker_is_named(open_executor: Open) -> None:
    exe = open_executor(init_function=bodies.die, restart_limit=1)
    with pytest.raises(DiedTaskError, match=r"(?s)no worker is left.*SIGKILL.*restart_limit=1"):
        exe.submit(bodies.process).result(60)


# ---- how many there are ----------------------------------------------------------------------


def test_more_workers_come_when_there_are_to_be_more(open_executor: Open, traces: Path) -> None:
    exe = open_executor(1)
    one = exe.submit(bodies.meet, traces, "a", "b")
    other = exe.submit(bodies.meet, traces, "b", "a")
    poll(lambda: len(list(traces.iterdir())) == 1, 60, "the first task")
    assert exe.max_workers == 1
    exe.max_workers = 2
    assert exe.max_workers == 2
    assert one.result(60) != other.result(60)


def test_idle_workers_end_first_and_busy_ones_after_their_task(
    open_executor: Open, traces: Path
) -> None:
    exe = open_executor(3)
    busy = [exe.submit(bodies.slow, traces, word) for word in ("a", "b")]
    poll(lambda: len(list(traces.iterdir())) == 2, 60, "both tasks")
    idle = exe.submit(bodies.process, 1).result(60)
    poll(lambda: State.IDLE in states(exe), 60, "the news that it is idle")
    exe.max_workers = 2
    poll(lambda: gone(idle), 30, "the end of the idle worker")
    exe.max_workers = 1
    (traces / "go").touch()
    pids = [future.result(60) for future in busy]
    poll(lambda: sum(map(gone, pids)) == 1, 30, "the end of one of the busy workers")
    left = {exe.submit(bodies.process, i, resource_dict={"cache": False}) for i in range(2, 5)}
    assert {future.result(60) for future in left} <= set(pids)


def test_the_number_can_be_set_before_there_are_any(open_executor: Open, traces: Path) -> None:
    exe = open_executor(1)
    exe.max_workers = 2
    one = exe.submit(bodies.meet, traces, "a", "b")
    other = exe.submit(bodies.meet, traces, "b", "a")
    assert one.result(60) != other.result(60)


@pytest.mark.parametrize("number", [0, -1, 1.5, "2", None])
def test_what_is_no_number_of_workers_is_refused(open_executor: Open, number: Any) -> None:
    exe = open_executor(1)
    with pytest.raises(ConfigurationError, match="max_workers"):
        exe.max_workers = number
    assert exe.max_workers == 1


def test_more_than_there_is_room_for_is_refused_and_the_number_stays(
    open_executor: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    exe = open_executor(1, max_cores=2)
    with pytest.raises(ConfigurationError, match=r"max_workers=3 .*max_cores=2"):
        exe.max_workers = 3
    monkeypatch.setattr(WorkerProcesses, "room", lambda _: Room(cpus=4))
    there = open_executor(2, resource_dict={"threads_per_core": 2})
    for moment in ("before there are any", "when there are"):
        with pytest.raises(ConfigurationError, match=r"max_workers=3 .*there are 4 CPUs"):
            there.max_workers = 3
        assert (exe.max_workers, there.max_workers) == (1, 2), moment
        assert there.submit(bodies.process, moment).result(60)


def test_after_the_shutdown_there_is_no_number(open_executor: Open) -> None:
    exe = open_executor(2)
    exe.shutdown()
    assert exe.max_workers is None
    with pytest.raises(RuntimeError, match="after shutdown"):
        exe.max_workers = 3


def test_without_workers_the_number_stays(cache: Path) -> None:
    with SingleNodeExecutor(2, cache_directory=cache) as exe:
        assert exe.max_workers == 2
        with pytest.raises(ConfigurationError, match="block_allocation=True"):
            exe.max_workers = 3


def test_a_worker_that_is_slow_to_start_keeps_no_other_waiting(
    open_executor: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a batch system does not answer."""
    begin, go_on = WorkerProcesses.start, threading.Event()

    def start(self: WorkerProcesses, job: Any, *more: Any) -> Any:
        if job.index == 1:
            go_on.wait(60)
        return begin(self, job, *more)

    monkeypatch.setattr(WorkerProcesses, "start", start)
    exe = open_executor(2)
    future = exe.submit(bodies.process)
    try:
        poll(future.done, 30, "the first worker's result")
        assert not go_on.is_set()
        exe.max_workers = 1  # nor anybody who asks for fewer: one of the two goes again
    finally:
        go_on.set()
    assert exe.submit(bodies.process, 1).result(60)


# ---- deaths ----------------------------------------------------------------------------------


def test_a_worker_that_is_killed_is_replaced_and_its_task_made_anew(
    open_executor: Open, traces: Path
) -> None:
    exe = open_executor(restart_limit=1)
    before = exe.submit(bodies.process, 1).result(60)
    assert exe.submit(bodies.die_once, traces, "once").result(60) != before
    assert len(seen(traces, "once")) == 2
    assert exe.submit(bodies.process, 2).result(60) != before


def test_a_worker_hears_of_an_end_though_it_was_started_deaf(
    open_executor: Open, traces: Path
) -> None:
    """Slurm 25.05 starts the processes of steps with SIGCHLD blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        exe = open_executor(restart_limit=1)
        exe.submit(bodies.die_once, traces, "once").result(60)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert len(seen(traces, "once")) == 2


TERMINATED = """
import os, signal, socket, subprocess
from dask_batch.job.channel import Channel
from dask_batch.job.keeper import Keeper

ours, theirs = socket.socketpair()
keeper, client = Keeper(Channel(ours)), Channel(theirs)
workbench = subprocess.Popen(["sleep", "1000"], start_new_session=True)
keeper._pid = workbench.pid
workbench.terminate()
os.waitid(os.P_PID, workbench.pid, os.WEXITED | os.WNOWAIT)
os.write(keeper._told, bytes([signal.SIGTERM]))
keeper._reap()
print(client.receive()["killed"], keeper._ending)
"""


def test_a_worker_all_of_whose_processes_are_told_to_end_has_died_once() -> None:
    """A batch system signals one after the other: the keeper may be the last to hear."""
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("True True\n", "")


def test_workers_are_numbered_and_one_in_the_place_of_another_has_its_number(
    open_executor: Open, traces: Path
) -> None:
    exe = open_executor(2, restart_limit=1)

    def numbers(turn: str) -> set[int]:
        words = (f"{turn}-a", f"{turn}-b")
        pairs = (words, words[::-1])
        futures = [exe.submit(bodies.placed, traces, *pair) for pair in pairs]
        return {future.result(60) for future in futures}

    assert numbers("before") == {0, 1}
    exe.submit(bodies.die_once, traces, "once").result(60)
    assert numbers("after") == {0, 1}
    told = {"executorlib_worker_id": 7}
    assert exe.submit(bodies.placed, traces, "alone", "alone", **told).result(60) == 7


@pytest.mark.parametrize("limit", [0, 1])
def test_when_no_worker_is_left_nobody_waits(open_executor: Open, limit: int) -> None:
    exe = open_executor(restart_limit=limit)
    deadly = exe.submit(bodies.die)
    others = [exe.submit(bodies.process, i) for i in range(3)]
    with pytest.raises(DiedTaskError, match=rf"(?s)signal 9.*restart_limit={limit} is used up"):
        deadly.result(60)
    for future in others:  # some may have come between two deaths
        error = future.exception(60)
        assert error is None or "no worker is left" in f"{error} {error.__cause__}"
    with pytest.raises(DiedTaskError) as caught:
        exe.submit(bodies.process, 7).result(60)
    error = caught.value
    assert "no worker is left: worker 0 (process " in error.message
    assert "signal 9 (SIGKILL" in error.message
    assert f"restart_limit={limit} is used up" in error.message
    assert f"Raise restart_limit (it is {limit})" in error.advice
    assert error.log is None  # no worker has begun it
    assert "no record of why" not in str(error)


def test_a_death_takes_no_other_worker_along(open_executor: Open, traces: Path) -> None:
    exe = open_executor(2)
    other = exe.submit(bodies.slow, traces, "other")
    poll(lambda: bool(seen(traces, "other")), 60, "the other task")
    with pytest.raises(DiedTaskError, match="signal 9"):
        exe.submit(bodies.die).result(60)
    (traces / "go").touch()
    assert exe.submit(bodies.process, 1).result(60) == other.result(60)


def test_a_function_that_ends_its_process_is_named_and_repeated(open_executor: Open) -> None:
    exe = open_executor(restart_limit=1)
    with pytest.raises(DiedTaskError, match=r"os\._exit\(3\)"):
        exe.submit(bodies.leave, 3).result(60)


def test_a_crash_leaves_its_frames_in_the_log_of_its_task(open_executor: Open) -> None:
    exe = open_executor()
    with pytest.raises(DiedTaskError, match=r"(?s)signal 11.*in crash"):
        exe.submit(bodies.crash).result(60)


@pytest.mark.parametrize("whom", ["workbench", "keeper"])
def test_a_worker_that_is_killed_while_idle_is_replaced(open_executor: Open, whom: str) -> None:
    exe = open_executor(restart_limit=1)
    pid = exe.submit(bodies.process, 1).result(60)
    os.kill(pid if whom == "workbench" else psutil.Process(pid).ppid(), signal.SIGKILL)
    poll(lambda: gone(pid), 30, "the end of the worker")
    assert exe.submit(bodies.process, 2).result(60) != pid


def test_a_keeper_that_is_killed_takes_its_task_along(open_executor: Open, traces: Path) -> None:
    exe = open_executor()
    future = exe.submit(bodies.slow, traces, "busy")
    poll(lambda: bool(seen(traces, "busy")), 60, "the task")
    (pid,) = seen(traces, "busy")
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    with pytest.raises(DiedTaskError, match=r"(?s)SIGKILL.*restart_limit=0 is used up"):
        future.result(60)
    poll(lambda: gone(pid), 30, "the end of the task")


def test_a_function_that_closes_all_files_still_has_its_result(open_executor: Open) -> None:
    exe = open_executor(restart_limit=2)
    assert [exe.submit(bodies.closing_all, word).result(60) for word in "ab"] == ["a", "b"]
    assert exe.submit(bodies.process).result(60)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives orphans to whom it may")
@pytest.mark.parametrize("how", ["end", "death", "killed client"])
def test_what_a_task_has_detached_ends_with_its_worker(
    open_executor: Open, cache: Path, traces: Path, how: str
) -> None:
    if how == "killed client":
        lines = ["exe.submit(bodies.detaching, traces, 'd').result()"]
        process = subprocess.Popen([sys.executable, _script(traces, cache, lines)])
        poll(lambda: len(seen(traces, "d")) == 2, 60, "what is detached")
        process.kill()
        process.wait()
    else:
        exe = open_executor(restart_limit=1)
        exe.submit(bodies.detaching, traces, "d").result(60)
        poll(lambda: len(seen(traces, "d")) == 2, 60, "what is detached")
        if how == "end":
            exe.shutdown()
        else:
            os.kill(exe.submit(bodies.process).result(60), signal.SIGKILL)
    for pid in seen(traces, "d"):
        poll(lambda pid=pid: gone(pid), 30, "its end")  # type: ignore[misc]


def _script(traces: Path, cache: Path, lines: list[str]) -> str:
    """Write a client that does something with an executor ``exe`` and then waits."""
    script = traces.parent / "detaching_client.py"
    body = textwrap.indent("\n".join([*lines, "time.sleep(1000)"]), "    ")
    script.write_text(
        f"import os, sys, time\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import worker_bodies as bodies\nfrom dask_batch import SingleNodeExecutor\n"
        f"traces = Path({str(traces)!r})\n"
        "if __name__ == '__main__':\n"
        f"    exe = SingleNodeExecutor(1, cache_directory={str(cache)!r}, block_allocation=True)\n"
        f"{body}\n"
    )
    return str(script)


def test_a_fork_of_the_client_holds_no_connection_to_its_workers(open_executor: Open) -> None:
    """Else workers elsewhere would not hear that their client has been killed."""
    exe = open_executor()
    before = exe.submit(bodies.process, 1).result(60)
    pool = exe._session.workers
    assert pool is not None
    (worker,) = pool._staff.workers.values()
    assert worker.channel is not None
    descriptors = (worker.channel.fileno(), pool._bell, pool._ring)
    pid = os.fork()
    if pid == 0:
        os._exit(sum(os.path.exists(f"/proc/self/fd/{number}") for number in descriptors))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert exe.submit(bodies.process, 2).result(60) == before


def test_executors_that_are_dropped_leave_no_descriptors(cache: Path) -> None:
    def drop() -> None:
        SingleNodeExecutor(1, cache_directory=cache, block_allocation=True)
        gc.collect()

    drop()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        drop()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_pool_that_breaks_falls_not_silent(
    open_executor: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    exe = open_executor()
    monkeypatch.setattr(WorkerProcesses, "start", None)  # a fault of our own
    with pytest.raises(TaskError, match=r"no worker is left.*TypeError"):
        exe.submit(bodies.process).result(60)
    with pytest.raises(TaskError, match=r"no worker is left.*TypeError"):
        exe.submit(bodies.process, 1).result(60)


# ---- the end ---------------------------------------------------------------------------------


def test_leaving_waits_for_all_and_ends_the_workers(cache: Path) -> None:
    with SingleNodeExecutor(2, cache_directory=cache, block_allocation=True) as exe:
        futures = [exe.submit(bodies.process, i) for i in range(4)]
    assert all(future.done() for future in futures)
    for pid in {future.result() for future in futures}:
        assert gone(pid)
    assert not list((cache / "workers").iterdir())


def test_cancelling_what_waits_lets_what_runs_come_to_its_end(
    open_executor: Open, traces: Path
) -> None:
    exe = open_executor()
    running = exe.submit(bodies.slow, traces, "runs")
    poll(lambda: bool(seen(traces, "runs")), 60, "the task")
    poll(running.running, 60, "the news of it")
    waiting = exe.submit(bodies.process)
    (traces / "go").touch()
    exe.shutdown(wait=True, cancel_futures=True)
    assert running.result(0) in seen(traces, "runs")
    assert waiting.cancelled() or waiting.result(0)


@pytest.mark.parametrize("body", [functools.partial(bodies.slow, word="runs"), bodies.deaf])
def test_cancelling_everything_ends_what_runs(
    open_executor: Open, traces: Path, body: Callable[[Path], Any]
) -> None:
    exe = open_executor()
    running, waiting = exe.submit(body, traces), exe.submit(bodies.process)
    poll(lambda: bool(list(traces.iterdir())), 60, "the task")
    exe.shutdown(wait=False, cancel_futures=True)
    for future in (running, waiting):
        with pytest.raises(CancelledError):
            future.result(60)
    (pid,) = (int(path.name.split(".")[1]) for path in traces.iterdir())
    poll(lambda: gone(pid), 30, "the end of the process")


def test_a_cancelled_task_costs_no_restart(open_executor: Open, traces: Path) -> None:
    exe = open_executor()
    for number in range(2):
        graph = exe.submit(bodies.slow, traces, f"runs{number}")
        poll(functools.partial(seen, traces, f"runs{number}"), 60, "the task")  # type: ignore[arg-type]
        exe._session.engine.cancel_all()
        with pytest.raises(CancelledError):
            graph.result(60)
    assert exe.submit(bodies.process).result(60)


def test_a_client_that_detaches_goes_on_as_long_as_it_lives(
    open_executor: Open, traces: Path
) -> None:
    exe = open_executor()
    future = exe.submit(bodies.slow, traces, "runs")
    exe.shutdown(wait=False)
    (traces / "go").touch()
    assert future.result(60) in seen(traces, "runs")


CLIENT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import worker_bodies as bodies
from dask_batch import {kind}

if __name__ == "__main__":
    exe = {kind}(2, cache_directory={cache!r}, block_allocation=True, {options})
    futures = [exe.submit(bodies.{body}, Path({traces!r}), word) for word in ("a", "b")]
    print([future.result() for future in futures])
"""


def client(
    folder: Path, cache: Path, traces: Path, kind: str, options: str = "", body: str = "slow"
) -> Path:
    """Write a client that has two tasks under way."""
    script = folder / "client.py"
    text = CLIENT.format(
        tests=str(Path(__file__).parent),
        cache=str(cache),
        traces=str(traces),
        kind=kind,
        options=options,
        body=body,
    )
    script.write_text(textwrap.dedent(text))
    return script


def test_no_worker_outlives_a_client_that_is_killed(
    tmp_path: Path, cache: Path, traces: Path, open_executor: Open
) -> None:
    script = client(tmp_path, cache, traces, "SingleNodeExecutor")
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    poll(lambda: len(list(traces.iterdir())) == 2, 60, "both tasks")
    pids = seen(traces, "a") + seen(traces, "b")
    keepers = [psutil.Process(pid).ppid() for pid in pids]
    process.kill()
    process.wait()
    poll(lambda: all(map(gone, [*pids, *keepers])), 30, "the end of all workers")
    assert list((cache / "workers").iterdir())
    (traces / "go").touch()
    exe = open_executor(2)  # which takes over, and takes away what the other has left
    again = [exe.submit(bodies.slow, traces, word) for word in ("a", "b")]
    assert not set(pids) & {future.result(60) for future in again}
    assert len(list((cache / "workers").iterdir())) == 1


def test_what_a_task_has_forked_ends_with_the_client(
    tmp_path: Path, cache: Path, traces: Path
) -> None:
    script = client(tmp_path, cache, traces, "SingleNodeExecutor", body="forking")
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    poll(lambda: len(list(traces.iterdir())) == 4, 60, "both tasks and their children")
    process.kill()
    process.wait()
    pids = [int(path.name.split(".")[1]) for path in traces.iterdir()]
    poll(lambda: all(map(gone, pids)), 30, "the end of all")


def test_a_client_that_just_ends_leaves_nothing(tmp_path: Path, cache: Path, traces: Path) -> None:
    (traces / "go").touch()
    script = client(tmp_path, cache, traces, "SingleNodeExecutor")
    done = subprocess.run([sys.executable, str(script)], timeout=120)
    assert done.returncode == 0
    for pid in seen(traces, "a") + seen(traces, "b"):
        poll(functools.partial(gone, pid), 30, "the end of a worker")
    assert not list((cache / "workers").iterdir())


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"init_function": dict}, "init_function.*block_allocation=True"),
        ({"restart_limit": 1}, "restart_limit.*block_allocation=True"),
        ({"block_allocation": True, "init_function": 3}, "init_function must be callable"),
        ({"block_allocation": True, "restart_limit": -1}, "restart_limit"),
        ({"block_allocation": "yes"}, "block_allocation"),
        ({"block_allocation": True, "max_workers": 3, "max_cores": 2}, "max_workers=3.*max_cores"),
        ({"block_allocation": True, "resource_dict": {"memory": 3}}, "memory"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    cache: Path, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        SingleNodeExecutor(cache_directory=cache, **options)


@pytest.mark.parametrize(
    "asked",
    [
        *({"threads_per_core": 2}, {"cores": 2}, {"run_time_max": 5}, {"partition": "x"}),
        {"cache_directory": "elsewhere"},
    ],
)
def test_resources_of_a_call_that_differ_are_refused_by_name(
    open_executor: Open, asked: dict[str, Any]
) -> None:
    exe = open_executor()
    with pytest.raises(ResourceError, match=next(iter(asked))):
        exe.submit(bodies.process, resource_dict=asked)


def test_a_call_may_have_its_own_options_and_directory(open_executor: Open, tmp_path: Path) -> None:
    exe = open_executor()
    own = {"cwd": str(tmp_path), "cache": False, "retries": 1, "version": 3, "cores": 1}
    assert exe.submit(os.getcwd, resource_dict=own).result(60) == str(tmp_path)


@pytest.mark.parametrize("asked", [{"memory_max": 1}, {"run_time_max": 60}])
def test_a_worker_of_this_machine_has_no_limit_that_nobody_keeps(
    open_executor: Open, asked: dict[str, Any]
) -> None:
    exe = open_executor(resource_dict=asked)
    with pytest.raises(ResourceError, match=next(iter(asked))):
        exe.submit(bodies.process)


def test_max_cores_and_the_machine_tell_how_many_workers_there_are(cache: Path) -> None:
    def workers(**options: Any) -> int | None:
        with SingleNodeExecutor(cache_directory=cache, block_allocation=True, **options) as exe:
            return exe.max_workers

    two = {"threads_per_core": 2}
    assert workers(max_cores=5) == 5
    assert workers(max_cores=5, resource_dict=two) == 2
    assert workers() == len(os.sched_getaffinity(0))
    with pytest.raises(ConfigurationError, match="2 CPUs"):
        workers(max_cores=1, resource_dict=two)


def test_the_script_is_that_of_a_worker(open_executor: Open) -> None:
    assert "dask_batch.job.worker" in open_executor().job_script()
