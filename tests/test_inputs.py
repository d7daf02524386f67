"""Files outside the graph: what is recorded of them, and how a change is told."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dask_batch.graph.content import ContentHasher
from dask_batch.inputs import File, H5Dataset, InputFile, input_file, named_files, portable


def digest(obj: object) -> bytes:
    found = ContentHasher().content(obj)
    assert found.problems == ()
    return found.digest


def touch(path: Path, by_ns: int = 1_000) -> None:
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + by_ns))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    path.write_text("a,b\n1,2\n")
    return path


def test_unchanged(data: Path) -> None:
    assert input_file(data).check() is None
    assert input_file(data, digest=True).check() is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.write_text("a,b\n"), "bytes"),
        (touch, "written again"),
        (lambda p: p.unlink(), "gone"),
    ],
)
def test_changed(data: Path, change: Callable[[Path], object], words: str) -> None:
    record = input_file(data)
    change(data)
    said = record.check()
    assert said is not None
    assert str(data) in said
    assert words in said


def test_digest_sees_content_alone(data: Path, tmp_path: Path) -> None:
    record = input_file(data, digest=True)
    touch(data)
    assert record.check() is None
    before = data.stat()
    data.write_text("a,b\n1,3\n")
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "content" in (record.check() or "")
    copy = tmp_path / "elsewhere.csv"
    copy.write_text("a,b\n1,2\n")
    assert digest(File(copy, digest=True)) != digest(File(data, digest=True))
    data.write_text("a,b\n1,2\n")
    assert digest(File(copy, digest=True)) == digest(File(data, digest=True))
    assert digest(File(copy)) != digest(File(data))


def test_what_is_not_there_may_appear(tmp_path: Path) -> None:
    record = input_file(tmp_path / "later")
    assert record.check() is None
    (tmp_path / "later").write_text("x")
    assert "not there before" in (record.check() or "")


@pytest.mark.parametrize("by_content", [False, True])
def test_directories(tmp_path: Path, by_content: bool) -> None:
    store = tmp_path / "store"
    (store / "c" / "0").mkdir(parents=True)
    (store / "c" / "0" / "0").write_bytes(b"one")
    (store / "zarr.json").write_text("{}")
    record = input_file(store, digest=by_content)
    assert record.check() is None
    assert record.size == 5
    (store / "c" / "0" / "1").write_bytes(b"")
    assert record.check() is not None
    (store / "c" / "0" / "1").unlink()
    assert record.check() is None
    (store / "c" / "0" / "0").write_bytes(b"two!")
    assert record.check() is not None


def test_records_travel_as_json(data: Path) -> None:
    record = input_file(data)
    assert InputFile(**json.loads(json.dumps(dataclasses.asdict(record)))) == record


def test_file_is_a_path(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    file = File("data.csv")
    assert file.path == str(file) == os.fspath(file) == str(data)
    assert file == File(data)
    assert hash(file) == hash(File(data))
    assert file != File(data, digest=True)
    assert file != str(data)
    assert Path(file).read_text() == file.open().read() == "a,b\n1,2\n"
    assert pickle.loads(pickle.dumps(file)) == file
    before = digest(file)
    monkeypatch.chdir("/")
    assert digest(File(data)) == before


def test_a_changed_file_is_other_work(data: Path) -> None:
    before = ContentHasher().content([File(data)])
    assert before.inputs == {input_file(data)}
    touch(data)
    assert digest([File(data)]) != before.digest


def test_one_hand_over_looks_once(data: Path) -> None:
    hasher = ContentHasher()
    before = hasher.content(File(data)).digest
    touch(data)
    assert hasher.content([File(data)]).inputs == hasher.content(File(data)).inputs
    assert hasher.content(File(data)).digest == before


def test_names_and_paths_are_plain(data: Path) -> None:
    before = digest([str(data), data])
    touch(data)
    assert digest([str(data), data]) == before


def test_named_files(data: Path, tmp_path: Path) -> None:
    arguments = (["no", str(data), {"k": data, "other": "x\0y"}], {"f": File(data), "d": tmp_path})
    assert list(named_files(arguments)) == [str(data)]
    assert list(named_files(["x" * 10_000, "a\nb", "", 5, None, b"x"])) == []
    cyclic: list[object] = [pathlib.Path(data)]
    cyclic.append(cyclic)
    assert list(named_files(cyclic)) == [str(data)]


def test_hdf5_is_opened_where_it_is_used(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    np = pytest.importorskip("numpy")
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["group/v"] = np.arange(12.0).reshape(3, 4)
    with h5py.File(path, "r") as file:
        sent = pickle.dumps([portable(file["group/v"]), portable(file["group"]), portable(file)])
        assert portable(5) == 5
    dataset, group, whole = pickle.loads(sent)
    assert isinstance(dataset, H5Dataset)
    assert (dataset.shape, dataset.ndim, len(dataset), dataset.size) == ((3, 4), 2, 3, 12)
    assert dataset[1:, 2].tolist() == [6.0, 10.0]
    assert np.asarray(dataset).sum() == 66
    assert group["v"][0, 1] == whole["group/v"][0, 1] == 1.0


READ = "import pickle, sys; print(pickle.load(sys.stdin.buffer)[0])"


def test_what_was_written_to_an_open_hdf5_file_is_seen_elsewhere(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["v"] = [5, 2]
        sent = pickle.dumps(portable(file["v"]))
        ran = subprocess.run([sys.executable, "-c", READ], input=sent, capture_output=True)
    assert (ran.returncode, ran.stdout) == (0, b"5\n"), ran.stderr


def test_hdf5_in_memory_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w", driver="core", backing_store=False) as file:
        file["v"] = [1, 2]
        with pytest.raises(TypeError, match="not on disk"):
            portable(file["v"])


def test_importing_needs_nothing_of_the_client() -> None:
    code = "import sys; import dask_batch.inputs; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in ran.stdout.split()}
    assert not loaded & {"dask", "networkx", "jinja2", "h5py", "numpy", "pandas"}
    assert "dask_batch.graph" not in ran.stdout
