"""Flipped bits and truncations: found or harmless, never a wrong value or attribute, never a crash.

The places are spread over a whole file, and lie closer where there is more structure: its head, the
edges of its parts, its end.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dask_batch.cache import attempts, layout
from dask_batch.cache.claims import Claims, Owner, Run
from dask_batch.cache.definitions import DefinitionDraft, read_definition, write_definitions
from dask_batch.cache.directory import MARKER
from dask_batch.cache.followers import Followers
from dask_batch.cache.records import read_record
from dask_batch.cache.store import Cache
from dask_batch.code import pickling
from dask_batch.errors import CacheError, DamagedEntryError

KEY, OTHER = "ab" * 32, "cd" * 32
ATTRIBUTES = {"function": "f", "name": "('x', 0)", "resources": {"cores": 1}, "long": "y" * 40_000}
PLACES = 500
VALUES = {
    "array": np.arange(9_000.0).reshape(90, 100),
    "mapped array": np.arange(40_000.0),
    "Fortran": np.asfortranarray(np.arange(600, dtype="i2").reshape(20, 30)),
    "table": np.array([(1, "a", "2026-01-31")], [("n", "i4"), ("t", "U3"), ("d", "M8[D]")]),
    "scalar": np.float32(0.1),
    "pickle": {"text": "größe" * 20, "list": [1, None]},
    "buffers": [np.arange(3_000.0), b"x" * 10, np.zeros(0), np.arange(40_000)],
    "nothing": np.zeros((0, 3)),
}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keep thousands of warnings out of the log."""
    log = logging.getLogger("dask_batch")
    before = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(before)


def places(data: bytes, edges: tuple[int, ...], rng: random.Random) -> list[int]:
    """Choose where to damage a file: around edges, and everywhere else."""
    near = {edge + step for edge in (0, *edges, len(data)) for step in range(-12, 12)}
    chosen = {place for place in near if 0 <= place < len(data)}
    while len(chosen) < min(PLACES, len(data)):
        chosen.add(rng.randrange(len(data)))
    return sorted(chosen)


