"""GPUs, nodes and sbatch's own arguments on a real Slurm, asked for at both doors."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import pytest

from dask_batch import SlurmClusterExecutor
from dask_batch.errors import ResourceError
from test_seed import QUICK, described

pytestmark = pytest.mark.slurm

PATIENCE_S = 120.0
WITHOUT_GPUS = "#!/bin/bash\n#SBATCH --ntasks={{ cores }}\n{{ command }}\n"
"""A user's template that says nothing of GPUs."""
TEMPLATES = pytest.mark.parametrize("template", [None, WITHOUT_GPUS], ids=["built-in", "bare"])


@pytest.fixture
def cache(tmp_path: Path, slurm: Callable[[], list[str]]) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def node_with_gpus() -> str:
    """A node with two GPUs, on which two jobs are neighbours."""
    argv = ["sinfo", "-h", "-N", "-r", "-o", "%N %G"]  # of those that answer
    rows = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split("\n")
    nodes = [row.split()[0] for row in rows if "gpu:2" in row]
    if not nodes:
        pytest.skip("no node of this Slurm has two GPUs; those of ci/slurm/slurm-up have")
    return nodes[0]


def get_available_gpus(folder: Path, name: str, others: int) -> list[tuple[str, str]]:
    """Return which GPUs this task sees, where, once as many tasks as that run at the same time."""
    (folder / name).touch()
    deadline = time.monotonic() + PATIENCE_S
    while len(list(folder.iterdir())) <= others:
        if time.monotonic() > deadline:
            raise TimeoutError("the others did not come")
        time.sleep(0.02)
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [(device, os.environ["SLURMD_NODENAME"]) for device in listed.split(",") if device]


def gpus_in(tres: str) -> int:
    """Read ``gres:gpu:1`` (22.05) or ``cpu=2,gres/gpu=1`` (23.02)."""
    found = re.search(r"gres[:/]gpu[:=](\d+)", tres)
    return int(found[1]) if found else 0


def exclusive(job: dict[str, str]) -> bool:
    """Whether a job is to have its nodes alone."""
    if "Exclusive" in job:  # 26.05: there OverSubscribe is NO in any case
        return {"NODE": True, "NO": False}[job["Exclusive"]]
    return {"NO": True, "OK": False}[job["OverSubscribe"]]


@pytest.fixture
def meeting(tmp_path: Path) -> Path:
    folder = tmp_path / "meeting"
    folder.mkdir()
    return folder


@TEMPLATES
def test_two_calls_at_a_time_see_gpus_of_their_own(
    cache: Path, meeting: Path, node_with_gpus: str, template: str | None
) -> None:
    resources = {
        "gpus_per_core": 1,
        "submission_template": template,
        "slurm_cmd_args": [f"--nodelist={node_with_gpus}"],
    }
    with SlurmClusterExecutor(cache_directory=cache, resource_dict=resources, **QUICK) as exe:
        one = exe.submit(get_available_gpus, meeting, "one", 1)
        two = exe.submit(get_available_gpus, meeting, "two", 1)
        seen = [*one.result(PATIENCE_S), *two.result(PATIENCE_S)]
        job = described(one.job_id)
        assert gpus_in(job.get("AllocTRES") or job["TRES"]) == 1
    assert sorted(device for device, _ in seen) == ["0", "1"]
    assert {node for _, node in seen} == {node_with_gpus}


@TEMPLATES
def test_tasks_of_a_graph_see_as_many_gpus_as_they_ask_for(
    cache: Path, meeting: Path, template: str | None
) -> None:
    task = dask.delayed(get_available_gpus)
    with dask.annotate(resources={"gpus_per_core": 2, "submission_template": template}):
        both = task(meeting, "both", 0)
    with dask.annotate(resources={"submission_template": template}):
        none = task(meeting, "none", 0)
    with SlurmClusterExecutor(cache_directory=cache, **QUICK) as exe:
        seen, seen_without = dask.compute(both, none, scheduler=exe)
    assert [device for device, _ in seen] == ["0", "1"]
    assert seen_without == []


