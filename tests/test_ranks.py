"""Tasks of several MPI ranks, by Open MPI: started, told apart, and ended."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
import pytest

import mpi_bodies as bodies
from clients import poll
from dask_batch import SingleNodeExecutor, SlurmClusterExecutor, cluster_get
from dask_batch.cache.store import Cache
from dask_batch.errors import (
    CancelledTaskError,
    DependencyFailedError,
    DiedTaskError,
    EnvironmentTaskError,
    ExitedTaskError,
    NoOutputTaskError,
    ResourceError,
    UnstorableResultError,
)

pytestmark = pytest.mark.mpi

PATIENCE_S = 120.0
WITHIN_S = 10.0
"""What the ranks of a failed task may take to be gone, and the future to be told."""

BACKENDS = [
    pytest.param(SingleNodeExecutor, id="local"),
    pytest.param(SlurmClusterExecutor, id="slurm", marks=pytest.mark.slurm),
]


@pytest.fixture
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[type], Any]]:
    if request.node.get_closest_marker("slurm"):
        request.getfixturevalue("slurm")
    opened = []

    def open_executor(kind: type, **options: Any) -> Any:
        executor = kind(cache_directory=tmp_path / "cache", shortest_poll_s=1, **options)
        opened.append(executor)
        return executor

    yield open_executor
    for executor in opened:
        executor.shutdown(wait=False, cancel_futures=True)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pids(folder: Path, count: int) -> list[int]:
    poll(lambda: len(list(folder.glob("pid.*"))) == count, PATIENCE_S, "the ranks")
    poll(lambda: all(p.read_text() for p in folder.glob("pid.*")), PATIENCE_S, "their pids")
    return [int(path.read_text()) for path in folder.glob("pid.*")]


@pytest.mark.parametrize("kind", BACKENDS)
def test_the_result_is_the_list_over_the_ranks(cluster: Any, kind: type) -> None:
    future = cluster(kind).submit(bodies.calc, 3, resource_dict={"cores": 2})
    assert future.result(PATIENCE_S) == [(3, 2, 0), (3, 2, 1)]


@pytest.mark.parametrize("kind", BACKENDS)
def test_at_the_dask_door_ranks_are_asked_for_by_name(
    cluster: Any, kind: type, tmp_path: Path
) -> None:
    executor = cluster(kind)
    with dask.annotate(resources={"ranks": 2}):
        call = dask.delayed(bodies.calc)(4)
    length = dask.delayed(len)(call)
    assert dask.compute(call, length, scheduler=executor) == ([(4, 2, 0), (4, 2, 1)], 2)
    # The same call at the other door is the same task.
    again = executor.submit(bodies.calc, 4, resource_dict={"cores": 2})
    assert again.result(PATIENCE_S) == [(4, 2, 0), (4, 2, 1)]
    assert len(list((tmp_path / "cache").glob("results/*/*.h5"))) == 2


def test_different_numbers_of_ranks_never_share_a_result(cluster: Any) -> None:
    executor = cluster(SingleNodeExecutor)
    one = executor.submit(bodies.calc, 5)
    two = executor.submit(bodies.calc, 5, resource_dict={"cores": 2})
    assert one.key != two.key
    assert one.result(PATIENCE_S) == (5, 1, 0)
    assert two.result(PATIENCE_S) == [(5, 2, 0), (5, 2, 1)]


def test_arguments_are_read_once_and_each_rank_has_its_own(cluster: Any, tmp_path: Path) -> None:
    executor = cluster(SingleNodeExecutor)
    large = np.ones(1 << 18)
    made = executor.submit(np.ones, 3)
    total = executor.submit(bodies.reads, large, tmp_path, resource_dict={"cores": 2})
    future = executor.submit(bodies.reads, made, tmp_path, resource_dict={"cores": 2})
    assert total.result(PATIENCE_S) == [(large.size - 1.0, False), (float(large.size), False)]
    assert future.result(PATIENCE_S) == [(2.0, False), (3.0, False)]
    assert large[0] == 1


def test_arrays_come_back_whole(cluster: Any) -> None:
    def block(rows: int) -> np.ndarray:
        from mpi4py import MPI

        return np.full((rows, 1000), MPI.COMM_WORLD.Get_rank(), dtype="f4")

    found = cluster(SingleNodeExecutor).submit(block, 700, resource_dict={"cores": 2})
    for rank, array in enumerate(found.result(PATIENCE_S)):
        assert array.shape == (700, 1000)
        assert (array == rank).all()


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("kind", BACKENDS)
def test_a_rank_that_raises_ends_them_all(
    cluster: Any, kind: type, at: int, tmp_path: Path
) -> None:
    executor = cluster(kind)
    future = executor.submit(bodies.raises, at, tmp_path, resource_dict={"cores": 2})
    child = executor.submit(len, [future])
    ranks = pids(tmp_path, 2)
    poll(lambda: not any(map(alive, ranks)), WITHIN_S, "the end of the ranks")
    poll(future.done, WITHIN_S, "the error")
    error = future.exception(0)
    assert isinstance(error, LookupError)
    assert str(error) == f"rank {at} found nothing"
    assert "in raises" in str(error.__cause__)
    assert isinstance(child.exception(PATIENCE_S), DependencyFailedError)


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("exit", NoOutputTaskError, r"(?s)os\._exit\(0\).*try: Let the function return"),
        ("finalize", DiedTaskError, r"called MPI\.Finalize\(\).*leave the call out"),
        ("kill", DiedTaskError, r"killed by signal 9 \("),
        ("crash", DiedTaskError, "killed by signal 11 "),
    ],
)
@pytest.mark.parametrize("kind", BACKENDS)
def test_a_rank_that_is_gone_ends_them_all(
    cluster: Any, kind: type, how: str, error: type, words: str
) -> None:
    future = cluster(kind).submit(bodies.leaves, 1, how, resource_dict={"cores": 2})
    with pytest.raises(error, match=words):
        future.result(PATIENCE_S)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_cache_that_is_removed_and_made_anew_hears_nothing_of_the_first(
    cluster: Any, tmp_path: Path, kind: type
) -> None:
    for _ in range(4):
        with cluster(kind) as executor:
            future = executor.submit(bodies.calc, 12, resource_dict={"cores": 2})
            assert future.result(PATIENCE_S) == [(12, 2, 0), (12, 2, 1)]
        shutil.rmtree(tmp_path / "cache")  # their leader may not have ended


def test_a_rank_that_exits_does_not_end_the_client(cluster: Any) -> None:
    future = cluster(SingleNodeExecutor).submit(sys.exit, 0, resource_dict={"cores": 2})
    error = future.exception(PATIENCE_S)
    assert type(error) is ExitedTaskError
    assert type(error.__cause__) is SystemExit


def test_a_result_of_a_rank_that_cannot_be_pickled_is_told(cluster: Any) -> None:
    future = cluster(SingleNodeExecutor).submit(bodies.unpicklable, 1, resource_dict={"cores": 2})
    assert isinstance(future.exception(PATIENCE_S), UnstorableResultError)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_cancelled_task_leaves_no_rank(cluster: Any, kind: type, tmp_path: Path) -> None:
    executor = cluster(kind)
    future = executor.submit(bodies.waits, tmp_path, resource_dict={"cores": 2})
    ranks = pids(tmp_path, 2)
    executor.shutdown(wait=False, cancel_futures=True)
    assert future.cancelled() or isinstance(future.exception(PATIENCE_S), CancelledTaskError)
    poll(lambda: not any(map(alive, ranks)), PATIENCE_S, "the end of the ranks")


def test_a_leader_that_is_killed_leaves_no_rank(cluster: Any, tmp_path: Path) -> None:
    executor = cluster(SingleNodeExecutor)
    future = executor.submit(bodies.waits, tmp_path, resource_dict={"cores": 2})
    ranks = pids(tmp_path, 2)
    leader = next(
        process
        for process in psutil.Process(ranks[0]).parents()
        if not {"mpiexec", "mpirun"} & {Path(word).name for word in process.cmdline()[:1]}
    )
    leader.kill()
    poll(lambda: not any(map(alive, ranks)), WITHIN_S, "the end of the ranks")
    assert isinstance(future.exception(PATIENCE_S), DiedTaskError)


def test_nothing_is_left_of_what_ranks_and_leader_told_each_other(
    cluster: Any, tmp_path: Path
) -> None:
    executor = cluster(SingleNodeExecutor)
    executor.submit(bodies.calc, 1, resource_dict={"cores": 2}).result(PATIENCE_S)
    failing = executor.submit(bodies.raises, 0, tmp_path, resource_dict={"cores": 2})
    failing.exception(PATIENCE_S)
    executor.shutdown()
    assert list(Cache(tmp_path / "cache").path.glob("ranks/*")) == []


def test_an_interpreter_without_mpi4py_says_so(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = tmp_path / "hidden" / "mpi4py"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('no mpi4py here')\n")
    monkeypatch.setenv("PYTHONPATH", f"{hidden.parent}:{os.environ.get('PYTHONPATH', '')}")
    future = cluster(SingleNodeExecutor).submit(
        bodies.calc, 6, resource_dict={"cores": 2, "job_script_prologue": "true"}
    )
    error = future.exception(PATIENCE_S)
    assert isinstance(error, EnvironmentTaskError)
    assert "pip install mpi4py" in str(error)
    assert "no mpi4py here" in str(error)


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
def test_communicators_can_be_split(tmp_path: Path) -> None:
    with SlurmClusterExecutor(cache_directory=tmp_path / "cache", pmi_mode="pmix") as executor:
        future = executor.submit(bodies.split_into_groups, 4, resource_dict={"cores": 8})
        groups = future.result(PATIENCE_S)
    assert [group["color"] for group in groups] == [0] * 4 + [1] * 4
    assert [group["total"] for group in groups] == [6] * 4 + [22] * 4
    assert {group["size"] for group in groups} == {4}


@pytest.mark.slurm
def test_a_mode_that_the_library_does_not_know_is_told_with_the_one_to_try(cluster: Any) -> None:
    executor = cluster(SlurmClusterExecutor)
    wrong = {"cores": 2, "pmi_mode": "pmi2"}
    error = executor.submit(bodies.calc, 7, resource_dict=wrong).exception(PATIENCE_S)
    assert isinstance(error, EnvironmentTaskError)
    assert "srun --mpi=pmi2" in str(error)
    assert "pmi_mode='pmix'" in str(error)


@pytest.mark.slurm
def test_ranks_may_be_started_by_the_librarys_own_program(cluster: Any) -> None:
    own = {"cores": 2, "pmi_mode": "mpiexec"}
    future = cluster(SlurmClusterExecutor).submit(bodies.calc, 8, resource_dict=own)
    assert future.result(PATIENCE_S) == [(8, 2, 0), (8, 2, 1)]


@pytest.mark.parametrize("library", ["", "mpich"])
def test_each_rank_on_the_local_queue_sees_gpus_of_its_own(cluster: Any, library: str) -> None:
    executor = cluster(SingleNodeExecutor, local_gpus=[4, 5, 6, 7])
    asked = {"cores": 2, "gpus_per_core": 2}
    if library:
        asked["job_script_prologue"] = prologue(library)
    future = executor.submit(bodies.devices, resource_dict=asked)
    assert future.result(PATIENCE_S) == [(0, "4,5"), (1, "6,7")]


def test_more_ranks_than_cpus_where_they_may_share_them(cluster: Any) -> None:
    count = (os.cpu_count() or 1) + 1
    executor = cluster(SingleNodeExecutor)
    with pytest.raises(ResourceError, match="openmpi_oversubscribe=True"):
        executor.submit(bodies.calc, 14, resource_dict={"cores": count})
    asked = {"cores": count, "openmpi_oversubscribe": True}
    future = executor.submit(bodies.calc, 14, resource_dict=asked)
    assert future.result(PATIENCE_S) == [(14, count, rank) for rank in range(count)]


def prologue(library: str) -> list[str]:
    """Return shell lines that do what loading a site's module does."""
    folder = Path(os.environ.get("DASK_BATCH_MPI_LIBRARIES", ""), library, "lib")
    if not (folder / "libmpi.so").exists():
        pytest.skip(f"PyPI's {library} is not in DASK_BATCH_MPI_LIBRARIES, as ./ci/test sets it")
    return [f"export LD_LIBRARY_PATH={shlex.quote(str(folder))} MPI4PY_MPIABI={library}"]


