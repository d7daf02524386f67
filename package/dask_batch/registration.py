"""The name ``"batch"`` among Dask's schedulers, and our section in its configuration.

Dask is not imported for it: where it is loaded already the name is entered at once, else as soon
as something loads it. A job that never uses Dask never pays for it.

This is the first thing that a job imports: ``importlib.abc`` would bring much of the standard
library along, before the job can keep stray files off its path.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

__all__ = ["register"]

_SCHEDULERS = "dask.base"


def register() -> None:
    """Enter the scheduler's name now, or when Dask is imported."""
    module = sys.modules.get(_SCHEDULERS)
    if module is not None and hasattr(module, "named_schedulers"):
        _enter(module)
    elif not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


def _enter(module: ModuleType) -> None:
    module.named_schedulers["batch"] = _get
    from dask_batch.job.surroundings import inside_job

    if not inside_job():
        from dask_batch.configuration.settings import register_defaults

        register_defaults()


def _get(dsk: Any, keys: Any, **kwargs: Any) -> Any:
    """Dask's scheduler ``"batch"``: :func:`dask_batch.get.cluster_get`, loaded when it is used."""
    from dask_batch.get import cluster_get

    return cluster_get(dsk, keys, **kwargs)


class _Watcher:
    """Waits for the import of Dask's schedulers, and then gets out of the way."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _SCHEDULERS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = _Loader(spec.loader)
            spec.loader = loader
        return spec


class _Loader:
    """Loads a module as its own loader does, then enters our name."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        _enter(module)
