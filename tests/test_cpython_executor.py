"""CPython's own tests of what an executor must do, on ours.

They are not installed with Python. ``DASK_BATCH_CPYTHON_TESTS`` names the folder that holds
CPython 3.11's ``test_concurrent_futures.py``; ``ci/test`` fetches it as a Debian package.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import unittest
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dask_batch import SingleNodeExecutor

FOLDER = os.environ.get("DASK_BATCH_CPYTHON_TESTS")
REASON = "DASK_BATCH_CPYTHON_TESTS does not name a folder with test_concurrent_futures.py"


def _suite() -> ModuleType | None:
    if FOLDER is None:
        return None
    path = Path(FOLDER) / "test_concurrent_futures.py"
    spec = importlib.util.spec_from_file_location("cpython_test_concurrent_futures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SUITE: Any = _suite()

if SUITE is None:

    @pytest.mark.skipif(os.environ.get("CI") != "true", reason=REASON)
    def test_the_suite_is_at_hand() -> None:
        pytest.fail(REASON)

else:

    class OnTheLocalQueue(SUITE.ExecutorMixin):  # type: ignore[misc,name-defined]
        executor_type = SingleNodeExecutor

        @pytest.fixture(autouse=True)
        def _cache(self, tmp_path: Path) -> None:
            # The mixin makes an executor before each test, with these keywords.
            self.executor_kwargs = {
                "cache_directory": tmp_path / "cache",
                # Calls of one function with the same arguments are to run each.
                "resource_dict": {"cache": False},
            }

    class TestExecutor(OnTheLocalQueue, SUITE.ExecutorTest, SUITE.BaseTestCase):  # type: ignore[misc,name-defined]
        pass

    class TestWait(OnTheLocalQueue, SUITE.WaitTests, SUITE.BaseTestCase):  # type: ignore[misc,name-defined]
        pass

    class TestAsCompleted(OnTheLocalQueue, SUITE.AsCompletedTests, SUITE.BaseTestCase):  # type: ignore[misc,name-defined]
        pass

    class TestShutdown(OnTheLocalQueue, SUITE.ExecutorShutdownTest, SUITE.BaseTestCase):  # type: ignore[misc,name-defined]
        # These start an interpreter that does "from concurrent.futures import <our name>".
        test_interpreter_shutdown = None
        test_submit_after_interpreter_shutdown = None
        test_hang_gh83386 = None

    assert issubclass(TestExecutor, unittest.TestCase)
