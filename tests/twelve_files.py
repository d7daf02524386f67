"""A client that reads twelve files of each kind, in every way that there is; run as a script.

Each way has a cache of its own. It prints a line of JSON for each: its name, whether the jobs gave
what Dask gives here, and how many results are new.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import h5py
import numpy as np
import pandas as pd
import xarray as xr
import zarr

from dask_batch import File, SingleNodeExecutor
from dask_batch.errors import UncacheableWarning

COUNT = 12


def dataset(i: int) -> Any:
    values = (("t", "x"), np.arange(12.0).reshape(3, 4) + i)
    return xr.Dataset({"v": values}, coords={"t": np.arange(3) + 3 * i})


def frame(i: int) -> Any:
    return pd.DataFrame({"a": [i, 1, 2], "b": list("xyz")})


WRITERS: dict[str, Callable[[Path, int], object]] = {
    "csv": lambda path, i: frame(i).to_csv(path, index=False),
    "parquet": lambda path, i: frame(i).to_parquet(path),
    "txt": lambda path, i: path.write_text(f"{i}\n1\n"),
    "nc": lambda path, i: dataset(i).to_netcdf(path, engine="netcdf4"),
    "nc3": lambda path, i: dataset(i).to_netcdf(path, engine="scipy"),
    "h5": lambda path, i: dataset(i).to_netcdf(path, engine="h5netcdf"),
    "zarr": lambda path, i: dataset(i).to_zarr(path),
}


def files(folder: Path, kind: str) -> list[str]:
    """Return the paths of twelve files, which are written if they are not there."""
    (folder / kind).mkdir(parents=True, exist_ok=True)
    paths = [folder / kind / f"f{i:02}.{kind}" for i in range(COUNT)]
    for i, path in enumerate(paths):
        if not path.exists():
            WRITERS[kind](path, i)
    return [str(path) for path in paths]


def plus_one(number: int) -> int:
    return number + 1


def total(path: Any) -> int:
    with open(path) as lines:
        return sum(int(line) for line in lines)


def opened(engine: str) -> Callable[[list[str]], Any]:
    def make(paths: list[str]) -> Any:
        parts = [xr.open_dataset(path, engine=engine, chunks={}).v for path in paths]
        return xr.concat(parts, "t") + 1

    return make


def opened_together(engine: str) -> Callable[[list[str]], Any]:
    def make(paths: list[str]) -> Any:
        whole = xr.open_mfdataset(paths, engine=engine, combine="nested", concat_dim="t")
        return whole.v + 1

    return make


def summed(paths: list[str], **options: bool) -> Any:
    return dask.delayed(sum)([dask.delayed(total)(File(path, **options)) for path in paths])


READERS: dict[str, tuple[str, Callable[[list[str]], Any]]] = {
    "read_csv": ("csv", lambda p: dd.read_csv(p).a + 1),
    "read_parquet": ("parquet", lambda p: dd.read_parquet(p).a + 1),
    "read_text": ("txt", lambda p: db.read_text(p).map(int).map(plus_one)),
    "open_dataset, netcdf4": ("nc", opened("netcdf4")),
    "open_dataset, scipy": ("nc3", opened("scipy")),
    "open_dataset, h5netcdf": ("h5", opened("h5netcdf")),
    "open_mfdataset, netcdf4": ("nc", opened_together("netcdf4")),
    "open_mfdataset, scipy": ("nc3", opened_together("scipy")),
    "open_mfdataset, h5netcdf": ("h5", opened_together("h5netcdf")),
    "open_zarr": ("zarr", lambda p: xr.concat([xr.open_zarr(q).v for q in p], "t") + 1),
    "from_zarr": ("zarr", lambda p: da.concatenate([da.from_zarr(q, "v") for q in p]) + 1),
    "from_zarr of an array": (
        "zarr",
        lambda p: da.concatenate([da.from_zarr(zarr.open(q, mode="r")["v"]) for q in p]) + 1,
    ),
    "h5py": (
        "h5",
        lambda p: da.concatenate([da.from_array(h5py.File(q, "r")["v"]) for q in p]) + 1,
    ),
    "File": ("txt", summed),
    "File, by content": ("txt", lambda p: summed(p, digest=True)),
}
"""Name to the kind of file, and what makes a collection of twelve paths."""


def main(folder: Path, caches: Path) -> None:
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", UncacheableWarning)
    made = {name: make(files(folder, kind)) for name, (kind, make) in READERS.items()}
    executors = [SingleNodeExecutor(cache_directory=caches / name) for name in made]
    before = {name: results(caches / name) for name in made}
    futures = [one.compute(made[name]) for one, name in zip(executors, made, strict=True)]
    for name, future in zip(made, futures, strict=True):
        (theirs,) = dask.compute(made[name], scheduler="synchronous")
        equal = bool(np.array_equal(np.asarray(future.result()), np.asarray(theirs)))
        new = len(results(caches / name) - before[name])
        sys.stdout.write(json.dumps([name, equal, new]) + "\n")
    for executor in executors:
        executor.shutdown()


def results(cache: Path) -> set[Path]:
    return set(cache.glob("results/*/*.h5"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