def damages(data: bytes, edges: tuple[int, ...] = ()) -> Iterator[bytes]:
    """Yield what accidents make of a file: a bit flipped, the end cut off, the end zeroed."""
    rng = random.Random(len(data))
    for number, place in enumerate(places(data, edges, rng)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        yield bytes(flipped)
        if number % 5 == 0:
            yield data[:place]
            yield data[:place] + bytes(len(data) - place)


def damaged_each_way(path: Path, edges: tuple[int, ...] = ()) -> Iterator[None]:
    """Damage a file in one way after the other, and mend it at the end."""
    data = path.read_bytes()
    for damaged in damages(data, edges):
        if damaged != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(damaged)
            path.chmod(0o600)
            yield
    path.write_bytes(data)
    path.chmod(0o600)


def edges_of(path: Path) -> tuple[int, ...]:
    """Return where the parts of an HDF5 file of the cache begin and end."""
    fd = os.open(path, os.O_RDONLY)
    head = layout.read_head(fd)
    os.close(fd)
    inner = [edge for _, at, size in head.parts if size for edge in (at, at + size)]
    return (46, head.userblock, *inner)


# ---- results ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VALUES)
def test_a_damaged_result_is_never_a_value(cache: Cache, kind: str) -> None:
    cache.publish(KEY, VALUES[kind], ATTRIBUTES)
    path = cache.path_of(KEY)
    tried = 0
    for _ in damaged_each_way(path, edges_of(path)):
        tried += 1
        try:
            noted = cache.attributes(KEY)
        except DamagedEntryError:
            assert not path.exists()
            continue
        assert {name: noted[name] for name in ATTRIBUTES} == ATTRIBUTES
        with pytest.raises(DamagedEntryError):
            cache.load(KEY, mode="map" if tried % 2 else "copy")
        assert not path.exists(), "it counts as absent from then on"
    assert tried >= PLACES


def test_a_damaged_result_is_never_a_hit(cache: Cache) -> None:
    cache.publish(KEY, VALUES["array"], ATTRIBUTES)
    path = cache.path_of(KEY)
    for _ in damaged_each_way(path, edges_of(path)):
        assert cache.look(KEY) is None


def test_what_is_returned_is_what_was_verified(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.publish(KEY, VALUES["buffers"], {})
    counted: dict[int, int] = {}
    preadv = os.preadv

    def changing(fd: int, buffers: list[Any], offset: int) -> int:
        count = preadv(fd, buffers, offset)
        counted[offset] = counted.get(offset, 0) + 1
        if counted[offset] > 1:  # a disk that tells something else when it is asked again
            buffers[0][:1] = b"?"
        return count

    monkeypatch.setattr("os.preadv", changing)
    loaded = cache.load(KEY)
    assert all(np.array_equal(a, b) for a, b in zip(loaded[2:], VALUES["buffers"][2:], strict=True))
    assert loaded[1] == b"x" * 10


def test_a_client_has_copies_which_no_later_damage_can_reach(cache: Cache) -> None:
    cache.publish(KEY, VALUES["mapped array"], {})
    loaded = cache.load(KEY)
    os.truncate(cache.path_of(KEY), 0)
    assert np.array_equal(loaded, VALUES["mapped array"])


@pytest.mark.parametrize("mode", ["copy", "map"])
def test_a_file_that_shrinks_while_it_is_read_is_damaged(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    cache.publish(KEY, VALUES["mapped array"], {})
    read_head = layout.read_head

    def shrinking(fd: int) -> layout.Head:
        head = read_head(fd)
        os.truncate(cache.path_of(KEY), head.size - 5)
        return head

    monkeypatch.setattr("dask_batch.cache.entries.read_head", shrinking)
    with pytest.raises(DamagedEntryError):
        cache.load(KEY, mode=mode)


# ---- definitions -----------------------------------------------------------------------------


def test_a_damaged_definition_is_never_another_task(cache: Cache) -> None:
    drafts = [
        DefinitionDraft({"index": i, "key": KEY}, pickling.dumps([i, np.arange(200.0 + i)]))
        for i in range(4)
    ]
    path = write_definitions(cache, "run", {"python": [3, 11]}, drafts)
    whole = read_definition(path, 2)
    found = 0
    for _ in damaged_each_way(path, edges_of(path)):
        try:
            assert read_definition(path, 2) == whole
        except DamagedEntryError as damaged:
            found += str(path) in str(damaged)
    assert found > 50


# ---- records ---------------------------------------------------------------------------------


def a_run(cache: Cache) -> None:
    claims = Claims(cache)
    run = Run("run", Owner.current(), "local", 1000.0, (("f-run-0", KEY),))
    claims.begin(run)
    claims.claim(KEY, run)


def records(cache: Cache) -> dict[str, tuple[Path, Callable[[], Any]]]:
    """Make one record of each kind; return where it is and what reads it."""
    a_run(cache)
    start = {"job_id": "7", "host": "h", "pid": 1, "boot_id": "b", "process_started": "5"}
    attempts.start(cache, KEY, 0, start)
    attempts.end(cache, KEY, 0, {"outcome": "exception", "message": "größe"})
    attempts.record_cut(cache, KEY, 0, {"time": 1.0, "left_s": 2.0})
    cache.bind_name("survey/1", KEY)
    Followers(cache).follow("run", [KEY])
    base, runs = cache.path / "attempts" / "ab" / KEY, cache.path / "runs"
    claim = cache.path / "claims" / "ab" / f"{KEY}.0"
    name = next((cache.path / "names").glob("*/*.json"))
    return {
        "run": (runs / "run.json", lambda: read_record(runs / "run.json")),
        "claim": (claim, lambda: read_record(claim)),
        "start": (Path(f"{base}.0.start"), lambda: attempts.read_start(cache, KEY, 0)),
        "end": (Path(f"{base}.0.end"), lambda: attempts.read_end(cache, KEY, 0)),
        "cut": (Path(f"{base}.0.cut"), lambda: attempts.read_cut(cache, KEY, 0)),
        "name": (name, lambda: cache.resolve_name("survey/1")),
        "follower": (next(runs.glob("run.wanted.*")), lambda: Followers(cache).wanted("run")),
    }


NOT_KNOWN: dict[str, Callable[[Any], bool]] = {
    "start": lambda found: found is None or bool(found.get("damaged")),
    "end": lambda found: bool(found.get("damaged")),
    "cut": lambda found: found is None,
    "name": lambda found: found is None,
    "follower": lambda found: found == set(),
}


@pytest.mark.parametrize("kind", ["run", "claim", "start", "end", "cut", "name", "follower"])
def test_a_damaged_record_is_never_another_record(cache: Cache, kind: str) -> None:
    path, read = records(cache)[kind]
    whole = read()
    for _ in damaged_each_way(path):
        if kind in ("run", "claim"):
            with pytest.raises(DamagedEntryError, match=str(path)):
                read()
        else:
            found = read()
            assert found == whole or NOT_KNOWN[kind](found), found
    assert read() == whole


def test_a_damaged_marker_is_told_with_what_to_write_into_it(cache: Cache) -> None:
    path = cache.path / MARKER
    for _ in damaged_each_way(path):
        try:
            harmless = json.loads(path.read_bytes())["version"] == 1
        except (ValueError, LookupError, TypeError):
            harmless = False
        if harmless:
            Cache(cache.path)
        else:
            with pytest.raises(CacheError, match=f"{MARKER} cannot be read|is a cache of format"):
                Cache(cache.path)
