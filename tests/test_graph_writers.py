"""Writers are known, run alone, and are refused where a job could not write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dask import delayed
from dask.utils_test import inc

from dask_batch.errors import GraphError
from dask_batch.graph.dask_spec import ingest, values
from dask_batch.graph.keys import Keys
from dask_batch.spec import evaluate
from graph_running import get

zarr = pytest.importorskip("zarr")


class Recording:
    """A scheduler that keeps, of each graph, how many tasks write and how many keys are kept."""

    def __init__(self) -> None:
        self.writers: list[int] = []
        self.stable: list[set[str]] = []

    def __call__(self, dsk: Any, keys: Any, **_: Any) -> Any:
        graph = ingest(dsk, keys)
        self.writers.append(sum(task.writes for task in graph.tasks.values()))
        found = Keys(nonce=f"run {len(self.stable)}").of(graph.tasks, graph.required)
        self.stable.append({k.key for k in found.values() if not k.ephemeral})
        assert all(found[n].ephemeral for n, task in graph.tasks.items() if task.writes)
        results: dict[Any, Any] = {}
        for name, task in graph.tasks.items():
            results[name] = evaluate(task.expression, results)
        return values(graph, results)


def frame() -> dd.DataFrame:
    rows = pd.DataFrame({"a": np.arange(8), "b": np.arange(8.0)})
    return dd.from_pandas(rows, npartitions=2).assign(c=1)


def text() -> db.Bag:
    return db.from_sequence(["a", "b"], npartitions=2).map(str.upper)


WRITERS = {
    "to_zarr": lambda path: (da.ones((4, 4), chunks=2) + 1).to_zarr(path / "z", overwrite=True),
    "to_parquet": lambda path: frame().to_parquet(path / "p"),
    "to_csv": lambda path: frame().to_csv(str(path / "c-*.csv")),
    "to_json": lambda path: frame().to_json(str(path / "j-*.json")),
    "to_textfiles": lambda path: text().to_textfiles(str(path / "t-*.txt")),
    "xarray to_zarr": lambda path: xr.Dataset({"t": ("x", da.ones(4, chunks=2) + 1)}).to_zarr(
        path / "x", mode="w"
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_always_runs_and_what_is_upstream_is_kept(name: str, tmp_path: Path) -> None:
    scheduler = Recording()
    with dask.config.set(scheduler=scheduler):
        WRITERS[name](tmp_path)
        WRITERS[name](tmp_path)
    assert max(scheduler.writers) >= 2
    assert any(tmp_path.iterdir())
    first, second = scheduler.stable[0], scheduler.stable[len(scheduler.stable) // 2]
    assert first == second
    if name not in {"to_csv", "to_json"}:  # those may hold the rows themselves
        assert first


def test_a_numpy_target_is_refused() -> None:
    with (
        dask.config.set(scheduler=get),
        pytest.raises(GraphError, match=r"store-map.* memory .*NumPy.* zarr"),
    ):
        da.store(da.ones(4, chunks=2), np.zeros(4))


def test_a_zarr_store_in_memory_is_refused() -> None:
    target = zarr.zeros(4, chunks=2)
    with dask.config.set(scheduler=get), pytest.raises(GraphError, match="memory"):
        da.store(da.ones(4, chunks=2), target)


def test_a_zarr_store_on_disk_is_not(tmp_path: Path) -> None:
    target = zarr.open(str(tmp_path / "z"), mode="w", shape=4, chunks=2, dtype=float)
    with dask.config.set(scheduler=get):
        da.store(da.ones(4, chunks=2), target)
    assert target[:].tolist() == [1.0] * 4


def test_many_tasks_of_one_netcdf_file_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("netCDF4")
    data = xr.Dataset({"t": (("x", "y"), np.ones((4, 6)))}).chunk(x=2)
    with dask.config.set(scheduler=get), pytest.raises(GraphError, match=r"2 tasks.*one file"):
        data.to_netcdf(tmp_path / "x.nc")


def test_an_open_hdf5_file_is_refused(tmp_path: Path) -> None:
    with dask.config.set(scheduler=get), pytest.raises(GraphError, match=r"h\.h5"):
        da.ones(4, chunks=2).to_hdf5(str(tmp_path / "h.h5"), "/x")


def test_other_functions_write_nothing() -> None:
    scheduler = Recording()
    dask.compute(delayed(inc)(1), da.ones(4, chunks=2).sum(), scheduler=scheduler)
    assert scheduler.writers == [0]
