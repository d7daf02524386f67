"""Which results count as finished: those that are whole, and whose files are as they were left.

Two things outside the cache can make a result stale. A :class:`~dask_batch.File` that is *in* it
must still be what it was when the result was published, or the task runs again. A plain string
among the *arguments* may be the name of a file that was read, or of one that was to be written:
nobody knows, so a file of that name that is newer than the result is worth a warning, no more.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, Final

from dask_batch.cache.store import Cache
from dask_batch.errors import OutdatedInputWarning, warn
from dask_batch.graph.keys import Keyed
from dask_batch.inputs import named_files
from dask_batch.job.checks import file_changes
from dask_batch.spec import Build, Call, Expression, Let, Ref, Task, references

__all__ = ["Hits"]

logger = logging.getLogger("dask_batch")

_MOST_TASKS: Final = 10_000
_MOST_ARGUMENTS: Final = 1_000


class Hits:
    """Looks results up for one graph, and remembers when those that it found were made.

    Parameters
    ----------
    cache
        Where results are.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._created: dict[str, float] = {}

    def among(self, keys: Collection[str]) -> set[str]:
        """Return which of some keys have a result that counts; set stale ones aside."""
        return {key for key in self._cache.present(keys) if self._counts(key)}

    def _counts(self, key: str) -> bool:
        noted = self._cache.look(key)
        if noted is None:
            return False
        changed = file_changes(noted.get("files", ()))
        if changed:
            logger.info("the result %s holds a file, and %s: it runs again", key[:12], changed)
            self._cache.retire(key)
            return False
        self._created[key] = noted["created"]
        return True

    def warn_outdated(
        self, tasks: Mapping[Hashable, Task], keyed: Mapping[Hashable, Keyed]
    ) -> None:
        """Warn if a task that does not run again names a file that has changed since.

        Files are looked for in the arguments of what was found and of all that it rests on, up
        to a bound.
        """
        seen: set[Hashable] = set()
        for name in tasks:
            created = self._created.get(keyed[name].key)
            if created is None or name in seen:
                continue
            below = _below(name, tasks, seen)
            found = next(_newer(_arguments(below), created), None)
            if found is not None:
                _warn(found)
                return


def _warn(path: str) -> None:
    warn(
        f"a result was found whose arguments name {path!r}, which is newer than the result. If the "
        f"function reads that file, pass dask_batch.File({path!r}): the task then runs again when "
        "the file changes.",
        OutdatedInputWarning,
    )


def _below(root: Hashable, tasks: Mapping[Hashable, Task], seen: set[Hashable]) -> list[Task]:
    """List a task and those that it rests on, without those that have been seen."""
    found = []
    todo = [root]
    while todo and len(seen) < _MOST_TASKS:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        found.append(tasks[name])
        todo.extend(references(tasks[name].expression))
    return found


def _arguments(tasks: Sequence[Task]) -> list[Any]:
    """Collect what may be, or hold, a name among the arguments of tasks."""
    found: list[Any] = []
    for task in tasks:
        for literal in _literals(task.expression):
            if isinstance(literal, str | os.PathLike | list | tuple | dict | set | frozenset):
                found.append(literal)
                if len(found) >= _MOST_ARGUMENTS:
                    return found
    return found


def _literals(expression: Expression) -> Iterator[Any]:
    if isinstance(expression, Call):
        for argument in (*expression.args, *expression.kwargs.values()):
            yield from _literals(argument)
    elif isinstance(expression, Build):
        for item in expression.items:
            yield from _literals(item)
    elif isinstance(expression, Let):
        for _, bound in expression.bindings:
            yield from _literals(bound)
        yield from _literals(expression.result)
    elif not isinstance(expression, Ref):
        yield expression


def _newer(arguments: list[Any], created: float) -> Iterator[str]:
    """Yield the files that arguments name and that were written after a time."""
    for path in named_files(arguments):
        try:
            if os.stat(path).st_mtime > created:
                yield path
        except OSError:
            continue  # removed a moment ago