def test_generic_resources_for_sites_that_want_them(cache: Path, meeting: Path) -> None:
    resources = {"gpus_per_core": 2, "gpu_request": "--gres=gpu:{gpus}"}
    with SlurmClusterExecutor(cache_directory=cache, **QUICK) as exe:
        future = exe.submit(get_available_gpus, meeting, "x", 0, resource_dict=resources)
        assert len(future.result(PATIENCE_S)) == 2
        job = described(future.job_id)
    assert (gpus_in(job["TresPerNode"]), gpus_in(job.get("TresPerTask", ""))) == (2, 0)


def test_more_gpus_than_any_node_has_are_refused_before_submission(
    cache: Path, meeting: Path, slurm: Callable[[], list[str]]
) -> None:
    task = dask.delayed(get_available_gpus)(meeting, "x", 0)
    resources = {"gpus_per_core": 1000}
    too_many = r"gpus_per_core: 1000 GPUs .* at most \d"
    with SlurmClusterExecutor(cache_directory=cache, resource_dict=resources, **QUICK) as exe:
        with pytest.raises(ResourceError, match=too_many):
            exe.submit(get_available_gpus, meeting, "x", 0)
        with pytest.raises(ResourceError, match=too_many):
            dask.compute(task, scheduler=exe)
    assert slurm() == []


# ---- nodes, exclusively, and what sbatch is told besides ---------------------------------------


LATER = "--begin=now+1hour"
"""Keeps a job in the queue, to be looked at: others may be at work on what it would have."""
DOORS = pytest.mark.parametrize("door", ["call", "graph"])


@pytest.fixture
def asked_for(cache: Path, slurm: Callable[[], list[str]]) -> Callable[..., dict[str, str]]:
    """Return what slurmctld knows of a job with given resources, which then is cancelled."""

    def asked_for(door: str, **resources: Any) -> dict[str, str]:
        resources["slurm_cmd_args"] = [*resources.get("slurm_cmd_args", ()), LATER]
        exe = SlurmClusterExecutor(cache_directory=cache, **QUICK)
        try:
            if door == "call":
                exe.submit(os.getcwd, resource_dict=resources)
            else:
                with dask.annotate(resources=resources):
                    task = dask.delayed(os.getcwd)()
                exe.compute(task)
            exe._session.engine.flush()
            (job_id,) = slurm()
            return described(job_id)
        finally:
            exe.shutdown(wait=False, cancel_futures=True)

    return asked_for


@DOORS
@TEMPLATES
def test_nodes_gpus_and_exclusiveness_reach_slurm(
    asked_for: Callable[..., dict[str, str]], door: str, template: str | None
) -> None:
    job = asked_for(
        door,
        num_nodes=2,
        exclusive=True,
        gpus_per_core=1,
        threads_per_core=2 if door == "call" else None,
        cores=None if door == "call" else 2,
        submission_template=template,
    )
    assert job["NumNodes"].split("-")[0] == "2"
    assert (job["NumTasks"], job["CPUs/Task"]) == ("2", "2")
    assert exclusive(job)
    assert gpus_in(job["TresPerTask"]) == 1


@DOORS
@TEMPLATES
def test_without_them_a_job_shares_one_node(
    asked_for: Callable[..., dict[str, str]], door: str, template: str | None
) -> None:
    job = asked_for(door, exclusive=False, submission_template=template)
    assert (job["NumNodes"].split("-")[0], job["NumTasks"]) == ("1", "1")
    assert not exclusive(job)
    assert "gpu" not in " ".join(job.values())


@DOORS
@TEMPLATES
def test_arguments_of_sbatch_prevail(
    asked_for: Callable[..., dict[str, str]], door: str, template: str | None
) -> None:
    job = asked_for(
        door,
        run_time_max=120,
        job_extra_directives=["--time=5"],
        slurm_cmd_args=["--time=7", "--nice=7"],
        submission_template=template,
    )
    assert (job["TimeLimit"], job["Nice"]) == ("00:07:00", "7")
