"""Files that jobs read: opened again elsewhere, and read again only if they have changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dask
import pytest

import bodies
import twelve_files
from dask_batch import File, SingleNodeExecutor, cluster_get
from dask_batch.cache.store import Cache
from dask_batch.errors import ChangedSinceSubmissionError, OutdatedInputWarning

CLIENT = Path(twelve_files.__file__)


@pytest.fixture(autouse=True)
def _local(tmp_path: Path) -> Iterator[None]:
    with dask.config.set({"batch.backend": "local", "batch.cache-directory": tmp_path / "cache"}):
        yield


def results(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("cache/results/*/*.h5")}


def touch(path: str | Path) -> None:
    """Let a file, or the data in a zarr store, be written later; everything else stays."""
    path = Path(path)
    if path.is_dir():
        path = next(p for p in sorted((path / "v").rglob("0")) if p.is_file())
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000))


class Reading:
    """Runs the client that reads twelve files of each kind, each time under another hash seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = 0

    def __call__(self) -> dict[str, int]:
        """Run it, and return for each way of reading how many results are new."""
        self.runs += 1
        elsewhere = self.folder / f"cwd{self.runs}"
        elsewhere.mkdir()
        done = subprocess.run(
            [sys.executable, CLIENT, self.folder / "inputs", self.folder / "cache"],
            env={**os.environ, "PYTHONHASHSEED": str(self.runs)},
            cwd=elsewhere,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [name for name, equal, _ in lines if not equal] == []
        assert [name for name, _, _ in lines] == list(twelve_files.READERS)
        return {name: new for name, _, new in lines}

    def touch(self, number: int) -> None:
        for kind in twelve_files.WRITERS:
            touch(twelve_files.files(self.folder / "inputs", kind)[number])


JOINED = {"read_csv", "read_parquet", "File", "File, by content"}
"""Those whose twelve branches end in one task."""


def test_twelve_files_of_every_kind(tmp_path: Path) -> None:
    reading = Reading(tmp_path)
    every = dict.fromkeys(twelve_files.READERS, 12)
    one = dict.fromkeys(twelve_files.READERS, 1) | {"File, by content": 0}
    none = dict.fromkeys(twelve_files.READERS, 0)
    joined = {name: int(name in JOINED) for name in twelve_files.READERS}
    assert reading() == {name: every[name] + joined[name] for name in every}
    assert reading() == none
    expected = {name: one[name] + joined[name] for name in one} | {"File, by content": 0}
    for number in (5, 7):  # one after the other: what ran again for the first is kept
        reading.touch(number)
        assert reading() == expected


# ---- File --------------------------------------------------------------------------------------


def total(folder: Path, path: Any) -> int:
    """Sum up the numbers in a file, leaving a trace."""
    bodies.trace(folder, Path(path).stem)
    with open(path) as lines:
        return sum(int(line) for line in lines)


def test_same_size_and_another_time_is_another_file(tmp_path: Path) -> None:
    source = tmp_path / "source.txt"
    traces = tmp_path / "traces"
    traces.mkdir()
    for text in ("1\n", "2\n"):
        source.write_text(text)
        lazy = dask.delayed(total)(traces, File(source))
        assert dask.compute(lazy, scheduler=cluster_get) == (int(text),)
    assert bodies.traces(traces) == {"source": 2}


def test_same_time_and_another_size_is_another_file(tmp_path: Path) -> None:
    source = tmp_path / "source.txt"
    for text in ("1\n", "22\n"):
        source.write_text(text)
        os.utime(source, ns=(0, 0))
        lazy = dask.delayed(total)(tmp_path, File(source))
        assert dask.compute(lazy, scheduler=cluster_get) == (int(text),)


def test_a_relative_path_means_the_directory_of_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = tmp_path / "traces"
    traces.mkdir()
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "source.txt").write_text("1\n")
        os.utime(tmp_path / name / "source.txt", ns=(0, 0))
    for name in ("one", "other", "one"):
        monkeypatch.chdir(tmp_path / name)
        file = File("source.txt")
        monkeypatch.chdir("/")  # where the object was made is what counts
        assert dask.compute(dask.delayed(total)(traces, file), scheduler=cluster_get) == (1,)
    assert bodies.traces(traces) == {"source": 2}


def test_a_digest_is_the_same_key_elsewhere(tmp_path: Path) -> None:
    """At another path, written at another time, in another cache."""
    keys = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        source = tmp_path / name / f"{name}.txt"
        source.write_text("1\n2\n")
        os.utime(source, ns=(0, len(name)))
        lazy = dask.delayed(sum)(
            [dask.delayed(len)(dask.delayed(_lines)(File(source, digest=True)))]
        )
        with dask.config.set({"batch.cache-directory": tmp_path / name / "cache"}):
            assert dask.compute(lazy, scheduler=cluster_get) == (2,)
        keys.append(results(tmp_path / name))
    assert len(keys[0]) == 3
    assert keys[0] == keys[1]


