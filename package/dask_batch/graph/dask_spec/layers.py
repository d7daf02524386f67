"""What the high-level layers of a graph know about its tasks."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

__all__ = ["annotated_keys", "delayed_keys"]


def annotated_keys(layers: Mapping[Hashable, Any]) -> dict[Hashable, dict[str, Any]]:
    """Give the annotations of each task of an annotated layer, callables called with its key."""
    found: dict[Hashable, dict[str, Any]] = {}
    for layer in layers.values():
        if layer.annotations:
            for key in layer.get_output_keys():
                found[key] = dict(_said(layer.annotations, key))
    return found


def _said(annotations: Mapping[str, Any], key: Hashable) -> Iterator[tuple[str, Any]]:
    for name, value in annotations.items():
        said = value(key) if callable(value) else value
        # Where Dask has made one layer of several, it marks what was not said of a task.
        if type(said).__name__ != "_AnnotationsTombstone":
            yield name, said


def delayed_keys(layers: Mapping[Hashable, Any]) -> set[Hashable]:
    """Find the tasks that are delayed calls.

    The layer of a delayed call is named by its key; the layers of collections never are. Calls
    that it has among its arguments, in a list for instance, may lie in the same layer. They have
    plain names, where the blocks of a collection have tuples.
    """
    return {
        key
        for name, layer in layers.items()
        if type(layer).__name__ == "MaterializedLayer" and name in layer
        for key in layer
        if not isinstance(key, tuple)
    }
