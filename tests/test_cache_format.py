"""A cache of format 1 stays readable, whatever later versions write.

The fixture is never made anew: it is what this format was when it was released. A later format
gets a directory of its own beside it. Its pickles name no library: what those call their insides
is theirs to change.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims, Owner
from dask_batch.cache.definitions import read_definition
from dask_batch.cache.store import Cache
from dask_batch.code import pickling

FIXTURE = Path(__file__).parent / "fixtures" / "cache-v1"

ARRAY, FORTRAN, DATES, TABLE, SCALAR, PICKLE, EMPTY, VALUE = (f"{n:x}" * 64 for n in range(1, 9))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A copy with the modes that a cache has, which version control does not keep."""
    path = tmp_path / "cache"
    shutil.copytree(FIXTURE, path)
    for directory, _, names in os.walk(path):
        os.chmod(directory, 0o700)
        for name in names:
            os.chmod(os.path.join(directory, name), 0o600)
    return Cache(path, create=False)


def test_every_form_of_value(cache: Cache) -> None:
    assert set(cache.keys()) == {ARRAY, FORTRAN, DATES, TABLE, SCALAR, PICKLE, EMPTY, VALUE}
    for mode in ("copy", "map"):
        array = cache.load(ARRAY, mode=mode)
        assert array.dtype == np.dtype(">f4")
        assert array.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
        fortran = cache.load(FORTRAN, mode=mode)
        assert fortran.flags.f_contiguous
        assert fortran.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert (
            cache.load(DATES, mode=mode).tolist()
            == np.array(["2026-01-31T12:00", "NaT"], "M8[s]").tolist()
        )
        table = cache.load(TABLE, mode=mode)
        assert table.dtype == np.dtype([("name", "<U4"), ("when", "<M8[D]"), ("x", "<f8", (2,))])
        assert table["name"].tolist() == ["größe"[:4], "b"]
        assert table["x"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
        scalar = cache.load(SCALAR, mode=mode)
        assert type(scalar) is np.float16
        assert scalar == np.float16(0.1)
        pickled = cache.load(PICKLE, mode=mode)
        assert pickled["text"] == "größe"
        assert bytes(pickled["parts"][0]) == bytes(range(10))
        empty = cache.load(EMPTY, mode=mode)
        assert (empty.shape, empty.dtype) == ((0, 3), np.dtype("c16"))
        assert cache.load(VALUE, mode=mode) == "a large argument"


def test_attributes(cache: Cache) -> None:
    noted = cache.attributes(ARRAY)
    assert noted["function"] == "example"
    assert noted["resources"] == {"cores": 2, "memory_max": 1.5}
    assert noted["runtime"] == 0.25
    assert len(noted["long"]) == 40_000
    with h5py.File(cache.path_of(ARRAY)) as file:
        assert file.attrs["key"] == ARRAY
        assert file.attrs["format_version"] == 1
        assert file["value"][1, 2] == 5.0


def test_entries_are_whole(cache: Cache) -> None:
    assert all(cache.check(key) for key in list(cache.keys()))


def test_claims_runs_and_logs(cache: Cache) -> None:
    claims = Claims(cache)
    first, second = claims.generations(ARRAY)
    assert (first.run.id, second.run.id) == ("run-a", "run-b")
    assert second.job_name == "example-run-b-0"
    assert second.run.owner == Owner("host", "boot", 42, "1000")
    assert second.run.backend == "slurm"
    log = claims.log("run-a")
    assert (log.ids, log.accepted, log.released) == ({"example-run-a-0": "4711"}, True, True)
    assert claims.log("run-b").ids == {"example-run-b-0": "4712"}
    assert claims.log("run-b").aborted
    assert claims.unsettled() == []


def test_attempts(cache: Cache) -> None:
    start = attempts.read_start(cache, ARRAY, 0)
    assert start is not None
    assert (start["job_id"], start["restart"]) == ("4711", 1)
    end = attempts.read_end(cache, ARRAY, 0)
    assert end is not None
    assert (end["outcome"], end["message"]) == ("exception", "ValueError: größe")


def test_definitions_and_names(cache: Cache) -> None:
    definition = read_definition(cache.path / "definitions" / "run-a.h5", 1)
    assert definition.common == {"working_directory": "/somewhere"}
    assert definition.header == {"key": FORTRAN}
    value = pickling.loads(definition.data, definition.buffers)
    assert value[0] == "payload"
    assert bytes(value[1]) == bytes(3)
    assert cache.resolve_name("survey/2026") == ARRAY
