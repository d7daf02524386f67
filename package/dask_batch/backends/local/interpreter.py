"""Environments in which a new interpreter finds this package where this process has found it."""

from __future__ import annotations

import os
import site
from collections.abc import Mapping
from pathlib import Path

import dask_batch

__all__ = ["package_environment"]


def package_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment that leads to this package, from any directory.

    An installed package is found anyway. One that is not (a source tree on ``sys.path``) is named
    in ``PYTHONPATH``: last, but before any other copy of it.
    """
    changed = dict(environment)
    given = environment.get("PYTHONPATH", "").split(os.pathsep)
    folders = [os.path.abspath(entry) for entry in given if entry]
    root = str(Path(dask_batch.__file__).resolve().parent.parent)
    installed = [os.path.realpath(folder) for folder in site.getsitepackages()]
    installed.append(os.path.realpath(site.getusersitepackages()))
    if root not in installed and root not in map(os.path.realpath, folders):
        copies = (i for i, folder in enumerate(folders) if (Path(folder) / "dask_batch").is_dir())
        folders.insert(next(copies, len(folders)), root)
    if folders:
        changed["PYTHONPATH"] = os.pathsep.join(folders)
    return changed