@pytest.mark.slurm
def test_mpich_goes_with_pmi2_which_is_found_out(cluster: Any) -> None:
    executor = cluster(SlurmClusterExecutor, resource_dict={"cores": 2})
    lines = prologue("mpich")
    for more in ({}, {"pmi_mode": "pmi2"}):
        asked = {**more, "job_script_prologue": lines, "cache": False}
        future = executor.submit(bodies.calc, 10, resource_dict=asked)
        assert future.result(PATIENCE_S) == [(10, 2, 0), (10, 2, 1)]


def test_mpich_on_the_local_queue_by_its_own_mpiexec(cluster: Any) -> None:
    asked = {"cores": 2, "job_script_prologue": prologue("mpich")}
    future = cluster(SingleNodeExecutor).submit(bodies.calc, 11, resource_dict=asked)
    assert future.result(PATIENCE_S) == [(11, 2, 0), (11, 2, 1)]


def test_mpichs_mpiexec_tells_a_signal_by_its_bare_number(cluster: Any) -> None:
    asked = {"cores": 2, "job_script_prologue": prologue("mpich")}
    future = cluster(SingleNodeExecutor).submit(bodies.leaves, 1, "kill", resource_dict=asked)
    error = future.exception(PATIENCE_S)
    assert isinstance(error, DiedTaskError)
    assert "signal 9" in str(error)


