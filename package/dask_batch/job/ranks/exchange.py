"""The directory through which a leader and its ranks talk: ``ranks/<key>.<generation>/``.

The leader leaves an order, each rank a sign that it has begun, and one that has failed a record of
how. Each is a file of its own that appears whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask_batch.cache.files import make_directory, publish_bytes
from dask_batch.cache.records import read_record, seal
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError, DamagedEntryError
from dask_batch.job.endings import EndedError

__all__ = ["Exchange", "exchange_path"]

_ORDER = "order.json"
_BEGUN = "begun-"
_FAILED = "failed-"
_DONE = "done-"


def exchange_path(cache: Cache, key: str, generation: int) -> Path:
    """Return where the ranks of an attempt and their leader talk."""
    cache.path_of(key)  # refuses what is no key
    return cache.path / "ranks" / f"{key}.{generation}"


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a leader and its ranks have told each other."""

    path: Path

    # ---- the leader's side -----------------------------------------------------------------

    @classmethod
    def begin(cls, path: Path, order: Mapping[str, Any]) -> Exchange:
        """Make the directory anew, with an order in it.

        Raises
        ------
        CacheError
            It cannot be written.
        """
        exchange = cls(path)
        exchange.remove()
        make_directory(path)
        publish_bytes(path / _ORDER, seal(order), durable=False)
        return exchange

    def begun(self) -> list[dict[str, Any]]:
        """Return what the ranks have said when they began."""
        return list(self._records(_BEGUN))

    def failures(self) -> list[dict[str, Any]]:
        """Return the records of ranks that have failed, the earliest first."""
        return sorted(self._records(_FAILED), key=lambda record: record["time"])

    def done(self) -> bool:
        """Return whether the ranks, which stay, have done with the order."""
        return any(self._records(_DONE))

    def unclean(self) -> bool:
        """Return whether the ranks have done with the order, and must not have another one."""
        return any(record["unclean"] for record in self._records(_DONE))

    def remove(self) -> None:
        """Remove it, as far as the file system lets."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _records(self, prefix: str) -> Iterator[dict[str, Any]]:
        try:
            names = sorted(name for name in os.listdir(self.path) if name.startswith(prefix))
        except FileNotFoundError:
            return
        for name in names:
            # One that is there and cannot be read yet is there at the next look.
            with contextlib.suppress(FileNotFoundError, DamagedEntryError):
                yield read_record(self.path / name)

    # ---- a rank's side ---------------------------------------------------------------------

    def order(self) -> dict[str, Any]:
        """Return what the leader has ordered.

        Raises
        ------
        OSError, CacheError
            It cannot be read.
        """
        return read_record(self.path / _ORDER)

    def begin_rank(self, rank: int) -> None:
        """Say that a rank has begun, and in which step of the batch system."""
        self._say(_BEGUN, {"rank": rank, "step": os.environ.get("SLURM_STEP_ID", "")})

    def fail_rank(self, rank: int | None, ended: EndedError) -> None:
        """Say how a rank has failed; None where it does not know which it is."""
        record = {"rank": rank, "exit_code": ended.exit_code, "fields": ended.fields}
        with contextlib.suppress(CacheError):  # the leader is told by its exit code all the same
            self._say(_FAILED, record)

    def finish(self, *, unclean: bool = False) -> None:
        """Say that all ranks have done with the order, and whether it has left anything in them."""
        self._say(_DONE, {"unclean": unclean})

    def _say(self, prefix: str, record: Mapping[str, Any]) -> None:
        host, pid = socket.gethostname(), os.getpid()
        record = {**record, "time": time.time(), "host": host, "pid": pid}
        publish_bytes(self.path / f"{prefix}{host}-{pid}.json", seal(record), durable=False)
