"""Hearing several workers at once, and their end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from multiprocessing.connection import wait
from typing import Any, Final, cast

from dask_batch.backends.workers.worker import Worker

__all__ = ["bid_farewell", "ready_of"]

_FAREWELL_S: Final = 10.0


def ready_of(ends: Iterable[Any], timeout_s: float) -> list[Any]:
    """Wait until one of some ends can be read."""
    return cast("list[Any]", wait(cast("Any", list(ends)), timeout_s))


def bid_farewell(workers: list[Worker]) -> None:
    """Wait a moment for workers to end; end those that do not."""
    for worker in workers:
        if worker.channel is None:
            worker.kill()
    until = time.monotonic() + _FAREWELL_S
    channels = {w.channel: w for w in workers if w.channel}
    while channels and (left_s := until - time.monotonic()) > 0:
        for channel in ready_of(channels, left_s):
            try:
                channel.receive()
            except EOFError:
                channels.pop(channel).channel = None
                channel.close()
    for channel, worker in channels.items():
        worker.kill()
        channel.close()