def test_a_result_that_cannot_be_unpickled_is_told(cluster: Any) -> None:
    future = cluster(SingleNodeExecutor).submit(bodies.unreadable, resource_dict={"cores": 2})
    error = future.exception(PATIENCE_S)
    assert isinstance(error, UnstorableResultError)
    assert "the result of rank 1 cannot be unpickled" in str(error)


def test_what_modules_print_when_imported_is_no_library(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = tmp_path / "noisy"
    noisy.mkdir()
    (noisy / "sitecustomize.py").write_text("print('welcome to the machine')\n")
    monkeypatch.setenv("PYTHONPATH", f"{noisy}:{os.environ.get('PYTHONPATH', '')}")
    asked = {"cores": 2, "job_script_prologue": "true"}
    future = cluster(SingleNodeExecutor).submit(bodies.calc, 13, resource_dict=asked)
    assert future.result(PATIENCE_S) == [(13, 2, 0), (13, 2, 1)]


@pytest.mark.slurm
def test_ranks_that_do_not_find_each_other_are_an_error(cluster: Any) -> None:
    asked = {"cores": 2, "pmi_mode": "none", "job_script_prologue": prologue("openmpi")}
    future = cluster(SlurmClusterExecutor).submit(bodies.calc, 12, resource_dict=asked)
    error = future.exception(PATIENCE_S)
    assert isinstance(error, EnvironmentTaskError)
    assert "Open MPI v5" in str(error)
    assert "`srun --mpi=none` started 2 ranks, and" in str(error)
    assert "pmi_mode='pmix'" in str(error)


@pytest.mark.slurm
def test_nodes_and_gpus_of_ranks_reach_slurm(cluster: Any) -> None:
    asked = {"cores": 2, "num_nodes": 2, "gpus_per_core": 1}
    future = cluster(SlurmClusterExecutor).submit(bodies.devices, resource_dict=asked)
    assert [rank for rank, _ in future.result(PATIENCE_S)] == [0, 1]
    assert all(visible in ("0", "1") for _, visible in future.result())


@pytest.mark.slurm
def test_each_rank_sees_gpus_of_its_own_where_slurm_gives_them_to_nodes(cluster: Any) -> None:
    asked = {"cores": 2, "num_nodes": 1, "gpus_per_core": 1, "gpu_request": "--gres=gpu:{gpus}"}
    future = cluster(SlurmClusterExecutor).submit(bodies.devices, resource_dict=asked)
    assert future.result(PATIENCE_S) == [(0, "0"), (1, "1")]


def test_a_client_that_is_killed_leaves_the_ranks_at_work(tmp_path: Path) -> None:
    """What a job does is its own business, in several ranks as well."""
    pid = os.fork()
    if pid == 0:
        executor = SingleNodeExecutor(cache_directory=tmp_path / "cache")
        executor.submit(bodies.calc, 9, resource_dict={"cores": 2})
        executor.shutdown(wait=False)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    results = tmp_path / "cache" / "results"
    poll(lambda: len(list(results.glob("*/*.h5"))) == 1, PATIENCE_S, "the result")
    with SingleNodeExecutor(cache_directory=tmp_path / "cache") as executor:
        future = executor.submit(bodies.calc, 9, resource_dict={"cores": 2})
        assert future.result(PATIENCE_S) == [(9, 2, 0), (9, 2, 1)]
        assert future.job_id is None


def test_a_graph_of_ranks_through_cluster_get(tmp_path: Path) -> None:
    with dask.annotate(resources={"ranks": 2}):
        calls = [dask.delayed(bodies.calc)(i) for i in range(2)]
    options = {"backend": "local", "cache_directory": tmp_path / "cache"}
    values = dask.compute(*calls, scheduler=cluster_get, **options)
    assert values == tuple([(i, 2, 0), (i, 2, 1)] for i in range(2))
