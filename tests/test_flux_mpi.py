"""MPI on a real Flux: a job of several ranks is an instance, in which they are started."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from clients import poll
from dask_batch import FluxClusterExecutor, cluster_get, get_cache_data
from dask_batch.backends.flux.bindings import Bindings
from dask_batch.errors import BatchError, CancelledTaskError
from mpi_bodies import split_into_groups

pytest_plugins = ["flux_systems"]
pytestmark = [
    pytest.mark.flux,
    pytest.mark.mpi,
    pytest.mark.usefixtures("flux", "mpi_library"),
]


@pytest.fixture
def mpi_library() -> None:
    pytest.importorskip("mpi4py", reason="there is no mpi4py here")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def calc(i: int) -> tuple[int, int, int]:
    from mpi4py import MPI

    return i, MPI.COMM_WORLD.Get_size(), MPI.COMM_WORLD.Get_rank()


def devices(i: int) -> tuple[int, str]:
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_rank(), os.environ["CUDA_VISIBLE_DEVICES"]


def wait_at_barrier(marks: Path) -> None:
    from mpi4py import MPI

    (marks / f"{MPI.COMM_WORLD.Get_rank()}.{os.getpid()}").touch()
    while True:
        MPI.COMM_WORLD.Barrier()


def test_ranks(cache: Path) -> None:
    with FluxClusterExecutor(cache_directory=cache) as exe:
        both = exe.submit(calc, 3, resource_dict={"cores": 2, "threads_per_core": 2})
        assert both.result(120) == [(3, 2, 0), (3, 2, 1)]
        seen = exe.submit(devices, 1, resource_dict={"cores": 2, "gpus_per_core": 1})
        assert seen.result(120) == [(0, "0"), (1, "1")]
    jobs = {entry["queue_id"] for entry in get_cache_data(cache)}
    assert jobs == {both.job_id, seen.job_id}  # not those of the instances within


def test_ranks_of_a_dask_task(cache: Path) -> None:
    import dask

    with dask.annotate(resources={"ranks": 2, "num_nodes": 1, "exclusive": True}):
        task = dask.delayed(calc)(7)
    options = {"backend": "flux", "cache_directory": cache}
    (value,) = dask.compute(dask.delayed(len)(task), scheduler=cluster_get, **options)
    assert value == 2


def test_communicators_can_be_split(cache: Path) -> None:
    with FluxClusterExecutor(cache_directory=cache) as exe:
        groups = exe.submit(split_into_groups, 4, resource_dict={"cores": 8}).result(120)
    assert [group["color"] for group in groups] == [0] * 4 + [1] * 4
    assert [group["total"] for group in groups] == [6] * 4 + [22] * 4


def test_ranks_that_do_not_find_each_other(cache: Path) -> None:
    with FluxClusterExecutor(cache_directory=cache, pmi_mode="nosuchmode") as exe:
        error: Any = exe.submit(calc, 3, resource_dict={"cores": 2}).exception(120)
    assert isinstance(error, BatchError)
    assert "pmi_mode" in str(error)


def test_ranks_are_ended_with_their_job(cache: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    with FluxClusterExecutor(cache_directory=cache, failure_grace_s=0.5) as exe:
        future = exe.submit(wait_at_barrier, marks, resource_dict={"cores": 2})
        poll(lambda: len(list(marks.iterdir())) == 2, 60, "both ranks")
        subprocess.run(["flux", "cancel", future.job_id], check=True)
        assert isinstance(future.exception(120), CancelledTaskError)
        ids = [int(path.suffix[1:]) for path in marks.iterdir()]
        poll(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ids), 60, "the ranks' end")
        poll(
            lambda: future.job_id not in {row.job_id for row in Bindings().active()}, 60, "its end"
        )
