"""A selection of Dask's own tests, with the local queue as the scheduler.

Each suite runs in a process of its own, with one cache for all its tests. What cannot pass where
tasks run in other processes is left out by name, with the reason beside it. To run any other of
Dask's tests: ``python -m pytest -p dask_suite_plugin --pyargs dask.array.tests.test_slicing`` with
``tests`` on ``PYTHONPATH``.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_TIMEOUT_S = 280


@dataclass(frozen=True, slots=True)
class Suite:
    """Some of the tests of one of Dask's modules.

    Attributes
    ----------
    module
        The module.
    chosen
        Parts of names, one of which a test must have; all tests if there are none.
    impossible
        Parts of the names of tests that fail by construction, and why they do.
    """

    module: str
    chosen: tuple[str, ...] = ()
    impossible: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.module

    def expression(self) -> str:
        """Return the choice as pytest's ``-k`` takes it."""
        parts = [f"({' or '.join(self.chosen)})"] if self.chosen else []
        parts += [f"not {name}" for name in self.impossible]
        return " and ".join(parts)


SUITES = [
    Suite(
        "dask.tests.test_delayed",
        impossible={
            "test_traverse_false": "asserts that a task returns the very object it was given",
            "test_delayed_compute_forward_kwargs": (
                "passes a keyword that means nothing; we refuse those, so that a misspelt "
                "resource is not ignored"
            ),
        },
    ),
    Suite("dask.tests.test_callbacks"),
    Suite("dask.tests.test_hlgexpr"),
    Suite(
        "dask.bag.tests.test_bag",
        (
            "aggregation", "delayed", "groupby_pure", "groupby_tasks_names", "join", "product",
            "repeated_groupby", "textfiles",
        ),
        {
            "test_to_delayed_optimize_graph": "counts calls of a function that it patches here",
        },
    ),
    Suite("dask.bag.tests.test_text", ("unicode_no_collection", "errors", "delimiter")),
    Suite("dask.array.tests.test_linalg", ("svd_self_consistent", "lstsq and 20")),
    Suite("dask.array.tests.test_map_blocks"),
    Suite("dask.array.tests.test_random", ("doc", "determinism", "random_seed", "permutation")),
    Suite("dask.dataframe.dask_expr.tests.test_merge", ("merge_len", "known_to_single", "isin")),
    Suite("dask.dataframe.io.tests.test_csv", ("test_skiprows", "test_comment", "test_usecols")),
]  # fmt: skip


@pytest.mark.parametrize("suite", SUITES, ids=str)
def test_dasks_own_tests_pass(suite: Suite, tmp_path: Path) -> None:
    if importlib.util.find_spec(suite.module) is None:
        pytest.skip(f"this version of Dask comes without {suite.module}")
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    argv = [sys.executable, "-m", "pytest", "-p", "dask_suite_plugin", "-p", "no:cacheprovider"]
    argv += ["-q", "--tb=short", "-c", os.devnull, "--rootdir", str(tmp_path)]
    argv += ["--durations=5", "-k", suite.expression(), "--pyargs", suite.module]
    done = subprocess.run(
        argv,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert " passed" in done.stdout
