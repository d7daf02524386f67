"""What a job compares before it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from dask_batch.job.checks import library_changes


@pytest.fixture
def odd_lib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install a library without a distribution, whose name is not a normalised one."""
    site = tmp_path / "site-packages"
    site.mkdir()
    (site / "odd_lib_of_ours.py").write_text("__version__ = '1.2.3'\n")
    monkeypatch.syspath_prepend(site)
    return "odd-lib-of-ours"


def test_a_library_without_a_distribution(odd_lib: str) -> None:
    assert library_changes({odd_lib: "1.2.9"}, "minor") == ""
    assert "1.2.9" in library_changes({odd_lib: "1.2.9"}, "exact")
    assert "1.3" in library_changes({odd_lib: "1.3.0"}, "minor")


def test_a_library_that_is_not_there() -> None:
    assert "not installed" in library_changes({"no-such-library": "1.0"}, "none")