def _lines(path: Any) -> list[str]:
    return Path(path).read_text().splitlines()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    lazy = dask.delayed(total)(tmp_path, File(tmp_path / "absent.txt"))
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        dask.compute(lazy, scheduler=cluster_get)
    (tmp_path / "absent.txt").write_text("3\n")
    lazy = dask.delayed(total)(tmp_path, File(tmp_path / "absent.txt"))
    assert dask.compute(lazy, scheduler=cluster_get) == (3,)


@pytest.mark.parametrize("digest", [False, True])
@pytest.mark.parametrize("what", ["changed", "gone"])
def test_a_file_that_changes_between_submission_and_start(
    tmp_path: Path, digest: bool, what: str
) -> None:
    source = tmp_path / "source.txt"
    source.write_text("1\n")
    traces = tmp_path / "traces"
    traces.mkdir()
    with SingleNodeExecutor(cache_directory=tmp_path / "cache") as executor:
        gate = executor.submit(bodies.gated, traces, "gate")
        read = executor.submit(_after, gate, traces, File(source, digest=digest))
        heir = executor.submit(str, read)
        source.write_text("22\n") if what == "changed" else source.unlink()
        bodies.open_gate(traces)
        with pytest.raises(ChangedSinceSubmissionError, match=r"source\.txt"):
            read.result()
        with pytest.raises(Exception, match=r"source\.txt"):
            heir.result()
    assert results(tmp_path) == {gate.key}
    assert "source" not in bodies.traces(traces)


def _after(_: object, folder: Path, path: Any) -> int:
    return total(folder, path)


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    source = tmp_path / "source.txt"
    source.write_text("1\n")
    lazy = dask.delayed(_spoil)(File(source))
    with pytest.raises(ChangedSinceSubmissionError, match=r"source\.txt"):
        dask.compute(lazy, scheduler=cluster_get)
    assert results(tmp_path) == set()


def _spoil(path: Any) -> str:
    Path(path).write_text("changed")
    return "read"


# ---- a file in a result ------------------------------------------------------------------------


def make(folder: Path, name: str, text: str) -> dict[str, list[File]]:
    bodies.trace(folder, name)
    (folder / f"{name}.made").write_text(text)
    return {"made": [File(folder / f"{name}.made")]}


def read(made: dict[str, list[File]]) -> str:
    return made["made"][0].open().read()


@pytest.mark.parametrize("door", ["compute", "submit"])
@pytest.mark.parametrize("what", ["gone", "changed", "kept"])
def test_a_file_in_a_result_must_be_as_it_was_left(tmp_path: Path, what: str, door: str) -> None:
    traces = tmp_path / "traces"
    traces.mkdir()

    def once() -> str:
        if door == "compute":
            return read(*dask.compute(dask.delayed(make)(traces, "m", "a"), scheduler=cluster_get))
        with SingleNodeExecutor(cache_directory=tmp_path / "cache") as executor:
            return read(executor.submit(make, traces, "m", "a").result())

    made = traces / "m.made"
    assert once() == "a"
    runs = [path for path in traces.glob("m.*") if path != made]
    if what == "gone":
        made.unlink()
    elif what == "changed":
        made.write_text("b")
    assert once() == "a"
    again = [path for path in traces.glob("m.*") if path != made]
    assert len(again) - len(runs) == (what != "kept")
    assert once() == "a"
    assert len([path for path in traces.glob("m.*") if path != made]) == len(again)


def test_what_a_result_says_of_its_files(tmp_path: Path) -> None:
    made = dask.delayed(make)(tmp_path, "m", "a")
    assert dask.compute(dask.delayed(read)(made), scheduler=cluster_get) == ("a",)
    cache = Cache(tmp_path / "cache", create=False)
    noted = [cache.attributes(key).get("files") for key in sorted(results(tmp_path))]
    assert [asdict(File(tmp_path / "m.made").record())] in noted
    assert None in noted


# ---- plain names -------------------------------------------------------------------------------


def named(path: Any, *more: object) -> str:
    return Path(path).read_text()


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("door", ["compute", "submit", "below"])
def test_a_plain_name_of_a_newer_file_warns(tmp_path: Path, door: str, kind: Any) -> None:
    source = tmp_path / "source.txt"
    source.write_text("1")

    def once() -> str:
        if door == "submit":
            with SingleNodeExecutor(cache_directory=tmp_path / "cache") as executor:
                return str(executor.submit(named, kind(source)).result())
        lazy = dask.delayed(named)(kind(source))
        if door == "below":
            lazy = dask.delayed(str)(lazy)
        return str(dask.compute(lazy, scheduler=cluster_get)[0])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [once(), once()] == ["1", "1"]
    state = source.stat()
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns + 3600 * 10**9))
    with pytest.warns(OutdatedInputWarning, match=r"source\.txt.*dask_batch\.File"):
        assert once() == "1"


def test_a_file_that_the_task_itself_writes_does_not_warn(tmp_path: Path) -> None:
    lazy = dask.delayed(_write)(str(tmp_path / "target.txt"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert dask.compute(lazy, scheduler=cluster_get) == (2,)


def _write(path: str) -> int:
    return Path(path).write_text("ab")
