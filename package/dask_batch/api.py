"""What executorlib has in its ``api`` for other packages, as far as it has a meaning here.

Its sockets between a client and its workers have none: jobs and clients meet in files. Their names
are refused with what to use in their place.
"""

from __future__ import annotations

import operator
import queue
from typing import Any, ClassVar, Final, NoReturn

from dask_batch.errors import TaskError
from dask_batch.executor import BatchExecutor

__all__ = [
    "ExecutorlibSocketError",
    "TestClusterExecutor",
    "cancel_items_in_queue",
    "cloudpickle_register",
]

ExecutorlibSocketError = TaskError
"""What is raised where a job has ended without a result, by whatever it died of."""


class TestClusterExecutor(BatchExecutor):
    """An executor like those of clusters, on this machine: for tests where there is no cluster.

    Its calls are jobs of the local queue, with the same files, names and errors as on a cluster.
    """

    __test__ = False  # its name is not that of a test

    backend: ClassVar[str] = "local"


def cancel_items_in_queue(que: queue.Queue[Any]) -> None:
    """Cancel the calls that wait in a queue.

    Parameters
    ----------
    que
        As in ``executor.future_queue``; it is empty afterwards.
    """
    while True:
        try:
            waiting = que.get_nowait()
        except queue.Empty:
            return
        if isinstance(waiting, dict) and "future" in waiting:
            waiting["future"].cancel()
        que.task_done()


def cloudpickle_register(ind: int = 2) -> None:
    """Do what has been done already: the caller's module travels by value.

    All code of the user's own does; what is installed is imported in the job.

    Parameters
    ----------
    ind
        How far up the stack the caller is.
    """
    operator.index(ind)


_SOCKETS: Final = (
    "jobs and clients meet in files here, not on sockets, so there is nothing to connect: submit "
    "the call to an executor, as dask_batch.SingleNodeExecutor"
)
_REFUSED: Final = {
    "MpiExecSpawner": "executors start MPI ranks themselves: resource_dict={'cores': n}",
    "SocketInterface": _SOCKETS,
    "SubprocessSpawner": "executors start processes themselves: dask_batch.SingleNodeExecutor",
    "get_command_path": "jobs run the module dask_batch.job, and no script of its own",
    "interface_bootup": _SOCKETS,
    "interface_connect": _SOCKETS,
    "interface_receive": _SOCKETS,
    "interface_send": _SOCKETS,
    "interface_shutdown": _SOCKETS,
}


def __getattr__(name: str) -> NoReturn:
    if name in _REFUSED:
        # An AttributeError would lose its words in "from dask_batch.api import ...".
        raise ImportError(f"dask_batch.api has no {name}: {_REFUSED[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
