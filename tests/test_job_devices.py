"""Which GPUs a process sees: lists of devices, and the shares of ranks."""

from __future__ import annotations

import pytest

from dask_batch.errors import ResourceError
from dask_batch.job.devices import VARIABLES, listed, rank_on_node, seeing, share


@pytest.mark.parametrize(
    ("value", "devices"),
    [
        ("", ()),
        ("0", ("0",)),
        ("3,1, 2", ("3", "1", "2")),
        ("GPU-8932f937-d72c,GPU-e4a1", ("GPU-8932f937-d72c", "GPU-e4a1")),
        ("MIG-GPU-8932/1/0", ("MIG-GPU-8932/1/0",)),
        ("-1", ()),
        ("0,-1,1", ("0",)),
        ("NoDevFiles", ()),
        ("0,,1", ("0",)),
        ("1,0,1", ("1", "0")),
    ],
)
def test_a_list_of_devices_is_read_as_libraries_read_it(
    value: str, devices: tuple[str, ...]
) -> None:
    assert listed(value) == devices


@pytest.mark.parametrize("variable", VARIABLES)
def test_ranks_share_devices_out_without_overlap(variable: str) -> None:
    job = {variable: "4,5,6,7,8,9", "HOME": "/"}
    shares = [share(job, rank, 2) for rank in range(3)]
    assert shares == [{variable: "4,5"}, {variable: "6,7"}, {variable: "8,9"}]
    assert job == {variable: "4,5,6,7,8,9", "HOME": "/"}


def test_each_variable_of_slurm_is_cut_alike() -> None:
    job = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"), "2,3")
    assert share(job, 1, 1) == dict.fromkeys(job, "3")


def test_hip_counts_what_rocr_shows_it() -> None:
    job = {"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "0,1"}
    assert share(job, 1, 1) == {"ROCR_VISIBLE_DEVICES": "3", "HIP_VISIBLE_DEVICES": "0"}
    with_cuda = job | {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert share(with_cuda, 1, 1) == {
        "ROCR_VISIBLE_DEVICES": "3",
        "HIP_VISIBLE_DEVICES": "0",
        "CUDA_VISIBLE_DEVICES": "0",
    }


def test_what_is_shared_out_already_is_left() -> None:
    assert share({"CUDA_VISIBLE_DEVICES": "1"}, 1, 1) == {}
    assert share({"CUDA_VISIBLE_DEVICES": "0,1"}, 0, 2) == {}


def test_nothing_to_share_out() -> None:
    assert share({"CUDA_VISIBLE_DEVICES": "0,1"}, 1, 0) == {}
    assert share({"HOME": "/"}, 1, 2) == {}


def test_too_few_devices_are_named() -> None:
    with pytest.raises(ResourceError, match=r"rank 2 .* sees 2 \(CUDA_VISIBLE_DEVICES='0,1'\)"):
        share({"CUDA_VISIBLE_DEVICES": "0,1"}, 2, 1)
    with pytest.raises(ResourceError, match="sees 0"):
        share({"ROCR_VISIBLE_DEVICES": ""}, 0, 1)


def test_a_program_that_is_to_see_no_device() -> None:
    assert seeing({}, "CUDA_VISIBLE_DEVICES", ()) == {"CUDA_VISIBLE_DEVICES": ""}
    both = {"ROCR_VISIBLE_DEVICES": "0,1", "HIP_VISIBLE_DEVICES": "1"}
    hidden = {"ROCR_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    assert seeing(both, "ROCR_VISIBLE_DEVICES", ()) == hidden


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, None),
        ({"SLURM_LOCALID": "1"}, 1),
        ({"FLUX_TASK_LOCAL_ID": "0"}, 0),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "3"}, 3),
        ({"MPI_LOCALRANKID": "2"}, 2),
        ({"MPI_LOCALRANKID": "nonsense"}, None),
    ],
)
def test_whoever_starts_ranks_says_which_is_which(
    environment: dict[str, str], rank: int | None
) -> None:
    assert rank_on_node(environment) == rank
