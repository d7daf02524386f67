"""What a job compares before it runs."""

from __future__ import annotations

import platform
import socket
import sys
from pathlib import Path

import pytest

from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims, Run
from dask_batch.cache.owner import Owner
from dask_batch.cache.store import Cache
from dask_batch.code.origin import Granularity
from dask_batch.job.checks import (
    failed_input,
    interpreter_changes,
    library_changes,
    library_versions,
    missing_library,
    missing_module,
)


@pytest.fixture
def odd_lib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install a library without a distribution, whose name is not a normalised one."""
    site = tmp_path / "site-packages"
    site.mkdir()
    (site / "odd_lib_of_ours.py").write_text("__version__ = '1.2.3'\n")
    monkeypatch.syspath_prepend(site)
    return "odd-lib-of-ours"


def changes(libraries: dict[str, str], key_versions: Granularity) -> str:
    return library_changes(libraries, library_versions(libraries), key_versions)


def test_a_library_without_a_distribution(odd_lib: str) -> None:
    assert library_versions([odd_lib]) == {odd_lib: "1.2.3"}
    assert changes({odd_lib: "1.2.9"}, "minor") == ""
    assert "1.2.9" in changes({odd_lib: "1.2.9"}, "exact")
    assert "1.3" in changes({odd_lib: "1.3.0"}, "minor")


def test_a_library_that_is_not_there() -> None:
    wanted = {"numpy": "1.0", "no-such-library": "1.0"}
    modules = ("numpy.linalg", "no_such_library.part")
    said = missing_library(wanted, library_versions(wanted), modules)
    assert "lacks no_such_library.part)" in said
    for part in ("no-such-library 1.0", sys.executable, socket.gethostname(), "python", "prologue"):
        assert part in said
    assert missing_library({"numpy": "1.0"}, library_versions(["numpy"])) == ""


def test_another_interpreter() -> None:
    assert interpreter_changes({"python": list(sys.version_info[:2])}) == ""
    said = interpreter_changes({"python": [3, 1]})
    for part in ("Python 3.1,", platform.python_version(), sys.executable, socket.gethostname()):
        assert part in said


def test_what_cannot_be_imported_is_named() -> None:
    for error in (ModuleNotFoundError("No module named 'a.b'", name="a.b"), ImportError("libx.so")):
        said = missing_module(error)
        assert ("a.b" if error.name else "libx.so") in said
        assert sys.executable in said


def test_an_input_has_failed_only_if_its_latest_attempt_has(tmp_path: Path) -> None:
    cache, key = Cache(tmp_path / "cache"), "ab" * 32
    run = Run("one", Owner.current(), "local", 1.0, (("f-one-0", key),))
    claims = Claims(cache)
    claims.begin(run)
    claims.claim(key, run)
    assert failed_input(cache, key, None) is None
    assert failed_input(cache, key, 0) is None
    attempts.end(cache, key, 0, {"outcome": "timeout", "message": "too slow", "function": "f"})
    failed = failed_input(cache, key, 0)
    assert failed is not None
    assert failed.key == key
    assert "too slow" in failed.message
    claims.claim(key, run, after=0)
    assert failed_input(cache, key, 0) is None
    attempts.end(cache, key, 1, {"outcome": "dependency", "message": "m", "root": "cd" * 32})
    failed = failed_input(cache, key, 0)
    assert failed is not None
    assert failed.key == "cd" * 32
