"""GPUs on the local queue: jobs see devices of their own, which no other running job has."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest

from dask_batch.backends.base import Job, JobState
from dask_batch.backends.gpus import declared
from dask_batch.backends.local import LocalBackend
from dask_batch.errors import ResourceError
from local_harness import Bench, alive, bench, eventually, queue_pid

CUDA = "CUDA_VISIBLE_DEVICES"
CPUS = len(os.sched_getaffinity(0))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv(CUDA, "0,1")
    with bench(monkeypatch) as a_bench:
        yield a_bench


def seen(given: Bench, job: Job) -> list[str]:
    """Return the devices that a job sees, once it runs."""
    value: str = given.finding(job)[CUDA]
    return value.split(",") if value else []


def waiting(given: Bench, job_id: str) -> bool:
    return given.backend.status([job_id])[job_id].state is JobState.WAITING


def test_two_jobs_see_disjoint_devices_and_a_third_waits(given: Bench) -> None:
    first, second, third = (given.job("devices", gpus_per_core=1) for _ in range(3))
    ids = given.submit(first, second, third)
    assert sorted(seen(given, first) + seen(given, second)) == ["0", "1"]
    assert waiting(given, ids[third.name])
    (given.folder / "go").touch()
    assert {status.state for status in given.end(ids).values()} == {JobState.COMPLETED}
    assert len(seen(given, third)) == 1


def test_no_library_sees_a_device_before_its_job_does(given: Bench) -> None:
    """Some look when they are imported, and a fork of that process could not look again."""
    library = given.folder / "looks_at_import.py"
    library.write_text(f"import os\nSEEN = os.environ['{CUDA}']\n")
    path = os.pathsep.join((given.environment["PYTHONPATH"], str(given.folder)))
    environment = given.environment | {"PYTHONPATH": path}
    without, with_gpu = (
        given.job(
            "preloaded", preload=("looks_at_import",), environment=environment, gpus_per_core=n
        )
        for n in (0, 1)
    )
    given.run(without, with_gpu)
    assert (given.finding(without), given.finding(with_gpu)) == ("", "not imported")


def printed(given: Bench, *wanted: dict[str, int]) -> list[int]:
    """Run jobs in processes of their own, and return how many devices each sees."""
    program = given.folder / "python"
    program.write_text(f'#!/bin/sh\necho "${CUDA}"\n')
    program.chmod(0o700)
    jobs = [given.job("x", python=str(program), **resources) for resources in wanted]
    given.run(*jobs)
    said = [(given.folder / f"{job.index}.out").read_text().strip() for job in jobs]
    return [len(text.split(",")) if text else 0 for text in said]


def test_a_fresh_process_sees_its_devices_too(given: Bench) -> None:
    assert printed(given, *({"gpus_per_core": number} for number in (0, 1, 2))) == [0, 1, 2]


@pytest.mark.skipif(CPUS < 2, reason="two ranks need two CPUs")
def test_a_job_has_as_many_for_each_of_its_ranks(given: Bench) -> None:
    ranks, threads = {"cores": 2}, {"threads_per_core": 2}
    assert printed(given, *(kind | {"gpus_per_core": 1} for kind in (ranks, threads))) == [2, 1]
    given.backend.check([given.job("x", gpus_per_core=2, **threads)])
    with pytest.raises(ResourceError, match="4 GPUs are asked for, there are 2"):
        given.backend.check([given.job("x", gpus_per_core=2, **ranks)])


def test_a_job_that_asks_for_none_sees_none(given: Bench) -> None:
    (given.folder / "go").touch()
    none, library = given.job("devices"), given.job("devices", preload=("library_a",))
    given.run(none, library)
    assert (seen(given, none), seen(given, library)) == ([], [])


def test_where_no_devices_are_known_nothing_is_hidden(given: Bench) -> None:
    (given.folder / "go").touch()
    with_gpus_left_alone = LocalBackend(gpus=declared(0))
    job = given.job("devices")
    given.end(given.submit(job, backend=with_gpus_left_alone))
    with_gpus_left_alone.close()
    assert given.finding(job) == {CUDA: "0,1"}


def test_declared_devices_of_another_maker(given: Bench) -> None:
    (given.folder / "go").touch()
    backend = LocalBackend(gpus=declared({"ZE_AFFINITY_MASK": 2}))
    environment = {name: value for name, value in given.environment.items() if name != CUDA}
    jobs = [given.job("devices", gpus_per_core=n, environment=environment) for n in (0, 1, 2)]
    given.end(given.submit(*jobs, backend=backend))
    backend.close()
    found = [given.finding(job)["ZE_AFFINITY_MASK"] for job in jobs]
    assert [len(value.split(",")) if value else 0 for value in found] == [0, 1, 2]


def test_a_client_that_sees_one_device_has_its_jobs_on_that(given: Bench) -> None:
    (given.folder / "go").touch()
    environment = given.environment | {CUDA: "1"}
    jobs = [given.job("devices", gpus_per_core=1, environment=environment) for _ in range(3)]
    given.run(*jobs)
    assert [seen(given, job) for job in jobs] == [["1"]] * 3
    with pytest.raises(ResourceError, match=r"there are 1 \(CUDA_VISIBLE_DEVICES=1\)"):
        given.backend.check([given.job("devices", gpus_per_core=2, environment=environment)])


@pytest.mark.parametrize(
    ("variables", "resources", "message"),
    [
        ({CUDA: "0,1"}, {"gpus_per_core": 3}, r"3 GPUs .* there are 2 \(CUDA_VISIBLE_DEVICES=0,1"),
        ({CUDA: ""}, {"gpus_per_core": 1}, r"no GPUs .* \(CUDA_VISIBLE_DEVICES names none\)"),
    ],
)
def test_more_than_there_are_is_refused_with_the_remedy(
    given: Bench, variables: dict[str, str], resources: dict[str, Any], message: str
) -> None:
    job = given.job("devices", environment=given.environment | variables, **resources)
    with pytest.raises(ResourceError, match=message) as caught:
        given.backend.check([job])
    assert "'gpus_per_core'" in str(caught.value)
    assert "batch.local-gpus" in str(caught.value)


def test_a_queue_that_was_killed_knows_which_devices_are_held(given: Bench) -> None:
    holder = given.job("devices", gpus_per_core=1)
    ids = given.submit(holder)
    (mine,) = seen(given, holder)
    pid = queue_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid))
    other, waits = given.job("devices", gpus_per_core=1), given.job("devices", gpus_per_core=2)
    ids |= given.submit(other, waits)
    assert seen(given, other) == [{"0": "1", "1": "0"}[mine]]
    assert waiting(given, ids[waits.name])
    (given.folder / "go").touch()
    assert {status.state for status in given.end(ids).values()} == {JobState.COMPLETED}
    assert sorted(seen(given, waits)) == ["0", "1"]


def test_devices_are_free_again_after_every_kind_of_end(given: Bench) -> None:
    killed, cancelled = (given.job("forever", gpus_per_core=1) for _ in range(2))
    ids = given.submit(killed, cancelled)
    os.kill(given.finding(killed), signal.SIGKILL)
    given.finding(cancelled)
    given.backend.cancel([ids[cancelled.name]])
    given.end(ids)
    (given.folder / "go").touch()
    jobs = [given.job("devices", gpus_per_core=2) for _ in range(2)]
    assert {status.state for status in given.run(*jobs)} == {JobState.COMPLETED}
    assert set(chain.from_iterable(seen(given, job) for job in jobs)) == {"0", "1"}
