"""The number of MPI ranks is part of the work: two and four of one call never share a result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from dask import delayed

from dask_batch.backends.command import client_environment
from dask_batch.backends.local import LocalBackend
from dask_batch.cache.store import Cache
from dask_batch.configuration.config import resolve
from dask_batch.preparing.preparation import PreparedJob, Preparer
from dask_batch.preparing.surroundings import Surroundings
from graph_running import ingested

RANKS = (1, 2, 4)


def rank_and_size(value: int) -> tuple[int, int]:
    """What it returns depends on how many run it."""
    from mpi4py import MPI

    return value + MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size


def twice(value: Any) -> Any:
    return 2 * value


class Doors:
    """Both doors, up to where jobs are ready to be handed over."""

    def __init__(self, folder: Path) -> None:
        self.cache = Cache(folder / "cache")
        self.backend = LocalBackend()
        options = resolve(backend="local", cache_directory=folder / "cache")
        self._preparer = Preparer(self.cache, self.backend, options)
        self._surroundings = Surroundings.current(client_environment())

    def call(self, function: Any, *args: Any, **asked: Any) -> PreparedJob:
        """Return the job of ``submit``."""
        return self._preparer.call(function, args, {}, asked, self._surroundings)

    def graph(self, *collections: Any, rules: Any = None) -> list[PreparedJob]:
        """Return the jobs of a graph; parents come first."""
        graph = ingested(*collections, rules=rules)
        return list(self._preparer.graph(graph, self._surroundings).jobs)

    def task(self, function: Any, *args: Any, **annotations: Any) -> PreparedJob:
        """Return the job of a task."""
        with dask.annotate(**annotations):
            (job,) = self.graph(delayed(function)(*args))
        return job


@pytest.fixture
def doors(tmp_path: Path) -> Iterator[Doors]:
    both = Doors(tmp_path)
    yield both
    both.backend.close()


def test_calls_of_different_numbers_of_ranks_share_nothing(doors: Doors) -> None:
    keys = {doors.call(rank_and_size, 1, cores=ranks).key for ranks in RANKS}
    assert len(keys) == len(RANKS)
    for ranks in RANKS:  # however it is said, and whatever else is asked for
        same = {
            doors.call(rank_and_size, 1, cores=ranks, threads_per_core=2, memory_max=1).key,
            doors.call(rank_and_size, 1, ranks=ranks, gpus_per_core=1, pmi_mode="pmix").key,
            doors.call(rank_and_size, 1, ranks=ranks, num_nodes=2, exclusive=True).key,
        }
        assert len(same) == 1
        assert same < keys


def test_tasks_of_different_numbers_of_ranks_share_nothing(doors: Doors) -> None:
    keys = {doors.task(rank_and_size, 1, resources={"ranks": ranks}).key for ranks in RANKS}
    assert len(keys) == len(RANKS)
    for ranks in RANKS:
        threads = {"ranks": ranks, "cores": 4, "gpus_per_core": 1}
        assert doors.task(rank_and_size, 1, resources=threads).key in keys


def test_cpus_of_a_task_are_no_ranks(doors: Doors) -> None:
    one = doors.task(rank_and_size, 1)
    four = doors.task(rank_and_size, 1, resources={"cores": 4})
    assert one.key == four.key
    assert (four.resources["cores"], four.resources["threads_per_core"]) == (1, 4)


@pytest.mark.parametrize("ranks", RANKS)
def test_the_same_call_is_the_same_work_at_both_doors(doors: Doors, ranks: int) -> None:
    called = doors.call(rank_and_size, 1, cores=ranks)
    task = doors.task(rank_and_size, 1, resources={"ranks": ranks})
    assert called.key == task.key
    assert called.resources["cores"] == task.resources["cores"] == ranks


def test_what_depends_on_ranks_is_told_apart_as_well(doors: Doors) -> None:
    found = []
    for ranks in (2, 4):
        with dask.annotate(resources={"ranks": ranks}):
            parent = delayed(rank_and_size)(1)
        first, second = doors.graph(delayed(twice)(parent))
        assert (first.resources["cores"], second.resources["cores"]) == (ranks, 1)
        found += [first.key, second.key]
    assert len(set(found)) == 4


def test_both_in_one_graph_are_two_jobs(doors: Doors) -> None:
    parents = []
    for ranks in (2, 4):
        with dask.annotate(resources={"ranks": ranks}):
            parents.append(delayed(rank_and_size)(1))
    jobs = doors.graph(*parents)
    assert sorted(job.resources["cores"] for job in jobs) == [2, 4]
    assert len({job.key for job in jobs}) == 2


def test_ranks_by_rule_are_those_by_annotation(doors: Doors) -> None:
    task = delayed(rank_and_size)(1)
    (job,) = doors.graph(task, rules={"rank_and_size*": {"ranks": 2}})
    assert job.key == doors.task(rank_and_size, 1, resources={"ranks": 2}).key
