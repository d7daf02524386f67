"""A cache of format 1 stays readable, whatever later versions write.

A fixture is never made anew: it is what the format was when it was made (``fixtures/make_cache.py``
makes one of today's). What the format gains gets a fixture of its own: ``cache-v1.1`` is of jobs
that are repeated, of stewards and windows, and of logs with checksums. The pickles name no library:
what those call their insides is theirs to change.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from dask_batch import verify
from dask_batch.cache import attempts
from dask_batch.cache.checkpoints import checkpoint_path
from dask_batch.cache.claims import Claims, Owner
from dask_batch.cache.definitions import read_definition, read_headers
from dask_batch.cache.followers import Followers
from dask_batch.cache.store import Cache
from dask_batch.code import pickling

FIXTURES = Path(__file__).parent / "fixtures"

ARRAY, FORTRAN, DATES, TABLE, SCALAR, PICKLE, EMPTY, VALUE, FAILED = (
    f"{n:x}" * 64 for n in range(1, 10)
)


@pytest.fixture(params=["cache-v1", "cache-v1.1"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Cache:
    return copied(request.param, tmp_path)


@pytest.fixture
def first(tmp_path: Path) -> Cache:
    return copied("cache-v1", tmp_path)


@pytest.fixture
def repeats(tmp_path: Path) -> Cache:
    return copied("cache-v1.1", tmp_path)


def copied(name: str, tmp_path: Path) -> Cache:
    """Return a copy with the modes that a cache has, which version control does not keep."""
    path = tmp_path / "cache"
    shutil.copytree(FIXTURES / name, path)
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
    report = verify(cache.path)
    assert report.ok, str(report)
    assert not report.stray


def test_claims_runs_and_logs(first: Cache) -> None:
    cache = first
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


def test_attempts(first: Cache) -> None:
    cache = first
    start = attempts.read_start(cache, ARRAY, 0)
    assert start is not None
    assert (start["job_id"], start["restart"]) == ("4711", 1)
    end = attempts.read_end(cache, ARRAY, 0)
    assert end is not None
    assert (end["outcome"], end["message"]) == ("exception", "ValueError: größe")


def test_definitions_and_names(first: Cache) -> None:
    cache = first
    definition = read_definition(cache.path / "definitions" / "run-a.h5", 1)
    assert definition.common == {"working_directory": "/somewhere"}
    assert definition.header == {"key": FORTRAN}
    value = pickling.loads(definition.data, definition.buffers)
    assert value[0] == "payload"
    assert bytes(value[1]) == bytes(3)
    assert cache.resolve_name("survey/2026") == ARRAY


# ---- as jobs are repeated ----------------------------------------------------------------------


def test_repeated_runs_windows_and_stewards(repeats: Cache) -> None:
    claims = Claims(repeats)
    assert [claim.run.id for claim in claims.generations(ARRAY)] == ["run-a", "run-a"]
    assert [claim.run.id for claim in claims.generations(FAILED)] == ["run-a", "run-b"]
    assert claims.latest(ARRAY, "run-a") == (1, True)
    log = claims.log("run-a")
    assert log.ids == {"example-run-a-0": "4711", "steward-run-a-0": "4712"}
    assert (log.accepted, log.released, log.aborted) == (True, True, False)
    assert (log.left, log.awaited) == ({"example-run-a-1"}, ("run-b",))
    other = claims.log("run-b")
    assert (other.ids, other.aborted) == ({"example-run-b-0": "local-1"}, True), "of its heir"
    assert Followers(repeats).disowned("run-a") == {ARRAY}
    assert claims.unsettled() == []


def test_attempts_that_were_cut_short(repeats: Cache) -> None:
    start = attempts.read_start(repeats, ARRAY, 0)
    assert start is not None
    assert (start["job_id"], start["restart"]) == ("4711", 1)
    cut = attempts.read_cut(repeats, ARRAY, 0)
    assert cut is not None
    assert (cut["signal"], cut["left_s"], cut["job_id"]) == ("SIGUSR1", 30.0, "4711")
    end = attempts.read_end(repeats, ARRAY, 0)
    assert end is not None
    assert (end["outcome"], end["message"][-5:]) == ("timeout", "größe")
    assert attempts.read_end(repeats, ARRAY, 1) is None
    assert (checkpoint_path(repeats, FAILED) / "state").read_text() == "step 7\n"


def test_definitions_of_repeatable_jobs(repeats: Cache) -> None:
    path = repeats.path / "definitions" / "run-a.h5"
    common, headers = read_headers(path)
    assert common["resources"] == [{"cores": 2, "memory_max": 1.5}]
    assert [header["key"] for header in headers] == [ARRAY, FAILED]
    assert headers[0]["retry"] == {
        "retries": 2, "exceptions": ["OSError"], "memory_factor": 2.0, "time_factor": 1.5,
    }  # fmt: skip
    definition = read_definition(path, 1)
    assert definition.header == headers[1]
    value = pickling.loads(definition.data, definition.buffers)
    assert (value[0], bytes(value[1])) == ("payload", bytes(3))
    assert repeats.resolve_name("survey/2026") == ARRAY


def test_what_is_made_today_is_what_the_newest_fixture_is(repeats: Cache, tmp_path: Path) -> None:
    script = str(FIXTURES / "make_cache.py")
    subprocess.run([sys.executable, script, str(tmp_path / "new")], check=True, timeout=120)
    made = {p.relative_to(tmp_path / "new") for p in (tmp_path / "new").rglob("*") if p.is_file()}
    kept = {p.relative_to(repeats.path) for p in repeats.path.rglob("*") if p.is_file()}
    assert made == kept, "the format has gained something: make a fixture of it"
    # Results are the same bytes with the same HDF5; records and logs are everywhere.
    for name in made:
        if name.suffix != ".h5":
            assert (tmp_path / "new" / name).read_bytes() == (repeats.path / name).read_bytes()
