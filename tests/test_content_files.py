"""Files that Dask, xarray, h5py and zarr read: touching one is other work on its branch alone."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dask_batch.graph.content import ContentHasher
from dask_batch.graph.dask_spec import ingest
from dask_batch.graph.keys import Keyed, Keys
from dask_batch.inputs import File

dask = pytest.importorskip("dask")
pd = pytest.importorskip("pandas")
xr = pytest.importorskip("xarray")
zarr = pytest.importorskip("zarr")
h5py = pytest.importorskip("h5py")
fsspec = pytest.importorskip("fsspec")

import dask.array as da  # noqa: E402 - skipped without
import dask.bag as db  # noqa: E402
import dask.dataframe as dd  # noqa: E402

COUNT = 12


def keyed(collection: Any) -> dict[Any, Keyed]:
    """Give the tasks of a collection their keys, as a compute would."""
    from dask.base import collections_to_expr
    from dask.core import flatten

    expression = collections_to_expr([collection]).optimize()
    graph = ingest(expression, list(flatten(expression.__dask_keys__())))
    found = Keys(nonce="run").of(graph.tasks, list(graph.required))
    assert [k.problems for k in found.values() if k.problems] == []
    return found


def dataset(i: int) -> Any:
    values = (("t", "x"), np.arange(12.0).reshape(3, 4))
    return xr.Dataset({"v": values}, coords={"t": np.arange(3) + 3 * i})


def frame() -> Any:
    return pd.DataFrame({"a": range(5), "b": list("abcde")})


WRITERS: dict[str, Callable[[Path, int], object]] = {
    "csv": lambda path, i: frame().to_csv(path, index=False),
    "parquet": lambda path, i: frame().to_parquet(path),
    "orc": lambda path, i: frame().to_orc(path),
    "json": lambda path, i: path.write_text(json.dumps([{"a": i}])),
    "txt": lambda path, i: path.write_text("a\nb\n" * 5),
    "nc": lambda path, i: dataset(i).to_netcdf(path, engine="netcdf4"),
    "nc3": lambda path, i: dataset(i).to_netcdf(path, engine="scipy"),
    "h5": lambda path, i: dataset(i).to_netcdf(path, engine="h5netcdf"),
    "zarr": lambda path, i: dataset(i).to_zarr(path),
}


@dataclass
class Files:
    """Twelve files of each kind, written when they are asked for."""

    directory: Path

    def __call__(self, kind: str) -> list[str]:
        (self.directory / kind).mkdir(exist_ok=True)
        paths = [self.directory / kind / f"f{i:02}.{kind}" for i in range(COUNT)]
        for i, path in enumerate(paths):
            if not path.exists():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    WRITERS[kind](path, i)
        return [str(path) for path in paths]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("inputs"))


def touch(name: str) -> None:
    path = Path(name)
    if path.is_dir():
        path = next(p for p in sorted(path.rglob("v/**/*")) if p.is_file() and p.name == "0")
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000))


def opened(kind: str, engine: str) -> Callable[[list[str]], Any]:
    def make(paths: list[str]) -> Any:
        parts = [xr.open_dataset(path, engine=engine, chunks={}).v for path in paths]
        return xr.concat(parts, "t") + 1

    return make


def opened_together(engine: str) -> Callable[[list[str]], Any]:
    def make(paths: list[str]) -> Any:
        whole = xr.open_mfdataset(paths, engine=engine, combine="nested", concat_dim="t")
        return whole.v + 1

    return make


READERS: dict[str, tuple[str, Callable[[list[str]], Any]]] = {
    "read_csv": ("csv", lambda p: dd.read_csv(p).a + 1),
    "read_csv with paths": ("csv", lambda p: dd.read_csv(p, include_path_column=True)),
    "read_csv in blocks": ("csv", lambda p: dd.read_csv(p, blocksize=10)),
    "read_parquet": ("parquet", lambda p: dd.read_parquet(p).a + 1),
    "read_parquet with filters": (
        "parquet",
        lambda p: dd.read_parquet(p, filters=[("a", ">", 1)]),
    ),
    "read_parquet by row group": ("parquet", lambda p: dd.read_parquet(p, split_row_groups=True)),
    "read_orc": ("orc", lambda p: dd.read_orc(p)),
    "read_json": ("json", lambda p: dd.read_json(p)),
    "read_text": ("txt", lambda p: db.read_text(p).map(len)),
    "read_text in blocks": ("txt", lambda p: db.read_text(p, blocksize=4)),
    "read_bytes": (
        "txt",
        lambda p: db.from_delayed([b for f in dask.bytes.read_bytes(p)[1] for b in f]),
    ),
    "open_dataset, netcdf4": ("nc", opened("nc", "netcdf4")),
    "open_dataset, scipy": ("nc3", opened("nc3", "scipy")),
    "open_dataset, h5netcdf": ("h5", opened("h5", "h5netcdf")),
    "open_mfdataset, netcdf4": ("nc", opened_together("netcdf4")),
    "open_mfdataset, scipy": ("nc3", opened_together("scipy")),
    "open_mfdataset, h5netcdf": ("h5", opened_together("h5netcdf")),
    "open_zarr": ("zarr", lambda p: xr.concat([xr.open_zarr(q).v for q in p], "t") + 1),
    "from_zarr": ("zarr", lambda p: da.concatenate([da.from_zarr(q, "v") for q in p]) + 1),
    "from_zarr of an array": (
        "zarr",
        lambda p: da.concatenate([da.from_zarr(zarr.open(q)["v"]) for q in p]) + 1,
    ),
    "h5py": (
        "h5",
        lambda p: da.concatenate([da.from_array(h5py.File(q, "r")["v"]) for q in p]) + 1,
    ),
    "File": ("csv", lambda p: dask.delayed([dask.delayed(len)(File(q)) for q in p])),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "make"), READERS.values(), ids=READERS)
def test_one_of_twelve(files: Files, kind: str, make: Callable[[list[str]], Any]) -> None:
    paths = files(kind)
    before = keyed(make(paths))
    keys = {found.key for found in before.values()}
    assert {found.key for found in keyed(make(paths)).values()} == keys
    assert {record.path for found in before.values() for record in found.inputs} == set(
        _recorded(paths)
    )
    touch(paths[5])
    after = keyed(make(paths))
    changed = [found for found in after.values() if found.key not in keys]
    assert changed
    assert len(changed) <= len(after) / 4  # a branch of twelve, and what joins the branches
    reading = [found for found in changed if found.inputs]
    assert reading
    assert {r.path for found in reading for r in found.inputs} <= set(_recorded(paths[5:6]))


def _recorded(paths: list[str]) -> list[str]:
    """Return what stands for paths: of a store, the array that is read."""
    return [os.path.join(path, "v") if os.path.isdir(path) else path for path in paths]


def test_rows_of_the_first_csv_are_no_business_of_the_others(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.csv" for i in range(COUNT)]
    for path in paths:
        frame().to_csv(path, index=False)
    before = {found.key for found in keyed(dd.read_csv([*map(str, paths)])).values()}
    frame().assign(a=range(5, 10)).to_csv(paths[0], index=False)
    after = {found.key for found in keyed(dd.read_csv([*map(str, paths)])).values()}
    assert 0 < len(after - before) <= 3


def content(obj: Any) -> Any:
    return ContentHasher().content(obj, "argument 'x'")


def test_opened_files_and_file_systems(files: Files) -> None:
    path = files("csv")[0]
    for make in (
        lambda: fsspec.open(path),
        lambda: fsspec.open_files([path]),
        lambda: fsspec.open(path, "rb").open(),
        lambda: h5py.File(files("h5")[0], "r"),
        lambda: h5py.File(files("h5")[0], "r")["v"],
        lambda: zarr.open(files("zarr")[0], mode="r"),
        lambda: xr.open_dataset(files("nc")[0]),
    ):
        first, second = content(make()), content(make())
        assert first.digest == second.digest
        assert first.problems == second.problems == ()
        assert len(first.inputs) >= 1
    assert content(fsspec.filesystem("file")).inputs == frozenset()
    assert content(fsspec.open(path, "w")).inputs == frozenset()


def test_files_in_the_memory_of_this_process(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/a", b"1")
    assert content(fsspec.open("memory://a")).problems
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["v"] = [1]
        assert content(file["v"]).problems


def test_a_store_in_memory_is_what_it_holds() -> None:
    def made(value: int) -> Any:
        array = zarr.create_array(zarr.storage.MemoryStore(), shape=(3,), dtype="i4")
        array[:] = value
        return array

    assert content(made(1)).problems == ()
    assert content(made(1)).digest == content(made(1)).digest != content(made(2)).digest


def test_remote_files_by_what_tells_their_states_apart() -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    class Remote(MemoryFileSystem):
        protocol = "remote"
        etag = "1"

        def info(self, path: str, **options: Any) -> dict[str, Any]:
            if path.endswith("nothing"):
                return {"name": path, "size": 1}
            return {"name": path, "ETag": self.etag, "size": 1}

    system = Remote()
    first = content(fsspec.core.OpenFile(system, "/bucket/a"))
    assert first.problems == ()
    assert first.inputs == frozenset()
    Remote.etag = "2"
    assert content(fsspec.core.OpenFile(system, "/bucket/a")).digest != first.digest
    assert content(fsspec.core.OpenFile(system, "/bucket/nothing")).problems


def test_locks_and_names_of_open_files_do_not_count(files: Files) -> None:
    array = h5py.File(files("h5")[0], "r")["v"]
    one, two = (keyed(da.from_array(array, chunks=2, lock=True)) for _ in range(2))
    assert {k.key for k in one.values()} == {k.key for k in two.values()}
