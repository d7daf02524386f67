"""Dask's readers: what their functions and arguments say together about files."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from dask_batch.graph.handlers.choice import Shaper

__all__ = ["files_of_call", "without_sample"]

_HOLDERS: Final = frozenset({"ParquetFunctionWrapper", "ORCFunctionWrapper"})
"""Readers that hold their file system; the others get it as an argument."""


def files_of_call(function: Any, arguments: Any, shaper: Shaper) -> list[Any] | None:
    """Return the files that a call of a reader reads; None if it is no reader.

    The readers of parquet and ORC get a file system and paths apart from each other.
    """
    while isinstance(function, functools.partial):
        arguments = (function.args, function.keywords, arguments)
        function = function.func
    filesystem = None
    if type(function).__name__ in _HOLDERS and _is_dasks(type(function)):
        filesystem = function.fs
    elif "read" in getattr(function, "__name__", "") and _is_dasks(function):
        filesystem = next(_file_systems(arguments), None)
    if filesystem is None:
        return None
    return [shaper.remote_file(filesystem, path) for path in dict.fromkeys(_paths(arguments))]


def _is_dasks(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).partition(".")[0] == "dask"


def _file_systems(obj: Any) -> Iterator[Any]:
    for member in _members(obj):
        if any(
            base.__name__ in ("AbstractFileSystem", "FileSystem") for base in type(member).__mro__
        ):
            yield member
        else:
            yield from _file_systems(member)


def _paths(obj: Any) -> Iterator[str]:
    """Yield the strings that look like paths."""
    for member in _members(obj):
        if not isinstance(member, str):
            yield from _paths(member)
        elif "/" in member:
            yield member


def _members(obj: Any) -> Iterator[Any]:
    """Yield the members of a container; of a ``piece`` of parquet, the path alone."""
    if isinstance(obj, Mapping):
        piece = obj.get("piece")
        yield from (piece[:1] if isinstance(piece, tuple) else obj.values())
    elif isinstance(obj, list | tuple):
        yield from obj


def without_sample(function: Any, keywords: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave the first rows out of what ``read_csv`` gives every partition.

    They are a sample of the first file, there for names and dtypes: with them, an edit of the
    first file would be one of all.
    """
    head = keywords.get("head")
    if getattr(function, "__module__", None) != "dask.dataframe.io.csv" or head is None:
        return keywords
    return {**keywords, "head": head.iloc[:0]}
