"""Which GPUs a client's jobs may have: what its environment lists, what is there, what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest

from dask_batch.backends import gpus
from dask_batch.backends.gpus import NO_DEVICES, Devices, declared, visible
from dask_batch.configuration.config import resolve
from dask_batch.errors import ConfigurationError
from dask_batch.job.devices import restricted, unrestricted

CUDA, ROCR, HIP = "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"

PLAIN = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-b6b4ed1a-9f0c-0f4f-8a39-1c0c3a7b5e0f)
"""
CUT = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.20gb     Device  0: (UUID: MIG-7f1c1b33-1f0c-5d26-a0c1-2f8b0d3f4a55)
  MIG 3g.20gb     Device  1: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-b6b4ed1a-9f0c-0f4f-8a39-1c0c3a7b5e0f)
"""


class Machine:
    """A machine's device files, drivers and topology, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "dev" / "dri").mkdir(parents=True)
        (folder / "bin").mkdir()

    def nvidia(self, *numbers: int, driver: str | None = None, code: int = 0) -> None:
        for name in ("nvidiactl", "nvidia-uvm", *(f"nvidia{number}" for number in numbers)):
            (self.folder / "dev" / name).touch()
        if driver is not None:
            (self.folder / "said").write_text(driver)
            program = self.folder / "bin" / "nvidia-smi"
            program.write_text(f'#!/bin/sh\n[ "$*" = -L ] && cat {self.folder}/said\nexit {code}\n')
            program.chmod(0o700)

    def amd(self, *gpus: tuple[int, bool]) -> None:
        """Have a CPU, and GPUs with these render nodes, which may be out of reach."""
        for number, (minor, reachable) in enumerate(((0, False), *gpus)):
            node = self.folder / "nodes" / str(number)
            node.mkdir(parents=True)
            cores = 0 if number == 0 else 440
            (node / "properties").write_text(f"simd_count {cores}\ndrm_render_minor {minor}\n")
            if reachable:
                (self.folder / "dev" / "dri" / f"renderD{minor}").touch()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    there = Machine(tmp_path)
    monkeypatch.setattr(gpus, "_DEVICES", tmp_path / "dev")
    monkeypatch.setattr(gpus, "_TOPOLOGY", tmp_path / "nodes")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    gpus._on_this_machine.cache_clear()
    yield there
    gpus._on_this_machine.cache_clear()


# ---- what is there -----------------------------------------------------------------------------


def test_a_machine_without_gpus(machine: Machine) -> None:
    assert visible({}) == NO_DEVICES


def test_the_driver_of_nvidia_is_asked(machine: Machine) -> None:
    machine.nvidia(0, 1, driver=PLAIN)
    assert visible({}) == Devices(CUDA, ("0", "1"))


def test_what_is_cut_into_instances_is_had_by_their_ids(machine: Machine) -> None:
    machine.nvidia(0, 1, driver=CUT)
    instances = tuple(re.findall(r"MIG-[-\w]+", CUT))
    assert visible({}) == Devices(CUDA, (*instances, "1"))


def test_without_the_drivers_program_the_device_files_count(machine: Machine) -> None:
    machine.nvidia(3, 5)  # as in a container that has two of eight
    assert visible({}) == Devices(CUDA, ("0", "1"))


def test_a_driver_that_fails_has_no_devices(machine: Machine) -> None:
    machine.nvidia(0, driver="NVIDIA-SMI has failed", code=9)
    assert visible({}) == NO_DEVICES


def test_devices_of_amd_that_may_be_opened(machine: Machine) -> None:
    machine.amd((128, True), (129, False), (130, True))
    assert visible({}) == Devices(ROCR, ("0", "1"))


