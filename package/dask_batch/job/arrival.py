"""How a worker comes to its client: by the addresses that the meeting place names."""

from __future__ import annotations

import os
import random
import socket
import time
from typing import Final

from dask_batch.cache.meeting import Meeting
from dask_batch.job.channel import Channel, DroppedError, Message, StrangerError, connect, prove
from dask_batch.job.say import say

__all__ = ["arrive"]

_AGAIN_S: Final = 60.0
"""How long a worker tries to be let in whose client has no room for it."""
_BACKEND_IDS: Final = ("SLURM_STEP_ID", "SLURM_JOB_ID", "FLUX_JOB_ID")


def arrive(meeting: Meeting, number: int) -> Channel | None:
    """Connect to the client; again for a while, where it has no room at the moment."""
    until = time.monotonic() + _AGAIN_S
    while True:
        try:
            return _found(meeting, number)
        except DroppedError:
            if time.monotonic() >= until:
                return None
        time.sleep(random.uniform(0.5, 2.0))  # so that those who were sent away part


def _found(meeting: Meeting, number: int) -> Channel | None:
    """Connect to the client by the first of its addresses at which it is found.

    Raises
    ------
    DroppedError
        It was found nowhere, but somewhere somebody has broken off.
    """
    dropped: DroppedError | None = None
    for address in meeting.addresses:
        channel = None
        try:
            channel = connect(address)
            prove(channel, meeting.secret, client=False)
            channel.send({"worker": number, **_self()})
            return channel
        except (OSError, StrangerError) as error:
            say(f"its client is not to be found at {address}: {error}")
            if channel is not None:
                channel.close()
            if isinstance(error, DroppedError):
                dropped = error
    if dropped is not None:
        raise dropped
    return None


def _self() -> Message:
    """Tell which process this is."""
    ids = (os.environ[name] for name in _BACKEND_IDS if os.environ.get(name))
    return {"pid": os.getpid(), "host": socket.gethostname(), "job_id": next(ids, "")}
