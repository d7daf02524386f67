"""What makes a process a warm parent: its imports, and the signs that they no longer hold."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable

__all__ = ["installation_of", "warm_up"]

_WARM_MODULES = ("numpy", "h5py", "cloudpickle", "xxhash")


def _thread_count() -> int:
    """Count this process's threads, those started by libraries in C included."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        import threading

        return threading.active_count()


def installation_of(folders: Iterable[str]) -> dict[str, int]:
    """Return when the folders that installers write to have changed last.

    What is imported here stays as it was. Once something has been installed, a new process might
    import something else, and so a job must not be forked from this one.
    """
    stamps = {}
    for folder in folders:
        if folder.rstrip("/").endswith(("site-packages", "dist-packages")):
            try:
                stamps[folder] = os.stat(folder).st_mtime_ns
            except OSError:  # named, but not there
                stamps[folder] = 0
    return stamps


def warm_up(preload: list[str], entry: str) -> str:
    """Import what jobs will need; say why this process must not fork, if so."""
    for name in (*_WARM_MODULES, entry.partition(":")[0]):
        importlib.import_module(name)
    for name in preload:
        try:
            importlib.import_module(name)
        except Exception as error:  # a hint only: the job meets the error itself, if it imports it
            sys.stderr.write(f"{name} is not preloaded: {error!r}\n")
    threads = _thread_count()
    return f"it has {threads} threads after its imports" if threads > 1 else ""
