"""The batch systems behind one protocol: see :mod:`dask_batch.backends.base`."""

from __future__ import annotations

from dask_batch.backends.registry import choose_backend, open_backend

__all__ = ["choose_backend", "open_backend"]
