"""Functions that run as several MPI ranks."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def calc(i: int) -> tuple[int, int, int]:
    from mpi4py import MPI

    return i, MPI.COMM_WORLD.Get_size(), MPI.COMM_WORLD.Get_rank()


def split_into_groups(size: int) -> dict[str, int]:
    """Split the ranks into groups, and add up within each."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    color = comm.Get_rank() // size
    group = comm.Split(color)
    total = group.allreduce(comm.Get_rank())
    return {"color": color, "rank": group.Get_rank(), "size": group.Get_size(), "total": total}


def reads(array: Any, folder: Path) -> tuple[float, bool]:
    """Return what a rank can compute of a broadcast array, and whether it is its own to change."""
    from mpi4py import MPI

    array[0] = MPI.COMM_WORLD.Get_rank()
    return float(array.sum()), (folder / "inputs").exists()


def raises(at: int, folder: Path) -> None:
    """Raise at one rank while the others wait for it."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    (folder / f"pid.{comm.Get_rank()}").write_text(str(os.getpid()))
    comm.Barrier()
    if comm.Get_rank() == at:
        raise LookupError(f"rank {at} found nothing")
    comm.allreduce(1)


def leaves(at: int, how: str) -> None:
    """End one rank's process in some way, while the others wait for it; or MPI at all of them."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    comm.Barrier()
    if how == "finalize":
        MPI.Finalize()
        return
    if comm.Get_rank() == at:
        if how == "exit":
            os._exit(0)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
    comm.Barrier()
    time.sleep(1)


def unpicklable(at: int) -> Any:
    from mpi4py import MPI

    return (lambda: 0).__code__ if MPI.COMM_WORLD.Get_rank() != at else open(os.devnull)


class Once:
    """Can be pickled, and not be made again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def unreadable() -> Any:
    return Once()


def devices() -> tuple[int, str | None]:
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_rank(), os.environ.get("CUDA_VISIBLE_DEVICES")


def waits(folder: Path) -> None:
    from mpi4py import MPI

    rank = MPI.COMM_WORLD.Get_rank()
    (folder / f"pid.{rank}").write_text(str(os.getpid()))
    time.sleep(300)
