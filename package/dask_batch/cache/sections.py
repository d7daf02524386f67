"""What a cache directory holds, by name."""

from __future__ import annotations

from typing import Final

__all__ = ["MARKER", "SECTIONS"]

MARKER: Final = "dask-batch-cache.json"
"""The file that makes a directory a cache."""

SECTIONS: Final = (
    "results", "claims", "runs", "attempts", "definitions", "names", "logs", "checkpoints",
    "ranks", "damaged", "retired", "workers",
)  # fmt: skip
"""The folders in it, made when they are needed."""
