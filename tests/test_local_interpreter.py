"""Where processes of the local queue find this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dask_batch
from dask_batch.backends.local.interpreter import package_environment

ROOT = Path(dask_batch.__file__).resolve().parent.parent


def test_the_clients_copy_is_found_before_any_other_and_after_what_is_the_users(
    tmp_path: Path, monkeypatch
) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    (mine / "numbers").mkdir(parents=True)
    (other / "dask_batch").mkdir(parents=True)
    (other / "dask_batch" / "__init__.py").touch()
    monkeypatch.setattr("site.getsitepackages", list)
    given = {"PYTHONPATH": f"{mine}:{other}"}
    environment = {**os.environ, **package_environment(given)}
    assert environment["PYTHONPATH"] == f"{mine}:{ROOT}:{other}"
    argv = [sys.executable, "-P", "-c", "import dask_batch; print(dask_batch.__file__)"]
    found = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).resolve().parent.parent == ROOT


def test_what_is_installed_is_not_named(monkeypatch) -> None:
    monkeypatch.setattr("site.getsitepackages", lambda: [str(ROOT)])
    assert package_environment({"HOME": "/h"}) == {"HOME": "/h"}
