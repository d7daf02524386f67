"""Python objects between ranks: pickled once, their buffers sent as they are, in pieces.

A count of bytes in MPI before version 4 is a C ``int``, so nothing is sent whole that could be
larger. What is unpickled here was pickled by a rank of the same task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dask_batch.code import pickling
from dask_batch.code.pickling import Pickled

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["UnreadableError", "broadcast_bytes", "broadcast_object", "gather_objects"]

_PIECE = 1 << 30


def broadcast_bytes(comm: MPI.Comm, parts: Sequence[Any] | None) -> list[memoryview]:
    """Return the byte strings that rank 0 has; the others give None."""
    sizes = comm.bcast([memoryview(part).nbytes for part in parts] if parts is not None else None)
    there = [bytearray(size) for size in sizes] if parts is None else parts
    views = [memoryview(part).cast("B") for part in there]
    for view in views:
        for start in range(0, len(view), _PIECE):
            comm.Bcast(view[start : start + _PIECE])
    return views


def broadcast_object(comm: MPI.Comm, value: Any = None) -> Any:
    """Return the object that rank 0 gives."""
    if comm.rank == 0:
        pickled = pickling.dumps(value, where="an input")
        broadcast_bytes(comm, [pickled.data, *pickled.buffers])
        return value
    data, *buffers = broadcast_bytes(comm, None)
    return pickling.loads(data, buffers)


class UnreadableError(Exception):
    """What a rank gave cannot be unpickled; ``__cause__`` says why."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"the result of rank {rank} cannot be unpickled")


def gather_objects(comm: MPI.Comm, value: Any, pickled: Pickled | None) -> list[Any]:
    """Return, at rank 0, what each rank gives, in their order; an empty list elsewhere.

    Parameters
    ----------
    comm
        All ranks.
    value, pickled
        The object, and its pickle; rank 0 needs none.

    Raises
    ------
    UnreadableError
        At rank 0.
    """
    if comm.rank:
        assert pickled is not None
        whole: list[Any] = [pickled.data, *pickled.buffers]
        parts = [memoryview(part).cast("B") for part in whole]
        comm.gather([len(part) for part in parts])
        for part in parts:
            for start in range(0, len(part), _PIECE):
                comm.Send(part[start : start + _PIECE], 0)
        return []
    sizes = comm.gather(None)
    assert sizes is not None
    return [value, *(_received(comm, rank, sizes[rank]) for rank in range(1, comm.size))]


def _received(comm: MPI.Comm, rank: int, sizes: Sequence[int]) -> Any:
    parts = [bytearray(size) for size in sizes]
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), _PIECE):
            comm.Recv(view[start : start + _PIECE], rank)
    data, *buffers = parts
    try:
        return pickling.loads(data, buffers)
    except BaseException as error:  # what a class does to be made again may raise anything
        raise UnreadableError(rank) from error
