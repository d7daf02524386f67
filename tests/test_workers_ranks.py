"""Long-lived workers of several MPI ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dask_batch.job.ranks.crew as crew_module
import worker_bodies as bodies
from clients import poll
from dask_batch import SingleNodeExecutor, SlurmClusterExecutor
from dask_batch.cache.store import Cache
from dask_batch.configuration.resources import for_executor_call
from dask_batch.errors import DiedTaskError, RemoteTraceback
from dask_batch.job.ranks.crew import Crew
from dask_batch.job.ranks.exchange import Exchange
from dask_batch.job.ranks.pace import Pace
from dask_batch.preparing.packing import ranks_of
from test_workers import client, gone, seen

pytestmark = pytest.mark.mpi

PATIENCE_S = 120.0

KINDS = [
    pytest.param(SingleNodeExecutor, id="local"),
    pytest.param(SlurmClusterExecutor, id="slurm", marks=pytest.mark.slurm),
]

Open = Callable[..., Any]


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    folder = tmp_path / "traces"
    folder.mkdir()
    return folder


@pytest.fixture
def open_executor(tmp_path: Path) -> Iterator[Open]:
    """Open executors with one worker of two ranks."""
    opened = []

    def make(kind: type = SingleNodeExecutor, **options: Any) -> Any:
        executor = kind(
            1,
            cache_directory=tmp_path / "cache",
            block_allocation=True,
            resource_dict={"cores": 2},
            **options,
        )
        opened.append(executor)
        return executor

    yield make
    for executor in opened:
        executor.shutdown(wait=False, cancel_futures=True)
        executor.shutdown()


def begin(folder: Path) -> dict[str, list[Any]]:
    bodies.told(folder, "begin")
    return {"notes": []}


def note(word: str, notes: list[Any]) -> tuple[int, int, list[Any], int]:
    from mpi4py import MPI

    words = MPI.COMM_WORLD.allgather(f"{word}{MPI.COMM_WORLD.rank}")
    notes.append(word)
    return MPI.COMM_WORLD.rank, os.getpid(), [words, list(notes)], len(os.environ)


def raising_at(rank: int, *, together: bool) -> int:
    """Raise at one rank, while the others come back, or wait for it."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == rank:
        raise ValueError(f"no, says rank {rank}")
    if not together:
        MPI.COMM_WORLD.barrier()
    return os.getpid()


def process() -> int:
    return os.getpid()


def printed(word: str) -> None:
    sys.stdout.write(f"out {word}\n")  # in one go: the ranks share a log


def dying(rank: int) -> None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == rank:
        bodies.die()
    MPI.COMM_WORLD.barrier()


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_keep_their_state_and_begin_once(
    open_executor: Open, traces: Path, kind: type
) -> None:
    import functools

    exe = open_executor(kind, init_function=functools.partial(begin, traces))
    first, second = (exe.submit(note, word).result(PATIENCE_S) for word in ("a", "b"))
    assert [rank for rank, *_ in first] == [0, 1]
    assert [values for _, _, values, _ in first] == [[["a0", "a1"], ["a"]]] * 2
    assert [values for _, _, values, _ in second] == [[["b0", "b1"], ["a", "b"]]] * 2
    assert [pid for _, pid, *_ in first] == [pid for _, pid, *_ in second]
    assert sorted(seen(traces, "begin")) == sorted(pid for _, pid, *_ in first)
    exe.shutdown()
    for _, pid, *_ in first:
        poll(lambda pid=pid: gone(pid), PATIENCE_S, "the end of a rank")  # type: ignore[misc]


def test_each_task_of_ranks_has_its_own_logs(open_executor: Open) -> None:
    exe = open_executor()
    one, two = exe.submit(printed, "one"), exe.submit(printed, "two")
    assert one.result(PATIENCE_S) == [None, None]
    assert two.result(PATIENCE_S) == [None, None]
    assert one.stdout().splitlines() == ["out one"] * 2
    assert two.stdout().splitlines() == ["out two"] * 2


def test_an_exception_that_all_come_back_from_leaves_the_ranks(open_executor: Open) -> None:
    exe = open_executor()
    before = exe.submit(process, resource_dict={"version": 1}).result(PATIENCE_S)
    with pytest.raises(ValueError, match="no, says rank 1") as caught:
        exe.submit(raising_at, 1, together=True).result(PATIENCE_S)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert exe.submit(process, resource_dict={"version": 2}).result(PATIENCE_S) == before


def test_an_exception_that_others_wait_for_costs_new_ranks_and_no_restart(
    open_executor: Open,
) -> None:
    exe = open_executor()
    before = exe.submit(process, resource_dict={"version": 1}).result(PATIENCE_S)
    with pytest.raises(ValueError, match="no, says rank 1"):
        exe.submit(raising_at, 1, together=False).result(PATIENCE_S)
    for pid in before:
        assert gone(pid)
    after = exe.submit(process, resource_dict={"version": 2}).result(PATIENCE_S)
    assert not set(before) & set(after)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_that_is_killed_costs_a_restart(open_executor: Open, kind: type) -> None:
    exe = open_executor(kind, restart_limit=1)
    before = exe.submit(process, resource_dict={"version": 1}).result(PATIENCE_S)
    with pytest.raises(DiedTaskError, match=r"signal 9 \("):
        exe.submit(dying, 1).result(PATIENCE_S)
    for pid in before:
        poll(lambda pid=pid: gone(pid), PATIENCE_S, "the end of a rank")  # type: ignore[misc]


