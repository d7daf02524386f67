"""Where long-lived workers find their client: a file of the cache, ``workers/<pool>.json``.

It names a socket and holds the secret by which the two know each other. So who may work for a
client, or be its client, is who may read its cache. The file is removed when the client needs no
workers any more; what a client that was killed has left is removed by the next one.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from dask_batch.cache.opening import read_owned
from dask_batch.cache.owner import Owner
from dask_batch.errors import DamagedEntryError

__all__ = ["POOL", "Meeting", "meeting_directory", "pool_name"]

_SECTION = "workers"

POOL: Final = r"workers-[0-9a-f]{12}"
"""What the workers of a client are called together, as a pattern: see :func:`pool_name`."""


def pool_name() -> str:
    """Return a new name for the workers of a client."""
    return f"workers-{secrets.token_hex(6)}"


def meeting_directory(cache: Path) -> Path:
    """Return where the files of a cache's workers are."""
    return cache / _SECTION


@dataclass(frozen=True, slots=True)
class Meeting:
    """A place at which a client waits for its workers.

    Attributes
    ----------
    addresses
        Paths of sockets of this machine, or pairs of a host and a port: to be tried in turn.
    secret
        Random, in hex: who does not know it is not let in.
    initial
        Whether a definition lies beside the file, with what a worker begins with.
    owner
        The client.
    ranks
        How many MPI ranks each worker has, and what each, as in a task's definition; None: it is
        one plain process.
    """

    addresses: tuple[str | tuple[str, int], ...]
    secret: str = field(repr=False)
    initial: bool
    owner: Owner
    ranks: Mapping[str, Any] | None = None

    def text(self) -> bytes:
        """Return the content of the file."""
        return json.dumps(asdict(self)).encode("ascii")

    @classmethod
    def read(cls, path: Path) -> Meeting:
        """Read a file that is ours and that nobody else may write.

        Raises
        ------
        FileNotFoundError
            There is none: the client has gone, or needs no workers any more.
        CacheError
            It cannot be read; or, a DamagedEntryError, is not what a client has written.
        """
        try:
            said = json.loads(read_owned(path))
            addresses = (
                one if isinstance(one, str) else (str(one[0]), int(one[1]))
                for one in said["addresses"]
            )
            return cls(
                tuple(addresses),
                str(said["secret"]),
                bool(said["initial"]),
                Owner(**said["owner"]),
                said.get("ranks"),
            )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DamagedEntryError(f"{path} is not what a client has written: {error}") from error
