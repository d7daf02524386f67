"""A plugin for pytest that runs Dask's own tests with this package as the scheduler.

``pytest -p dask_suite_plugin --pyargs dask.array.tests.test_reductions``, with this folder on
``PYTHONPATH``. All tests of a session share one cache in a temporary directory: a task that falsely
had the key of another test's would get that one's result.

``--dask-get`` says by what means: ``queue`` (the default) is the local queue; ``inprocess`` leaves
the queue out, and ``verify`` computes, besides, what is there already, to compare. The schedulers
that Dask knows by name are exchanged as well: many tests ask for one of them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

_NAMES = (
    "sync",
    "synchronous",
    "single-threaded",
    "threads",
    "threading",
    "processes",
    "multiprocessing",
)
_ABSENCE = frozenset(
    {
        "test_compute_array_bag",
        "test_get_scheduler",
        "test_persist_array_bag",
        "test_temporary_directory",
    }
)
"""Tests of what happens where no scheduler has been chosen."""

_folder = pytest.StashKey[str]()
_get = pytest.StashKey[Callable[..., Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--dask-get", choices=["queue", "inprocess", "verify"], default="queue")


def pytest_configure(config: pytest.Config) -> None:
    """Make a folder for the session, with a configuration, a cache and a queue of its own."""
    folder = config.stash[_folder] = tempfile.mkdtemp(prefix="dask-suite-")
    os.environ["DASK_CONFIG"] = os.path.join(folder, "config")
    os.environ["DASK_BATCH_QUEUE_DIR"] = tempfile.mkdtemp(prefix="queue-", dir=folder)
    config.stash[_get] = _scheduler(config.getoption("--dask-get"), folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the queue, and leave nothing behind."""
    from dask_batch import stop_local_queue

    stop_local_queue(kill_jobs=True)
    shutil.rmtree(config.stash[_folder], ignore_errors=True)


def _scheduler(means: str, folder: str) -> Callable[..., Any]:
    cache = os.path.join(folder, "cache")
    if means == "queue":
        import functools

        from dask_batch import cluster_get

        return functools.partial(cluster_get, backend="local", cache_directory=cache)
    from inprocess import InProcess

    return InProcess(cache, verify=means == "verify").get


@pytest.fixture(autouse=True)
def _scheduled_by_us(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    import dask

    get = request.config.stash[_get]
    for name in _NAMES:
        monkeypatch.setitem(dask.base.named_schedulers, name, get)
    chosen = {} if request.node.name in _ABSENCE else {"scheduler": get}
    with dask.config.set(chosen):
        yield
