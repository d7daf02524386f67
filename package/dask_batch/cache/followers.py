"""Who waits for jobs that another client handed over, so that no client cancels them under it.

``runs/<run>.wanted.<token>`` names the keys of that run which one client has come to wait for. It
counts as long as the client lives, and is removed when none of its keys is wanted any more.
``runs/<run>.disowned.<token>`` names the keys that the owner of the run has cancelled while others
waited for them: the last of these that cancels ends the job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from dask_batch.cache.files import publish_bytes
from dask_batch.cache.owner import Owner
from dask_batch.cache.records import read_record, seal
from dask_batch.cache.store import Cache
from dask_batch.errors import DamagedEntryError

__all__ = ["Followers"]


class Followers:
    """What one client waits for of other clients' runs, and what they wait for of its own.

    Parameters
    ----------
    cache
        Where the runs are.

    Notes
    -----
    A client that begins to wait in the very moment in which the other one cancels comes too late:
    it is told that the task was cancelled.
    """

    def __init__(self, cache: Cache) -> None:
        self._folder = cache.path / "runs"
        self._token = secrets.token_hex(8)
        self._count = 0
        self._open: dict[str, tuple[Path, set[str]]] = {}

    def follow(self, run_id: str, keys: Collection[str]) -> None:
        """Record that this client waits for keys of a run that is not its own."""
        path = self._folder / f"{run_id}.wanted.{self._token}-{self._count}"
        self._count += 1
        record = {"owner": dataclasses.asdict(Owner.current()), "keys": sorted(keys)}
        publish_bytes(path, seal(record), durable=False)
        together = set(keys)
        self._open.update((key, (path, together)) for key in keys)

    def leave(self, key: str) -> None:
        """Wait for a key no more."""
        path, together = self._open.pop(key, (None, set()))
        together.discard(key)
        if path is not None and not together:
            path.unlink(missing_ok=True)

    def withdraw(self, keys: Iterable[str]) -> None:
        """Wait for some keys no more, and let that be seen at once."""
        paths: dict[Path, set[str]] = {}
        for key in keys:
            path, together = self._open.pop(key, (None, set()))
            together.discard(key)
            if path is not None:
                paths[path] = together
        for path, left in paths.items():
            if left:
                self.follow(path.name.partition(".wanted.")[0], left)
            path.unlink(missing_ok=True)

    def wanted(self, run_id: str) -> set[str]:
        """Return the keys of a run that other clients, which may be alive, wait for."""
        wanted: set[str] = set()
        for record in self._records(f"{run_id}.wanted."):
            if Owner(**record["owner"]).alive() is not False:
                wanted |= set(record["keys"])
        return wanted

    def disown(self, run_id: str, keys: Collection[str]) -> None:
        """Record that the owner of a run wants some of its keys no more."""
        path = self._folder / f"{run_id}.disowned.{self._token}-{self._count}"
        self._count += 1
        publish_bytes(path, seal({"keys": sorted(keys)}), durable=False)

    def disowned(self, run_id: str) -> set[str]:
        """Return the keys of a run that its owner wants no more."""
        return {key for r in self._records(f"{run_id}.disowned.") for key in r["keys"]}

    def _records(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Yield what other clients have written under names that begin alike."""
        for name in os.listdir(self._folder):
            if not name.startswith(prefix) or name.startswith(f"{prefix}{self._token}-"):
                continue
            # Gone in the meantime, or torn by a crash of the machine: nobody waits.
            with contextlib.suppress(FileNotFoundError, DamagedEntryError):
                yield read_record(self._folder / name)
