"""The local queue: a batch system for one user on one machine, without a daemon to install.

Notes
-----
::

    client ── LocalBackend ──socket── queue (server) ──socketpair── nursery ──fork── job

The queue is one detached process that decides what runs (:mod:`.queue`, pure) and never starts a
job itself: that is left to worker parents (:mod:`.nursery`), of which there is one for each kind
of job, warm with everything imported.
"""

from __future__ import annotations

from dask_batch.backends.local.backend import LocalBackend
from dask_batch.backends.local.control import LocalJob, local_jobs, stop_local_queue

__all__ = ["LocalBackend", "LocalJob", "local_jobs", "stop_local_queue"]
