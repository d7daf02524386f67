"""Writers run on every compute, and what is upstream of them once: with jobs that really write."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
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

import bodies
from dask_batch import cluster_get
from dask_batch.errors import GraphError

zarr = pytest.importorskip("zarr")
h5py = pytest.importorskip("h5py")

VALUES = np.arange(16.0).reshape(4, 4)
FRAME = pd.DataFrame({"a": np.arange(8.0)})


@pytest.fixture(autouse=True)
def _local(tmp_path: Path) -> Iterator[None]:
    ours = {"batch.backend": "local", "batch.cache-directory": tmp_path / "cache"}
    with dask.config.set(ours, scheduler=cluster_get):
        yield


def array(traces: Path) -> Any:
    """Return an array of four chunks whose bodies leave traces."""
    source = da.from_array(VALUES, chunks=2)
    return source.map_blocks(lambda x: bodies.noted(traces, "body", x), meta=VALUES[:0])


def frame(traces: Path) -> Any:
    source = dd.from_pandas(FRAME, npartitions=2)
    return source.map_partitions(lambda x: bodies.noted(traces, "body", x), meta=FRAME[:0])


def bag(traces: Path) -> Any:
    return db.from_sequence(["a", "b"], npartitions=2).map(
        lambda x: bodies.noted(traces, "body", x)
    )


def dataset(traces: Path) -> Any:
    return xr.Dataset({"t": (("x", "y"), array(traces))})


def one_chunk(traces: Path) -> Any:
    return dataset(traces).chunk(x=4, y=4)


def store(traces: Path, path: Path) -> None:
    target = zarr.open(str(path), mode="w", shape=(4, 4), chunks=(2, 2), dtype=float)
    da.store(array(traces), target)


def save_many(traces: Path, path: Path) -> None:
    path.mkdir()
    halves = [dataset(traces).isel(x=rows).chunk(y=4) for rows in ([0, 1], [2, 3])]
    xr.save_mfdataset(halves, [path / "0.nc", path / "1.nc"])


def read_many(path: Path) -> float:
    halves = [xr.open_dataset(part).t.values for part in sorted(path.glob("*.nc"))]
    np.testing.assert_array_equal(np.concatenate(halves), VALUES)
    return float(sum(half.sum() for half in halves))


def sum_of(read: Callable[[Any], Any], path: Path, pattern: str) -> float:
    parts = [read(part) for part in sorted(path.glob(pattern))]
    return float(sum(part.a.sum() for part in parts))


def sum_of_zarr(path: Path) -> float:
    return float(zarr.open(str(path), mode="r")[:].sum())


def sum_of_t(path: Path) -> float:
    opened = xr.open_zarr(path) if path.is_dir() else xr.open_dataset(path)
    with opened:
        return float(opened.t.values.sum())


WRITERS: dict[str, tuple[Callable[[Path, Path], Any], Callable[[Path], float]]] = {
    "to_parquet": (
        lambda t, p: frame(t).to_parquet(p),
        lambda p: sum_of(pd.read_parquet, p, "*.parquet"),
    ),
    "to_csv": (
        lambda t, p: frame(t).to_csv(str(p / "*.csv")),
        lambda p: sum_of(pd.read_csv, p, "*.csv"),
    ),
    "to_csv into one file": (
        lambda t, p: frame(t).to_csv(str(p), single_file=True),
        lambda p: float(pd.read_csv(p).a.sum()),
    ),
    "to_json": (
        lambda t, p: frame(t).to_json(str(p / "*.json"), orient="records", lines=True),
        lambda p: sum_of(lambda part: pd.read_json(part, lines=True), p, "*.json"),
    ),
    "to_orc": (
        lambda t, p: frame(t).to_orc(str(p)),
        lambda p: sum_of(pd.read_orc, p, "*.orc"),
    ),
    "to_textfiles": (
        lambda t, p: bag(t).to_textfiles(str(p / "*.txt")),
        lambda p: float(len("".join(part.read_text() for part in p.glob("*.txt")))),
    ),
    "to_zarr": (lambda t, p: array(t).to_zarr(str(p)), sum_of_zarr),
    "store into zarr": (store, sum_of_zarr),
    "to_npy_stack": (
        lambda t, p: da.to_npy_stack(str(p), array(t)),
        lambda p: float(sum(np.load(part).sum() for part in p.glob("*.npy"))),
    ),
    "xarray to_zarr": (lambda t, p: dataset(t).to_zarr(p), sum_of_t),
    "xarray to_zarr, later": (
        lambda t, p: dataset(t).to_zarr(p, compute=False).compute(),
        sum_of_t,
    ),
    "to_netcdf by netCDF4": (lambda t, p: one_chunk(t).to_netcdf(p, engine="netcdf4"), sum_of_t),
    "to_netcdf by h5netcdf": (lambda t, p: one_chunk(t).to_netcdf(p, engine="h5netcdf"), sum_of_t),
    "to_netcdf, later": (
        lambda t, p: one_chunk(t).to_netcdf(p, compute=False).compute(),
        sum_of_t,
    ),
    "save_mfdataset": (save_many, read_many),
}
"""What writes, given a folder for traces and a path; and what sums up what was written."""

ONE_EACH = {"to_parquet": 2, "to_csv": 2, "to_csv into one file": 2, "to_json": 2, "to_orc": 2}


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_writes_again_and_what_is_upstream_is_kept(name: str, tmp_path: Path) -> None:
    write, total = WRITERS[name]
    path, traces = tmp_path / "written", tmp_path / "traces"
    traces.mkdir()
    expected = {"to_textfiles": 2.0}.get(name, 28.0 if name in ONE_EACH else 120.0)
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", module="dask_batch")
            write(traces, path)
        assert total(path) == expected
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert bodies.traces(traces) == {"body": 2 if expected < 100 else 4}


def test_what_was_written_is_there_when_the_task_that_comes_after_runs(tmp_path: Path) -> None:
    target = zarr.open(str(tmp_path / "z"), mode="w", shape=(4, 4), chunks=(2, 2), dtype=float)
    stored = da.from_array(VALUES, chunks=2).store(target, compute=False, return_stored=True)
    for _ in range(2):
        np.testing.assert_array_equal((stored + 1).compute(), VALUES + 1)
        target[:] = 0.0


def test_what_cannot_be_written_by_a_job_is_refused_before_any_runs(tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    traces.mkdir()
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset_there = file.create_dataset("x", (4, 4))
        for match, write in (
            ("NumPy.*zarr", lambda: da.store(array(traces), np.zeros((4, 4)))),
            ("MemoryStore.*zarr", lambda: da.store(array(traces), zarr.zeros((4, 4)))),
            (r"x\.h5.*zarr", lambda: da.store(array(traces), dataset_there)),
            ("4 tasks.*one file.*to_zarr", lambda: dataset(traces).to_netcdf(tmp_path / "a.nc")),
            (
                "4 tasks.*one file.*to_zarr",
                lambda: dataset(traces).to_netcdf(tmp_path / "b.nc", engine="h5netcdf"),
            ),
            ("memory", lambda: dataset(traces).to_netcdf(tmp_path / "c.nc", engine="scipy")),
        ):
            with pytest.raises(GraphError, match=match):
                write()
    assert bodies.traces(traces) == {}
    assert list((tmp_path / "cache").glob("runs/*")) == []
