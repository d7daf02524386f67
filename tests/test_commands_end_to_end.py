"""Both doors on batch systems that are known by their commands: the fakes, and a real one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest

from batch_systems import NAMES, end_jobs_of, why_no_grid_engine
from bodies import add, gated, open_gate, traces
from clients import SEVENTEEN, Clients, poll
from dask_batch import ClusterExecutor, SlurmClusterExecutor, cluster_get
from dask_batch.errors import (
    CancelledTaskError,
    ConfigurationError,
    ResourceError,
    SubmissionError,
)
from dask_batch.testing import FakeBatch

QUICK = {"shortest_poll_s": 0.2, "longest_poll_s": 0.5, "failure_grace_s": 1.0}


@pytest.fixture(params=NAMES)
def system(request, tmp_path: Path, monkeypatch) -> Iterator[str]:
    """Put the commands of one system after the other on PATH, and yield its name.

    Grid Engine is the real one where there is one.
    """
    if request.param == "sge" and not why_no_grid_engine():
        yield "sge"
        end_jobs_of(tmp_path)
        return
    with FakeBatch(tmp_path / "fake", request.param, second_s=0.05) as fake:
        monkeypatch.setenv("PATH", fake.environment()["PATH"])
        yield request.param


@pytest.fixture
def pbs(tmp_path: Path, monkeypatch) -> Iterator[FakeBatch]:
    with FakeBatch(tmp_path / "fake", "pbs", second_s=0.05) as fake:
        monkeypatch.setenv("PATH", fake.environment()["PATH"])
        yield fake


only_some = pytest.mark.parametrize("system", ["pbs", "sge"], indirect=True)
"""Where it matters little which: starting Python a hundred times is not for nothing."""


def failing(value: int) -> int:
    raise ValueError(f"no {value}")


def fails_once(folder: str) -> str:
    if not os.path.exists(f"{folder}/once"):
        Path(folder, "once").touch()
        raise OSError("the first time")
    return "second"


def test_dependent_sums_and_graphs(system: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with ClusterExecutor(backend=system, cache_directory=cache, **QUICK) as exe:
        future = 0
        for i in range(4, 8):
            future = exe.submit(add, i, future, resource_dict={"run_time_max": 3600})
        sums = [exe.submit(sum, [i, i]) for i in range(3)]
        assert future.result(120) == 22
        assert [each.result(120) for each in sums] == [0, 2, 4]
    total = dask.delayed(sum)([dask.delayed(add)(i, 1) for i in range(3)])
    options = {"backend": system, "cache_directory": cache, **QUICK}
    assert dask.compute(total, scheduler=cluster_get, **options) == (6,)


@only_some
def test_an_exception_and_what_depends_on_it(system: str, tmp_path: Path) -> None:
    with ClusterExecutor(backend=system, cache_directory=tmp_path / "cache", **QUICK) as exe:
        bad = exe.submit(failing, 7)
        child = exe.submit(add, bad, 1)
        good = exe.submit(add, 1, 1)
        error = bad.exception(120)
        assert isinstance(error, ValueError)
        assert "no 7" in str(error)
        assert "in failing" in str(error.__cause__)
        assert "failing" in str(child.exception(120))
        assert good.result(120) == 2


def test_cancelling_and_the_queue_afterwards(pbs: FakeBatch, tmp_path: Path) -> None:
    exe = ClusterExecutor(backend="pbs", cache_directory=tmp_path / "cache", **QUICK)
    running = exe.submit(gated, tmp_path, "slow")
    waiting = exe.submit(add, running, "!")
    poll(lambda: traces(tmp_path)["slow"], 60, "the start")
    exe.shutdown(wait=False, cancel_futures=True)
    poll(lambda: all(job["state"] == "ended" for job in pbs.jobs()), 60, "the end of the jobs")
    assert waiting.cancelled() or isinstance(waiting.exception(60), CancelledTaskError)
    assert running.done()


@only_some
def test_a_client_is_killed_and_another_takes_up(system: str, tmp_path: Path) -> None:
    clients = Clients(tmp_path, system, SEVENTEEN)
    first = clients.start(DASK_BATCH__SHORTEST_POLL="0.2")
    assert first.stdout is not None
    assert first.stdout.readline() == "computing\n"
    poll(lambda: sum(clients.bodies().values()) >= 3, 120, "some tasks")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    last = clients.run(DASK_BATCH__SHORTEST_POLL="0.2")
    assert last.count("leaf") == 16
    assert set(clients.bodies().values()) == {1}
    assert clients.results() == 17


@only_some
def test_a_refused_submission(system: str, tmp_path: Path) -> None:
    with ClusterExecutor(backend=system, cache_directory=tmp_path / "cache", **QUICK) as exe:
        future = exe.submit(add, 1, 2, resource_dict={"partition": "nosuch.q"})
        error = future.exception(120)
        assert isinstance(error, SubmissionError)
        assert isinstance(error, subprocess.CalledProcessError)
        assert "queue" in error.output.lower()
        assert exe.submit(add, 1, 2).result(120) == 3


@pytest.mark.parametrize("system", ["lsf", "moab"], indirect=True)
def test_a_failure_is_repeated_and_its_dependents_run_after_all(
    system: str, tmp_path: Path
) -> None:
    with ClusterExecutor(backend=system, cache_directory=tmp_path / "cache", **QUICK) as exe:
        again = {"retries": 1, "retry_exceptions": True}
        future = exe.submit(fails_once, str(tmp_path), resource_dict=again)
        child = exe.submit(add, future, "!")
        assert child.result(120) == "second!"


def test_a_full_queue_is_handed_the_rest_later(pbs: FakeBatch, tmp_path: Path) -> None:
    pbs._config["max_jobs"] = 4
    pbs.start()
    options = {"backend": "pbs", "cache_directory": tmp_path / "cache", **QUICK}
    tasks = [dask.delayed(add)(i, i) for i in range(12)]
    assert dask.compute(*tasks, scheduler=cluster_get, **options) == tuple(range(0, 24, 2))


# ---- configuration directories -----------------------------------------------------------------


@pytest.fixture
def queues(tmp_path: Path) -> Path:
    folder = tmp_path / "queues"
    folder.mkdir()
    (folder / "queue.yaml").write_text(
        "queue_type: TORQUE\n"
        "queue_primary: workq\n"
        "queues:\n"
        "  workq: {cores_max: 2, cores_min: 1, run_time_max: 3600, script: torque.sh}\n"
        "  wide: {cores_max: 4, run_time_max: 7200, memory_max: 8}\n"
    )
    (folder / "torque.sh").write_text(
        "#!/bin/bash\n"
        "#PBS -l ncpus={{cores}}\n"
        "#PBS -N {{job_name}}\n"
        "{%- if run_time_max %}\n"
        "#PBS -l walltime={{run_time_max}}\n"
        "{%- endif %}\n"
        "{%- if dependency_list %}\n"
        "#PBS -W depend=afterok:{{ dependency_list | join(':') }}\n"
        "{%- endif %}\n"
        "export FROM_TEMPLATE={{cores}}\n\n"
        "{{command}}\n"
    )
    return folder


def surroundings(value: object) -> tuple[object, str | None, str | None]:
    return value, os.environ.get("FROM_TEMPLATE"), os.environ.get("OMP_NUM_THREADS")


def test_a_configuration_directory_chooses_system_queue_and_template(
    pbs: FakeBatch, queues: Path, tmp_path: Path
) -> None:
    options = {"cache_directory": tmp_path / "cache", "pysqa_config_directory": queues, **QUICK}
    with SlurmClusterExecutor(**options) as exe:
        narrow = exe.submit(surroundings, 1, resource_dict={"threads_per_core": 2})
        wide = exe.submit(surroundings, narrow, resource_dict={"queue": "wide", "memory_max": 8})
        assert wide.result(120) == ((1, "2", "2"), None, "1")
        assert "depend" not in exe.job_script()
    (first, second) = pbs.jobs()
    assert (first["cpus"], second["after_ok"]) == (2, [first["id"]])
    again = dask.delayed(surroundings)(3)
    options = {**options, "backend": "pysqa"}
    assert dask.compute(again, scheduler=cluster_get, **options) == ((3, "1", "1"),)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"threads_per_core": 3}, r"'cores': 3 .* 'workq' .*queue.yaml has cores_max: 2"),
        ({"run_time_max": 3601}, "has run_time_max: 3600"),
        ({"queue": "wide", "memory_max": 9}, "'wide' .* has memory_max: 8"),
        ({"queue": "none"}, "has no queue 'none'. There are: workq, wide"),
        ({"memory_max": 4}, "'memory_max': your template does not say it"),
        ({"quue": "wide"}, "unknown resource 'quue'"),
    ],
)
def test_the_limits_of_a_queue_are_errors_that_name_them(
    pbs: FakeBatch, queues: Path, tmp_path: Path, asked: dict[str, object], message: str
) -> None:
    options = {"cache_directory": tmp_path / "cache", "pysqa_config_directory": queues, **QUICK}
    with ClusterExecutor(**options) as exe, pytest.raises(ResourceError, match=message):
        exe.submit(add, 1, 2, resource_dict=asked)
    with pytest.raises(ResourceError, match=message):
        dask.compute(
            dask.delayed(add)(1, 2), scheduler=cluster_get, resource_dict=_at_dask(asked), **options
        )
    assert pbs.jobs() == []


def _at_dask(asked: dict[str, object]) -> dict[str, object]:
    return {"cores" if name == "threads_per_core" else name: v for name, v in asked.items()}


def test_a_chain_of_tasks_keeps_within_the_time_of_its_queue(
    pbs: FakeBatch, queues: Path, tmp_path: Path
) -> None:
    import dask.array as da

    array = ((da.ones(4, chunks=4) + 1) * 2).sum()
    (value,) = dask.compute(
        array,
        scheduler=cluster_get,
        cache_directory=tmp_path / "cache",
        pysqa_config_directory=queues,
        resource_dict={"run_time_max": 3000},
        optimize_graph=False,
        **QUICK,
    )
    assert value == 16
    assert {job["walltime_s"] for job in pbs.jobs()} == {3600}


def test_a_directory_and_a_backend_that_contradict_each_other(pbs, queues, tmp_path) -> None:
    options = {"cache_directory": tmp_path / "cache", "pysqa_config_directory": queues}
    with pytest.raises(ConfigurationError, match=r"queue.yaml is for 'pbs'"):
        ClusterExecutor(backend="sge", **options)
    with pytest.raises(ConfigurationError, match="needs a configuration"):
        ClusterExecutor(backend="pysqa", cache_directory=tmp_path / "cache")


def test_what_was_handed_over_by_a_configuration_is_known_without_it(
    pbs: FakeBatch, queues: Path, tmp_path: Path
) -> None:
    from dask_batch import status

    cache = tmp_path / "cache"
    exe = ClusterExecutor(cache_directory=cache, pysqa_config_directory=queues, **QUICK)
    exe.submit(gated, tmp_path, "slow")
    exe.shutdown(wait=False)
    (run,) = status(cache_directory=cache)
    assert run.backend == "pbs"
    open_gate(tmp_path)
    poll(lambda: pbs.jobs()[0]["state"] == "ended", 60, "the end")


# ---- without a client ---------------------------------------------------------------------------

FAILS_ONCE = """
def once(name, *parents):
    try:
        os.close(os.open(TRACES.parent / "first", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return body(name, *parents)
    raise OSError("the first time")

def graph():
    with dask.annotate(resources={"retries": 1, "retry_exceptions": True}):
        first = dask.delayed(once)("once")
    return dask.delayed(body)("end", dask.delayed(body)("middle", first))

if __name__ == "__main__":
    compute(graph())
"""


@only_some
def test_a_failure_is_repeated_when_nobody_is_there(system: str, tmp_path: Path) -> None:
    clients = Clients(tmp_path, system, FAILS_ONCE)
    client = clients.start(DASK_BATCH__SHORTEST_POLL="0.2", DASK_BATCH__FAILURE_GRACE="1s")
    poll(lambda: bool(list(clients.cache.glob("runs/*.settled"))), 120, "the hand-over")
    os.kill(client.pid, signal.SIGKILL)
    client.communicate()
    poll(lambda: clients.results() == 3, 240, "the graph, without its client")
    assert clients.run() == "end(middle(once()))"
    assert set(clients.bodies().values()) == {1}
