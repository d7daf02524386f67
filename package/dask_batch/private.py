"""A cache for one executor alone: results live in it until they are fetched or the process ends.

An executor whose user names no cache directory keeps nothing, and runs every call. Its jobs and its
client meet in a folder all the same, which is removed with the executor. Values that were not
fetched by then go into the futures that still stand for them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dask_batch.backends.within.extent import spans_machines
from dask_batch.backends.within.place import is_over, this_place
from dask_batch.cache.filesystem import why_not_shared
from dask_batch.cache.owner import Owner
from dask_batch.configuration.config import default_cache_directory
from dask_batch.configuration.options import Options
from dask_batch.errors import ConfigurationError
from dask_batch.job.lifeline import OWNER_FILE, PRIVATE_PREFIX

__all__ = ["PrivateCache", "shared_place", "unnamed"]

logger = logging.getLogger(__name__)


def shared_place() -> Path:
    """Return a folder of this user's that other nodes see as well, as far as can be told.

    Raises
    ------
    ConfigurationError
        There is none.
    """
    tried = []
    for folder in (Path.cwd(), Path.home()):
        why = why_not_shared(folder) or ("" if os.access(folder, os.W_OK) else "it is read-only")
        if not why:
            return folder
        tried.append(f"not {folder}: {why}")
    raise ConfigurationError(
        "there is no folder for results that all nodes of the allocation see "
        f"({'; '.join(tried)}): name one, cache_directory=..."
    )


def unnamed(
    options: Options, cache_directory: object, resource_dict: Mapping[str, Any] | None
) -> bool:
    """Whether nobody has named a cache directory: no parameter, no resource, no setting."""
    said = (cache_directory, (resource_dict or {}).get("cache_directory"))
    return said == (None, None) and options.cache_directory == default_cache_directory()


class PrivateCache:
    """A folder that is removed with its owner.

    Parameters
    ----------
    place
        Where to make it; None: where this machine has its temporary files.

    Attributes
    ----------
    path
        The cache directory.

    Notes
    -----
    Who owns it has it removed at the end of the process: nothing else knows when its jobs are over.
    What is left all the same, the next one sweeps away.
    """

    def __init__(self, place: Path | None = None) -> None:
        base = Path(tempfile.gettempdir()) if place is None else place
        _sweep(base)
        folder = Path(tempfile.mkdtemp(prefix=PRIVATE_PREFIX, dir=base))
        owner = {**dataclasses.asdict(Owner.current()), "place": this_place()}
        (folder / OWNER_FILE).write_text(json.dumps(owner))
        self.path = folder / "cache"
        self._futures: weakref.WeakSet[Any] = weakref.WeakSet()
        # A forked child leaves it alone.
        self._remover = weakref.finalize(self, _remove, folder, os.getpid())
        self._remover.atexit = False  # its jobs are waited for first: see the engine

    @classmethod
    def where(cls, backend: str) -> PrivateCache:
        """Make one that all jobs of a backend see.

        Raises
        ------
        ConfigurationError
            No folder is known that they all see.
        """
        return cls(shared_place() if spans_machines(backend) else None)

    def options(self, options: Options) -> Options:
        """Return options as they are for who keeps nothing: every call runs, unless told otherwise.

        No steward: who would look after jobs without a client has lost their cache with it.
        """
        return dataclasses.replace(
            options,
            cache_directory=self.path,
            resource_dict={"cache": False, **options.resource_dict},
            steward=False,
        )

    def serve(self, futures: Iterable[Any]) -> None:
        """Take note of futures whose values are to outlive the folder."""
        self._futures.update(futures)

    def remove(self) -> None:
        """Fetch what futures still stand for, and remove the folder."""
        if not self._remover.alive:
            return
        for future in list(self._futures):
            if future.done() and not future.cancelled() and future.exception() is None:
                try:
                    future.result()
                except Exception as error:  # told again to whoever asks for the value
                    logger.warning("a result cannot be kept: %s", error)
        if (detached := self._remover.detach()) is not None:  # late in a process it does nothing
            _, remove, args, _ = detached
            remove(*args)


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(base: Path) -> None:
    """Remove what clients of this user have left that are known to have ended."""
    for folder in base.glob(f"{PRIVATE_PREFIX}*"):
        try:
            if folder.stat().st_uid != os.getuid():
                continue
            record = json.loads((folder / OWNER_FILE).read_text())
            place = str(record.pop("place", ""))
            if _has_ended(Owner(**record), place):
                shutil.rmtree(folder, ignore_errors=True)
        except (
            OSError,
            ValueError,
            TypeError,
            AttributeError,
        ):  # it is being made, or removed, just now
            continue


def _has_ended(owner: Owner, place: str) -> bool:
    """Whether a client is known to have ended: by its machine, or with the job that it was in."""
    alive = owner.alive()
    return alive is False or (alive is None and bool(is_over(place)))
