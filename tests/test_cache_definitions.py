"""The task-definition file: written whole, read a slice at a time."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dask_batch.cache.definitions import DefinitionDraft, read_definition, write_definitions
from dask_batch.cache.store import Cache
from dask_batch.code import pickling
from dask_batch.errors import CacheError, DamagedEntryError, MissingEntryError


@dataclass(frozen=True)
class Payload:
    data: bytes
    buffers: tuple[Any, ...] = ()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def drafts(count: int) -> list[DefinitionDraft]:
    return [
        DefinitionDraft({"index": i, "name": "é\ud800"}, Payload(b"data%d" % i, (b"", b"x" * i)))
        for i in range(count)
    ]


def test_each_task_is_read_by_its_index(cache: Cache) -> None:
    path = write_definitions(cache, "run", {"cwd": "/tmp/\udcff"}, drafts(20))
    assert path == cache.path / "definitions" / "run.h5"
    for index in range(20):
        definition = read_definition(path, index)
        assert definition.common == {"cwd": "/tmp/\udcff"}
        assert definition.header == {"index": index, "name": "é\ud800"}
        assert definition.data == b"data%d" % index
        assert [bytes(buffer) for buffer in definition.buffers] == [b"", b"x" * index]


def test_what_was_pickled_is_unpickled(cache: Cache) -> None:
    value = {"array": np.arange(1000.0), "list": [1]}
    path = write_definitions(cache, "run", {}, [DefinitionDraft({}, pickling.dumps(value))])
    definition = read_definition(path, 0)
    back = pickling.loads(definition.data, definition.buffers)
    assert back["list"] == [1]
    back["array"][0] = 5
    assert np.array_equal(back["array"][1:], value["array"][1:])


def test_there_is_one_file_for_a_run(cache: Cache) -> None:
    write_definitions(cache, "run", {}, [])
    with pytest.raises(CacheError, match="has its definitions already"):
        write_definitions(cache, "run", {}, [])


@pytest.mark.parametrize("index", [-1, 3, 2**70])
def test_a_task_that_is_not_there(cache: Cache, index: int) -> None:
    path = write_definitions(cache, "run", {}, drafts(3))
    with pytest.raises(MissingEntryError, match="has 3 tasks"):
        read_definition(path, index)
    with pytest.raises(MissingEntryError):
        read_definition(cache.path / "definitions" / "other.h5", 0)


def test_a_file_that_others_may_write_is_not_read(cache: Cache) -> None:
    path = write_definitions(cache, "run", {}, drafts(1))
    path.chmod(0o660)
    with pytest.raises(CacheError, match="may be written by others"):
        read_definition(path, 0)


def test_damage_is_found_or_does_not_matter(cache: Cache) -> None:
    path = write_definitions(cache, "run", {"common": 1}, drafts(5))
    whole, data = read_definition(path, 3), path.read_bytes()
    rng = random.Random(0)
    found = 0
    for _ in range(1500):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert read_definition(path, 3) == whole
        except DamagedEntryError:
            found += 1
    assert found > 50
    for length in range(0, len(data), 61):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedEntryError, match="cannot be used"):
            read_definition(path, 3)


def test_a_job_reads_as_little_of_many_tasks_as_of_few(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    preadv = os.preadv

    def counted(fd: int, buffers: list[Any], offset: int) -> int:
        read.append(count := preadv(fd, buffers, offset))
        return count

    paths = [write_definitions(cache, f"run{n}", {}, drafts(1)[:1] * n) for n in (2, 2000)]
    monkeypatch.setattr("os.preadv", counted)
    amounts = []
    for path in paths:
        read.clear()
        read_definition(path, 1)
        amounts.append((len(read), sum(read)))
    (few_calls, few_bytes), (many_calls, many_bytes) = amounts
    assert many_calls == few_calls
    assert abs(many_bytes - few_bytes) <= 64  # the numbers in the head have more digits


def test_plain_h5py_reads_it(cache: Cache) -> None:
    path = write_definitions(cache, "run", {"a": 1}, drafts(3))
    with h5py.File(path) as file:
        assert file.attrs["run"] == "run"
        where = file["tasks"][2]["data"]
        start = int(where["offset"])
        assert bytes(file["content"][start : start + int(where["size"])]) == b"data2"