# ---- what the environment lists ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({CUDA: "1,3"}, Devices(CUDA, ("1", "3"))),
        ({CUDA: "GPU-a,GPU-b"}, Devices(CUDA, ("GPU-a", "GPU-b"))),
        ({CUDA: ""}, Devices(CUDA)),
        ({CUDA: "-1"}, Devices(CUDA)),
        ({HIP: "1"}, Devices(HIP, ("1",))),
        ({ROCR: "2,3"}, Devices(ROCR, ("2", "3"))),
        ({ROCR: "2,3", HIP: "1"}, Devices(ROCR, ("3",))),
        ({"ZE_AFFINITY_MASK": "0.0,0.1"}, Devices("ZE_AFFINITY_MASK", ("0.0", "0.1"))),
        ({CUDA: "2", ROCR: "2", "ZE_AFFINITY_MASK": "2"}, Devices(CUDA, ("2",))),
    ],
)
def test_the_environment_goes_before_what_is_there(
    machine: Machine, environment: dict[str, str], devices: Devices
) -> None:
    machine.nvidia(0, 1, 2, 3)
    assert visible(environment) == devices


def test_on_a_machine_of_amd_rocr_is_what_counts(machine: Machine) -> None:
    machine.amd((128, True), (129, True))
    assert visible({CUDA: "0,1", ROCR: "1"}) == Devices(ROCR, ("1",))


# ---- what is declared --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "devices"),
    [
        (3, Devices(CUDA, ("0", "1", "2"))),
        ([4, 5], Devices(CUDA, ("4", "5"))),
        ("GPU-a, GPU-b", Devices(CUDA, ("GPU-a", "GPU-b"))),
        ({"ZE_AFFINITY_MASK": 2}, Devices("ZE_AFFINITY_MASK", ("0", "1"))),
        ({"ASCEND_RT_VISIBLE_DEVICES": ["6"]}, Devices("ASCEND_RT_VISIBLE_DEVICES", ("6",))),
        (0, NO_DEVICES),
        ([], NO_DEVICES),
    ],
)
def test_a_declaration_goes_before_what_is_there(
    machine: Machine, said: Any, devices: Devices
) -> None:
    machine.nvidia(0)
    assert visible({}, declared(said)) == devices


def test_a_declaration_on_a_machine_of_amd(machine: Machine) -> None:
    machine.amd((128, True), (129, True))
    assert visible({}, declared(1)) == Devices(ROCR, ("0",))


def test_a_declaration_narrows_what_the_environment_lists(machine: Machine) -> None:
    four = {CUDA: "4,5,6,7"}
    assert visible(four, declared(2)) == Devices(CUDA, ("4", "5"))
    assert visible(four, declared([7, 5])) == Devices(CUDA, ("7", "5"))
    assert visible(four, declared(0)) == NO_DEVICES
    for more in (5, [0, 4]):
        with pytest.raises(ConfigurationError, match=r"sees only CUDA_VISIBLE_DEVICES='4,5,6,7'"):
            visible(four, declared(more))


@pytest.mark.parametrize(
    "nonsense",
    [-1, True, 1.5, "", "0,,1", [0, 0], [""], {"NO_SUCH": 1}, {CUDA: 1, HIP: 1}, {CUDA: None}],
)
def test_a_declaration_that_makes_no_sense_is_refused_by_name(nonsense: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^local_gpus must .*, not "):
        resolve(backend="local", local_gpus=nonsense)


def test_the_setting_and_the_keyword(tmp_path: Path) -> None:
    with dask.config.set({"batch.local-gpus": 2}):
        assert resolve(backend="local").setup.local_gpus == declared(2)
        assert resolve(backend="local", local_gpus=[3]).setup.local_gpus == declared([3])
        resolve(backend="slurm")  # a setting is for whenever the local queue is used
    with pytest.raises(ConfigurationError, match="option of the local queue"):
        resolve(backend="slurm", local_gpus=2)


# ---- what a job hands over in its turn ---------------------------------------------------------


@pytest.mark.parametrize(
    "client", [{CUDA: "0,1"}, {}, {ROCR: "2,3", HIP: "0,1"}, {"ZE_AFFINITY_MASK": "0,1"}]
)
def test_what_a_job_hands_over_sees_what_its_client_saw(
    machine: Machine, client: dict[str, str]
) -> None:
    machine.nvidia(0, 1)
    devices = visible(client)
    for own in (devices.names[:1], ()):
        job = client | restricted(client, devices.variable, devices.names, own)
        assert job[devices.variable] == ",".join(own)
        assert visible(unrestricted(job)) == devices
        assert visible(unrestricted(unrestricted(job))) == devices
