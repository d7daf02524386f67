"""Tasks that write into the world outside, and those that cannot do so from a job.

What a writer wrote is not its result, so a result in a cache says nothing about it: a writer runs
on every compute. Writers are known by their functions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from dask_batch.errors import GraphError
from dask_batch.spec import Build, Call, Expression, Let, Task, references

__all__ = ["after_writing", "check_writers", "is_writer", "let_go", "writes"]

_STORE: Final = ("dask.array.core", "load_store_chunk")
_WRITERS: Final = frozenset(
    {
        _STORE,
        ("dask.array.core", "store_chunk"),
        ("dask.bag.avro", "_write_avro_part"),
        ("dask.bag.core", "_to_textfiles_chunk"),
        ("dask.dataframe.io.csv", "_write_csv"),
        ("dask.dataframe.io.hdf", "_pd_to_hdf"),
        ("dask.dataframe.io.json", "write_json_partition"),
        ("dask.dataframe.io.orc.arrow", "ArrowORCEngine.write_partition"),
        ("dask.dataframe.io.parquet.core", "ToParquetFunctionWrapper"),
        ("dask.dataframe.io.sql", "_to_sql_chunk"),
        ("numpy", "save"),
    }
)
_APPLY: Final = ("dask.utils", "apply")
_SHARED_FILE: Final = frozenset({"NetCDF4ArrayWrapper", "H5NetCDFArrayWrapper"})
_CLIENT_MEMORY: Final = frozenset({"MemoryStore", "GpuMemoryStore", "ScipyArrayWrapper"})


def _identity(function: Any) -> tuple[str, str]:
    """Name a function, what a partial wraps, or the class of a callable object."""
    while isinstance(function, partial):
        function = function.func
    if not hasattr(function, "__qualname__"):
        function = type(function)
    return str(getattr(function, "__module__", "")), str(function.__qualname__)


def is_writer(function: Any) -> bool:
    """Whether a function is one by which Dask or xarray write."""
    return _identity(function) in _WRITERS


def writes(body: Expression) -> bool:
    """Whether an expression calls a writer."""
    return any(_writes(call) for call in _calls(body))


def _writes(call: Call) -> bool:
    if _identity(call.function) == _APPLY and call.args:
        return is_writer(call.args[0])
    return is_writer(call.function)


def _calls(body: Expression) -> Iterator[Call]:
    if isinstance(body, Call):
        yield body
        for argument in (*body.args, *body.kwargs.values()):
            yield from _calls(argument)
    elif isinstance(body, Build):
        for item in body.items:
            yield from _calls(item)
    elif isinstance(body, Let):
        for _, bound in body.bindings:
            yield from _calls(bound)
        yield from _calls(body.result)


def check_writers(tasks: Iterable[Task]) -> None:
    """Refuse tasks that would write into the client's memory, or many into one file.

    Raises
    ------
    GraphError
        It names the task and says what to do instead.
    """
    shared: dict[str, list[Task]] = defaultdict(list)
    for task, target in _targets(tasks):
        _check_target(task, target)
        if type(target).__name__ in _SHARED_FILE:
            shared[_file_of(target)].append(task)
    for file, writers in shared.items():
        if len(writers) > 1:
            raise GraphError(
                f"{len(writers)} tasks, {writers[0].name!r} among them, would write into the one "
                f"file {file} at the same time. Write a zarr store instead (to_zarr), or one file "
                f"for each part (xarray.save_mfdataset with one chunk in each), or compute first "
                f"and write the result here"
            )


def _targets(tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
    """Yield what arrays are stored into, with the tasks that do so."""
    for task in tasks:
        if not task.writes:
            continue
        for call in _calls(task.expression):
            if _identity(call.function) == _STORE:
                yield task, call.args[1] if len(call.args) > 1 else call.kwargs.get("out")


def after_writing(tasks: Mapping[Hashable, Task]) -> set[Hashable]:
    """Return the names of the tasks that write, and of those that come after one that does.

    Parameters
    ----------
    tasks
        A graph, each task after those it refers to.
    """
    found: set[Hashable] = set()
    for name, task in tasks.items():
        if task.writes or not found.isdisjoint(references(task.expression)):
            found.add(name)
    return found


def let_go(tasks: Iterable[Task]) -> None:
    """Close the netCDF files that xarray has begun here and that jobs are to go on with.

    HDF5 lets one process at a time write. xarray opens a file again where it needs it, and with
    ``autoclose`` (as it does itself under ``dask.distributed``) the job closes what it has written.
    """
    for _, target in _targets(tasks):
        if type(target).__name__ in _SHARED_FILE:
            target.datastore.autoclose = True
            target.datastore.close()


def _check_target(task: Task, target: Any) -> None:
    kind = type(target)
    store = getattr(target, "store", None)
    where = None
    if kind.__name__ == "ndarray" or kind.__name__ == "memmap":
        where = f"a NumPy {kind.__name__}"
    elif kind.__name__ in _CLIENT_MEMORY:
        where = f"a {kind.__name__}, which is written when it is closed"
    elif isinstance(store, dict) or type(store).__name__ in _CLIENT_MEMORY:
        where = f"a {type(store).__name__}"
    elif kind.__module__.partition(".")[0] == "h5py":
        raise GraphError(
            f"the task {task.name!r} would write into the HDF5 file {_file_of(target)}, which this "
            f"process holds open. Write a zarr store instead (to_zarr), or compute first"
        )
    if where is not None:
        raise GraphError(
            f"the task {task.name!r} would write into the memory of this process ({where}), which "
            f"a job cannot reach. Store into a zarr array on a shared file system, or compute the "
            f"result and assign it"
        )


def _file_of(target: Any) -> str:
    """Name the file behind an open dataset of h5py, or of a netCDF library."""
    for path in (("file", "filename"), ("datastore", "_filename"), ("datastore", "_manager")):
        found = target
        for attribute in path:
            found = getattr(found, attribute, None)
        if found is not None:
            return str(found)
    return repr(target)