def leaving_a_message(word: str) -> int:
    """Send what nobody receives."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 0:
        MPI.COMM_WORLD.isend(word, 1, tag=5)
    return os.getpid()


def passing_on(word: str) -> str | None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 0:
        MPI.COMM_WORLD.send(word, 1, tag=5)
        return None
    received: str = MPI.COMM_WORLD.recv(source=0, tag=5)
    return received


@pytest.mark.parametrize("library", ["", "mpich", "openmpi"])
def test_a_message_that_a_task_has_left_does_not_reach_the_next(
    open_executor: Open, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    if library:
        folder = Path(os.environ.get("DASK_BATCH_MPI_LIBRARIES", ""), library, "lib")
        if not (folder / "libmpi.so").exists():
            pytest.skip(f"PyPI's {library} is not there, as ./ci/test has it")
        monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
        monkeypatch.setenv("MPI4PY_MPIABI", library)
    exe = open_executor()
    before = exe.submit(leaving_a_message, "stale").result(PATIENCE_S)
    assert exe.submit(passing_on, "fresh").result(PATIENCE_S) == [None, "fresh"]
    after = exe.submit(process, resource_dict={"version": 2}).result(PATIENCE_S)
    assert not set(before) & set(after)
    # One that leaves nothing costs no new ranks.
    assert exe.submit(process, resource_dict={"version": 3}).result(PATIENCE_S) == after


def spoiling() -> int:
    os.environ["SPOILT"] = "1"
    sys.path.insert(0, "/spoilt")
    return os.getpid()


def spoilt() -> tuple[bool, int]:
    return "SPOILT" in os.environ or "/spoilt" in sys.path, os.getpid()


def test_what_a_task_changes_at_ranks_is_set_right_for_the_next(open_executor: Open) -> None:
    exe = open_executor()
    pids = exe.submit(spoiling).result(PATIENCE_S)
    assert exe.submit(spoilt).result(PATIENCE_S) == [(False, pid) for pid in pids]


def test_an_order_that_cannot_be_left_is_not_waited_for(
    open_executor: Open, tmp_path: Path
) -> None:
    exe = open_executor(restart_limit=1)
    before = exe.submit(process, resource_dict={"version": 1}).result(PATIENCE_S)
    (folder,) = (tmp_path / "cache" / "workers").glob("*.0.*")
    (folder / "3").symlink_to(tmp_path / "nowhere")  # where the third is to be made
    after = exe.submit(process, resource_dict={"version": 2}).result(PATIENCE_S)
    assert not set(before) & set(after)  # but made anew, with new ranks
    assert exe.submit(process, resource_dict={"version": 3}).result(PATIENCE_S) == after


def crashing_once(folder: Path) -> int:
    """Crash at the first rank at the first call."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 0 and not seen(folder, "crash"):
        bodies.told(folder, "crash")
        bodies.crash()
    MPI.COMM_WORLD.barrier()
    return os.getpid()


def test_a_rank_that_crashes_has_begun(open_executor: Open, traces: Path) -> None:
    """So it has died by its task, which is repeated, and not for want of a library."""
    exe = open_executor(restart_limit=1)
    assert len(exe.submit(crashing_once, traces).result(PATIENCE_S)) == 2


def test_an_init_function_that_raises_at_ranks_fails_the_calls(open_executor: Open) -> None:
    def refuse() -> None:
        raise LookupError("no licence")

    exe = open_executor(init_function=refuse)
    with pytest.raises(LookupError, match="no licence"):
        exe.submit(process).result(PATIENCE_S)


def test_cancelling_ends_all_ranks(open_executor: Open, traces: Path) -> None:
    from concurrent.futures import CancelledError

    exe = open_executor()
    future = exe.submit(bodies.slow, traces, "runs")
    poll(lambda: len(seen(traces, "runs")) == 2, PATIENCE_S, "both ranks")
    exe.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(CancelledError):
        future.result(PATIENCE_S)
    for pid in seen(traces, "runs"):
        poll(lambda pid=pid: gone(pid), PATIENCE_S, "the end of a rank")  # type: ignore[misc]


def test_no_rank_outlives_a_client_that_is_killed(tmp_path: Path, traces: Path) -> None:
    options = "resource_dict={'cores': 2}"
    script = client(tmp_path, tmp_path / "cache", traces, "SingleNodeExecutor", options)
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    poll(lambda: len(list(traces.iterdir())) == 4, PATIENCE_S, "both ranks of both tasks")
    process.kill()
    process.wait()
    for pid in seen(traces, "a") + seen(traces, "b"):
        poll(lambda pid=pid: gone(pid), PATIENCE_S, "the end of a rank")  # type: ignore[misc]


def test_ranks_that_are_idle_look_seldom_for_an_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do so on a file system that all share."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pace = Pace(0.005, 1.0)
    looks = 0
    while now[0] < 600:
        now[0] += pace.wait_s()
        looks += 1
    assert looks < 800  # once a second in the end
    assert pace.wait_s() == 1.0
    now[0] = 0.0
    assert pace.wait_s() == 0.005


def test_ranks_that_do_not_take_an_order_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew_module, "_TAKE_S", 2.0)
    Cache(tmp_path / "cache")
    asked = ranks_of(for_executor_call({"cores": 2}))
    assert asked is not None
    crew = Crew(asked, tmp_path / "cache" / "workers" / "some.0.1", None)
    crew.begin()
    try:
        assert crew.alive
        crew.watch(Exchange(tmp_path / "cache" / "workers" / "some.0.1" / "99"))
        assert not crew.alive
    finally:
        crew.close()
