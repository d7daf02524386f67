"""The examples of executorlib's page on its cluster executors, with nothing but the import changed.

What follows from them (a refusal, leaving and coming back, the shutdown table) is in
``test_seed.py``. Here they stand as on the page, in a folder of their own, on each batch system
that they can run on: the class is swapped, and the rest of the text is the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from clients import poll
from dask_batch import (
    FluxClusterExecutor,
    SingleNodeExecutor,
    SlurmClusterExecutor,
    SlurmJobExecutor,
    get_cache_data,
)
from slurm_cluster import OWN_TEMPLATE

pytest_plugins = ["flux_systems"]

CLUSTERS = [
    pytest.param(SlurmClusterExecutor, id="slurm", marks=pytest.mark.slurm),
    pytest.param(FluxClusterExecutor, id="flux", marks=pytest.mark.flux),
]
ALL = [pytest.param(SingleNodeExecutor, id="local"), *CLUSTERS]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Work in a folder of the test's own: the page's caches are ``./cache`` and ``./file``."""
    for name in ("slurm", "flux"):
        if request.node.get_closest_marker(name):
            request.getfixturevalue(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def partition() -> str:
    """The cluster's first partition: tests must not depend on what it is called."""
    argv = ["sinfo", "-h", "-o", "%P"]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    return listed.split()[0].rstrip("*")


def add_funct(a: Any, b: Any) -> Any:
    return a + b


def mpi_calc(i: int) -> dict[str, int]:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    return {"rank": comm.Get_rank(), "size": comm.Get_size(), "input": i}


def calc(i: int) -> tuple[int, int, int]:
    from mpi4py import MPI

    size = MPI.COMM_WORLD.Get_size()
    rank = MPI.COMM_WORLD.Get_rank()
    return i, size, rank


def two_groups_of_four() -> tuple[int, int, int, int]:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    color = comm.Get_rank() // 4  # group 0 or group 1
    sub_comm = comm.Split(color)
    return color, sub_comm.Get_rank(), sub_comm.Get_size(), sub_comm.allreduce(comm.Get_rank())


def get_available_gpus() -> list[str]:
    """Stand in for the page's function, which asks TensorFlow."""
    return os.environ["CUDA_VISIBLE_DEVICES"].split(",")


def parallel_workflow(n: int) -> list[int]:
    with SlurmJobExecutor(max_workers=n) as inner:
        futures = [inner.submit(sum, [i, i], resource_dict={"cores": 1}) for i in range(n)]
        return [f.result() for f in futures]


def rows_of_sacct(job_id: Any, fields: str) -> list[list[str]]:
    """Return what ``sacct`` prints of a job and its steps, in words, without its headings."""
    out = subprocess.check_output(
        ["sacct", "-j", str(job_id), f"--format={fields}"], universal_newlines=True, timeout=60
    )
    return [line.split() for line in out.splitlines()[2:]]


# ---- calls that are one process ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_sums_with_the_class_swapped(kind: Any) -> None:
    with kind(cache_directory="./cache") as exe:
        future_lst = [exe.submit(sum, [i, i]) for i in range(1, 4)]
        assert [f.result() for f in future_lst] == [2, 4, 6]
    assert os.path.isdir("./cache")


@pytest.mark.parametrize("kind", ALL)
def test_dependent_calls_add_to_22(kind: Any) -> None:
    with kind(cache_directory="./file") as exe:
        future = 0
        for i in range(4, 8):
            future = exe.submit(add_funct, i, future)
        assert future.result() == 22  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", CLUSTERS)
def test_each_call_sees_its_own_gpus(kind: Any) -> None:
    with kind(cache_directory="./cache", resource_dict={"gpus_per_core": 1}) as exe:
        fs_1 = exe.submit(get_available_gpus)
        fs_2 = exe.submit(get_available_gpus, resource_dict={"cache": False})
        assert (len(fs_1.result()), len(fs_2.result())) == (1, 1)


@pytest.mark.parametrize("kind", ALL)
def test_cleaning_the_cache(kind: Any) -> None:
    with kind(cache_directory="./file") as exe:
        assert exe.submit(add_funct, 1, 2).result() == 3
    cache_dir = "./file"
    if os.path.exists(cache_dir):
        assert os.listdir(cache_dir)
        shutil.rmtree(cache_dir)
    assert not os.path.exists(cache_dir)
    with kind(cache_directory="./file") as exe:
        assert exe.submit(add_funct, 1, 2).result() == 3
    assert len(get_cache_data("./file")) == 1


# ---- calls of several ranks --------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.slurm
def test_four_ranks_by_pmix_and_a_template_of_ones_own(partition: str) -> None:
    with SlurmClusterExecutor(pmi_mode="pmix", cache_directory="./cache") as exe:
        future = exe.submit(
            mpi_calc,
            42,
            resource_dict={
                "submission_template": OWN_TEMPLATE,
                "cores": 4,
                "partition": partition,
                "run_time_max": 120,
            },
        )
        assert future.result() == [{"rank": i, "size": 4, "input": 42} for i in range(4)]


@pytest.mark.mpi
@pytest.mark.slurm
def test_eight_ranks_split_into_two_groups() -> None:
    with SlurmClusterExecutor(pmi_mode="pmix", cache_directory="./cache") as exe:
        future = exe.submit(two_groups_of_four, resource_dict={"cores": 8})
        # By rank: the group, the rank in it, its size, and the sum of the ranks that are in it.
        assert future.result() == [
            (rank // 4, rank % 4, 4, 6 if rank < 4 else 22) for rank in range(8)
        ]


@pytest.mark.mpi
@pytest.mark.parametrize("kind", ALL)
def test_two_cores_are_two_ranks(kind: Any) -> None:
    with kind(cache_directory="./file") as exe:
        fs = exe.submit(calc, 3, resource_dict={"cores": 2})
        assert fs.result() == [(3, 2, 0), (3, 2, 1)]


@pytest.mark.mpi
@pytest.mark.slurm
def test_the_audit_shows_as_many_cpus_as_cores() -> None:
    with SlurmClusterExecutor(cache_directory="./cache") as exe:
        assert len(exe.submit(calc, 3, resource_dict={"cores": 2}).result()) == 2
        assert exe.submit(sum, [1, 2]).result() == 3

    (audited,) = [
        entry
        for entry in get_cache_data(cache_directory="./cache")
        if "calc" in str(entry["function"])
    ]
    job_id = audited["queue_id"]
    poll(
        lambda: rows_of_sacct(job_id, "JobID,State")[:1] == [[job_id, "COMPLETED"]],
        60,
        "the accounts",
    )
    job, *steps = rows_of_sacct(job_id, "JobID,State,AllocCPUS,Elapsed")
    assert job[:3] == [job_id, "COMPLETED", "2"]
    assert all(step[0].startswith(f"{job_id}.") for step in steps)


# ---- executors in jobs -------------------------------------------------------------------------


@pytest.mark.slurm
def test_an_executor_in_a_job_has_its_calls_as_numbered_steps(partition: str) -> None:
    with SlurmClusterExecutor(cache_directory="./cache") as outer:
        future = outer.submit(
            parallel_workflow,
            4,
            resource_dict={"cores": 1, "partition": partition, "run_time_max": 300},
        )
        assert future.result() == [0, 2, 4, 6]
        job_id = future.job_id
    steps = [f"{job_id}.{number}" for number in range(4)]
    poll(
        lambda: {row[0] for row in rows_of_sacct(job_id, "JobID%30,State")} >= set(steps),
        60,
        "the accounts",
    )
