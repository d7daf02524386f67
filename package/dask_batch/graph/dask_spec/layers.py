"""What the high-level layers of a graph know about its tasks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

__all__ = ["annotated_keys", "delayed_keys"]


def annotated_keys(layers: Mapping[Hashable, Any]) -> dict[Hashable, dict[str, Any]]:
    """Give the annotations of each task of an annotated layer, callables called with its key."""
    found: dict[Hashable, dict[str, Any]] = {}
    for layer in layers.values():
        if layer.annotations:
            for key in layer.get_output_keys():
                found[key] = {
                    name: value(key) if callable(value) else value
                    for name, value in layer.annotations.items()
                }
    return found


def delayed_keys(layers: Mapping[Hashable, Any]) -> set[Hashable]:
    """Find the tasks that are delayed calls.

    Each has a layer to itself, named by its key; the tasks of collections never do.
    """
    return {
        name
        for name, layer in layers.items()
        if type(layer).__name__ == "MaterializedLayer" and len(layer) == 1 and name in layer
    }
