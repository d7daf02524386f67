"""The sessions of one executor: one for each cache that its calls are kept in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dask_batch.configuration.options import Options
from dask_batch.configuration.resources import task_options
from dask_batch.errors import ResourceError
from dask_batch.session import Session, open_session

__all__ = ["Sessions"]


class Sessions:
    """Opens a session when a call first asks for its cache.

    Parameters
    ----------
    options
        The executor's; the session of their cache is open at once.
    elsewhere
        Those of calls that name another cache; None: the same.

    Attributes
    ----------
    ended
        Called when nothing is under way any more in any of them, perhaps more than once.
    """

    def __init__(self, options: Options, elsewhere: Options | None = None) -> None:
        self.ended: Callable[[], None] = lambda: None
        self.main = open_session(options)
        self._by_cache = {options.cache_directory: self.main}
        self._options = options
        self._elsewhere = elsewhere or options

    def of(self, resource_dict: Mapping[str, Any]) -> Session:
        """Return the session for a call with these resources.

        Raises
        ------
        ResourceError, CacheError
            About its ``cache_directory``.
        """
        directory = resource_dict.get("cache_directory")
        if directory is None:
            return self.main
        path = Path(str(task_options({"cache_directory": directory}).cache_directory))
        if path not in self._by_cache and self._options.block_allocation:
            raise ResourceError(
                f"cache_directory={str(path)!r}: the workers of this executor are those of its own "
                "cache; create another executor for another one"
            )
        if path not in self._by_cache:
            session = open_session(replace(self._elsewhere, cache_directory=path))
            session.engine.ended = self._one_ended
            self._by_cache[path] = session
        return self._by_cache[path]

    def outlast(self, ended: Callable[[], None]) -> None:
        """Have this process wait at its end for what is under way; then, call ``ended``."""
        self.ended = ended
        self.main.engine.outlasts = True
        self.main.engine.ended = self._one_ended

    def _one_ended(self) -> None:
        if all(session.idle() for session in list(self._by_cache.values())):
            self.ended()

    def close(self, *, wait: bool, cancel: bool) -> None:
        """End all as ``executor.shutdown`` says."""
        for session in list(self._by_cache.values()):
            session.close(wait=wait, cancel=cancel)

    def let_go(self) -> None:
        """Take nothing more; what is under way goes on."""
        for session in self._by_cache.values():
            session.engine.close()
