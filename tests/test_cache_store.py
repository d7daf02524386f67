"""The store: once, whole, verified, whatever is killed or damaged."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dask_batch.cache import layout
from dask_batch.cache.housekeeping import clean_temporary
from dask_batch.cache.store import Cache
from dask_batch.errors import (
    CacheError,
    DamagedEntryError,
    MissingEntryError,
    SerializationError,
    UnreadableResultError,
)

KEY = "ab" * 32
ATTRIBUTES = {"function": "f", "name": "('x', 0)", "resources": {"cores": 1}, "runtime": 0.25}
VALUES = [np.arange(40.0).reshape(5, 8), {"a": np.arange(9), "b": "text"}]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def in_child(action: Callable[[], Any]) -> int:
    """Run an action in a forked process; return how it ended, as ``os.waitpid`` says."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def same(back: Any, value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return type(back) is np.ndarray and np.array_equal(back, value)
    return bool(back["b"] == value["b"] and np.array_equal(back["a"], value["a"]))


# ---- publishing and loading --------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["copy", "map"])
@pytest.mark.parametrize("value", VALUES, ids=["array", "pickle"])
def test_what_was_published_is_loaded(cache: Cache, value: Any, mode: Any) -> None:
    assert cache.publish(KEY, value, ATTRIBUTES)
    assert same(cache.load(KEY, mode=mode), value)
    assert cache.check(KEY)
    assert cache.present([KEY, "0" * 64]) == {KEY}
    assert list(cache.keys()) == [KEY]
    assert cache.size(KEY) == cache.path_of(KEY).stat().st_size
    noted = cache.attributes(KEY)
    assert isinstance(noted.pop("created"), float)
    assert noted == ATTRIBUTES


def test_the_first_result_stays(cache: Cache) -> None:
    assert cache.publish(KEY, 1, {})
    before = cache.path_of(KEY).read_bytes()
    assert not cache.publish(KEY, 2, {})
    assert cache.path_of(KEY).read_bytes() == before


def test_what_is_missing_is_said(cache: Cache) -> None:
    for ask in (cache.load, cache.attributes, cache.size):
        with pytest.raises(MissingEntryError):
            ask(KEY)
    assert not cache.check(KEY)
    assert not cache.retire(KEY)
    assert cache.present([]) == set()
    assert list(cache.keys()) == []


@pytest.mark.parametrize("key", ["", "../" + "a" * 61, "A" * 64, "a" * 63, "a" * 64 + "\n", None])
def test_only_keys_are_keys(cache: Cache, key: Any) -> None:
    with pytest.raises(ValueError, match="not a key"):
        cache.publish(key, 1, {})


def test_large_arrays_are_mapped_copy_on_write(cache: Cache) -> None:
    value = {"big": np.arange(100_000.0), "small": np.arange(3)}
    cache.publish(KEY, value, {})
    before = cache.path_of(KEY).read_bytes()
    mapped = cache.load(KEY, mode="map")
    mapped["big"][:] = -1
    mapped["small"][:] = -1
    assert cache.path_of(KEY).read_bytes() == before
    assert np.array_equal(cache.load(KEY, mode="map")["big"], value["big"])
    assert mapped["big"].ctypes.data % 64 == 0
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert any(KEY in line for line in maps)


def test_a_mapped_array_outlives_its_file(cache: Cache) -> None:
    cache.publish(KEY, np.arange(100_000.0), {})
    mapped = cache.load(KEY, mode="map")
    cache.retire(KEY)
    assert mapped.sum() == np.arange(100_000.0).sum()
    assert type(mapped) is np.ndarray


def test_an_array_is_written_without_a_copy_and_read_back_whole(cache: Cache) -> None:
    value = np.random.default_rng(0).integers(0, 255, (3, 1 << 20), np.uint8)
    cache.publish(KEY, value, {})
    assert np.array_equal(cache.load(KEY), value)
    with h5py.File(cache.path_of(KEY)) as file:
        assert np.array_equal(file["value"][()], value)


def test_presence_of_many(cache: Cache) -> None:
    keys = [f"{i:064x}" for i in range(40)] + [f"{i:02x}" + "0" * 62 for i in range(1, 250)]
    for key in keys[::10]:
        cache.path_of(key).parent.mkdir(parents=True, exist_ok=True)
        cache.path_of(key).touch()
    assert cache.present(keys) == set(keys[::10])


@pytest.mark.parametrize(
    "value",
    [
        "",
        "a\nb",
        "\0",
        "\ud800",
        "x" * 100_000,
        ["y" * 70_000],
        None,
        True,
        2**80,
        -1,
        [],
        {"a": {}},
    ],
    ids=lambda value: repr(value)[:20],
)
def test_any_attribute_comes_back_and_hdf5_shows_it(cache: Cache, value: Any) -> None:
    cache.publish(KEY, np.arange(3), {"noted": value})
    assert cache.attributes(KEY)["noted"] == value
    assert cache.load(KEY).tolist() == [0, 1, 2]
    with h5py.File(cache.path_of(KEY)) as file:
        if "noted" in file.attrs:
            shown = file.attrs["noted"]
        elif "noted_json" in file.attrs:
            shown = json.loads(file.attrs["noted_json"])
        else:
            shown = json.loads(bytes(file["attributes/noted_json"][()]))
    assert shown == value


def test_names_of_attributes_are_checked(cache: Cache) -> None:
    for name in ("key", "A b", "x_json", ""):
        with pytest.raises(ValueError, match="not a name for an attribute"):
            cache.publish(KEY, 1, {name: 1})


class Refusing:
    """Comes back only where it is welcome."""

    welcome = True

    def __init__(self, refusal: BaseException) -> None:
        self.refusal = refusal

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not Refusing.welcome:
            raise self.refusal


@pytest.mark.parametrize("refusal", [ZeroDivisionError("no"), SystemExit(0)])
def test_a_value_that_cannot_be_unpickled_here_says_where_it_came_from(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, refusal: BaseException
) -> None:
    cache.publish(KEY, Refusing(refusal), {"function": "fit", "job_id": "7"})
    monkeypatch.setattr(Refusing, "welcome", False)
    told = f"result of fit .*{type(refusal).__name__}"
    with pytest.raises(UnreadableResultError, match=told) as e:
        cache.load(KEY)
    assert type(e.value.__cause__) is type(refusal)
    assert (e.value.key, e.value.function, e.value.job_id) == (KEY, "fit", "7")
    assert str(cache.path) in e.value.evidence
    assert cache.present([KEY]) == {KEY}


@pytest.mark.parametrize("refusal", [ZeroDivisionError("no"), SystemExit(0)])
def test_what_can_never_be_unpickled_is_not_stored(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, refusal: BaseException
) -> None:
    monkeypatch.setattr(Refusing, "welcome", False)
    with pytest.raises(SerializationError, match=type(refusal).__name__):
        cache.publish(KEY, [Refusing(refusal)], {})
    assert cache.present([KEY]) == set()


class Doubling:
    def __init__(self) -> None:
        self.array = np.ones(1000)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.array = state["array"]
        self.array *= 2


def test_trying_a_value_out_does_not_change_it(cache: Cache) -> None:
    value = Doubling()
    cache.publish(KEY, value, {})
    assert value.array.sum() == 1000
    assert cache.load(KEY).array.sum() == 2000


def test_retired_results_make_room(cache: Cache) -> None:
    cache.publish(KEY, 1, {})
    assert cache.retire(KEY)
    assert cache.publish(KEY, 2, {})
    assert cache.load(KEY) == 2
    assert cache.retire(KEY)
    assert len(os.listdir(cache.path / "retired")) == 2


# ---- what the format promises ------------------------------------------------------------------


def test_the_head_and_hdf5_agree_on_where_things_are(cache: Cache) -> None:
    cache.publish(KEY, [np.arange(10), np.zeros(0), b"x" * 9], {"long": "x" * 100_000})
    fd = os.open(cache.path_of(KEY), os.O_RDONLY)
    head = layout.read_head(fd)
    os.close(fd)
    data = cache.path_of(KEY).read_bytes()
    with h5py.File(cache.path_of(KEY)) as file:
        assert file.userblock_size == head.userblock
        assert file.attrs["key"] == KEY
        for name, offset, size in head.parts:
            assert file[name].nbytes == size
            assert data[offset : offset + size] == file[name][()].tobytes()
            assert not size or offset % 64 == 0


def test_a_format_that_is_not_known_is_refused_and_left_alone(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr(layout, "VERSION", 2)
        cache.publish(KEY, 1, {})
    with pytest.raises(CacheError, match="format 2 is not known") as raised:
        cache.load(KEY)
    assert not isinstance(raised.value, DamagedEntryError)
    assert cache.present([KEY]) == {KEY}


# ---- damage ------------------------------------------------------------------------------------


def damaged_copies(data: bytes) -> Iterator[bytes]:
    """Yield what accidents make of a file."""
    rng = random.Random(0)
    for position in {*range(600), *range(600, len(data), 5)}:
        copy = bytearray(data)
        copy[position] ^= 1 << rng.randrange(8)
        yield bytes(copy)
    for length in {0, 1, 45, 46, 511, 512, len(data) - 1, *range(0, len(data), 97)}:
        yield data[:length]
        yield data[:length] + bytes(len(data) - length)
    yield data + b"\0"
    yield data[:4096] * 3


@pytest.mark.parametrize("value", VALUES, ids=["array", "pickle"])
def test_no_damage_ever_becomes_a_value(cache: Cache, value: Any) -> None:
    logging.getLogger("dask_batch.cache.store").setLevel(logging.ERROR)
    cache.publish(KEY, value, ATTRIBUTES)
    path = cache.path_of(KEY)
    data = path.read_bytes()
    for damaged in damaged_copies(data):
        if damaged == data:
            continue
        path.write_bytes(damaged)
        path.chmod(0o600)
        with contextlib.suppress(DamagedEntryError):
            assert cache.attributes(KEY)["name"] == ATTRIBUTES["name"]
            with pytest.raises(DamagedEntryError):
                cache.load(KEY, mode="map")
        assert not path.exists()
    logging.getLogger("dask_batch.cache.store").setLevel(logging.NOTSET)
    assert cache.publish(KEY, value, ATTRIBUTES)
    assert same(cache.load(KEY), value)


def test_check_sets_damage_aside_with_a_warning(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.publish(KEY, 1, {})
    with open(cache.path_of(KEY), "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert not cache.check(KEY)
    assert "is damaged" in caplog.text
    assert cache.present([KEY]) == set()
    assert len(os.listdir(cache.path / "damaged")) == 1


def test_an_entry_under_another_key_is_damaged(cache: Cache) -> None:
    cache.publish(KEY, 1, {})
    other = "cd" * 32
    cache.path_of(other).parent.mkdir(parents=True)
    os.rename(cache.path_of(KEY), cache.path_of(other))
    with pytest.raises(DamagedEntryError, match="holds the key"):
        cache.load(other)


def test_a_new_entry_is_not_set_aside_for_an_old_one(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.publish(KEY, 1, {})
    cache.path_of(KEY).write_bytes(b"garbage")
    read_head = layout.read_head

    def replaced_meanwhile(fd: int) -> layout.Head:
        os.unlink(cache.path_of(KEY))
        cache.publish(KEY, 2, {})
        return read_head(fd)

    with monkeypatch.context() as patch:
        patch.setattr("dask_batch.cache.entries.read_head", replaced_meanwhile)
        with pytest.raises(DamagedEntryError):
            cache.load(KEY)
    assert cache.load(KEY) == 2


def test_an_entry_that_others_may_write_is_not_unpickled(cache: Cache) -> None:
    cache.publish(KEY, 1, {})
    cache.path_of(KEY).chmod(0o606)
    for ask in (cache.load, cache.check, cache.attributes):
        with pytest.raises(CacheError, match="may be written by others"):
            ask(KEY)


# ---- killed, and raced -------------------------------------------------------------------------

STEPS = ("open", "fchmod", "mkdir", "write", "fsync", "link", "unlink", "close")


def killed_at(step: int, action: Callable[[], Any]) -> int:
    """Run an action in a process that is killed right before its n-th system call."""
    calls = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapper

    def doomed() -> None:
        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        action()

    return in_child(doomed)


def test_killed_at_any_step_a_result_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    outcomes = set()
    for step in range(1, 100):
        cache = Cache(tmp_path / str(step))
        status = killed_at(step, lambda cache=cache: cache.publish(KEY, VALUES[0], ATTRIBUTES))
        if cache.present([KEY]):
            assert same(cache.load(KEY), VALUES[0])
        else:
            assert cache.publish(KEY, VALUES[0], ATTRIBUTES)
        outcomes.add(status)
        clean_temporary(cache)
        assert os.listdir(cache.path_of(KEY).parent) == [f"{KEY}.h5"]
        if status == 0:
            break
    assert outcomes == {signal.SIGKILL, 0}
    assert step > 12


def test_killed_at_any_step_of_its_creation_a_cache_can_be_opened(tmp_path: Path) -> None:
    for step in range(1, 100):
        path = tmp_path / str(step)
        status = killed_at(step, lambda path=path: Cache(path))
        assert Cache(path).publish(KEY, 1, {})
        if status == 0:
            break
    assert status == 0


def test_of_several_writers_one_publishes(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    for round_ in range(15):
        key = f"{round_:064x}"
        results, gate = os.pipe(), os.pipe()
        children = []
        for writer in range(3):
            pid = os.fork()
            if pid == 0:
                os.close(gate[1])
                os.read(gate[0], 1)  # returns when the parent opens the gate, for all at once
                won = cache.publish(key, [writer, np.arange(100)], {})
                os.write(results[1], f"{writer}{int(won)} ".encode())
                os._exit(0)
            children.append(pid)
        for fd in (*gate, results[1]):
            os.close(fd)
        statuses = [os.waitpid(pid, 0)[1] for pid in children]
        answers = os.read(results[0], 100).split()
        os.close(results[0])
        assert statuses == [0, 0, 0]
        winners = [int(answer[:1]) for answer in answers if answer.endswith(b"1")]
        assert winners == [cache.load(key)[0]]


# ---- names -------------------------------------------------------------------------------------


def test_a_name_stands_for_the_first_key(cache: Cache) -> None:
    assert cache.resolve_name("survey/2026") is None
    assert cache.bind_name("survey/2026", KEY) is None
    assert cache.bind_name("survey/2026", "cd" * 32) == KEY
    assert cache.resolve_name("survey/2026") == KEY
    cache.unbind_name("survey/2026")
    cache.unbind_name("survey/2026")
    assert cache.resolve_name("survey/2026") is None


@pytest.mark.parametrize("name", ["", "/abs", "../up", "a/../b", "a//b", "a/", ".", "a\0b", None])
def test_a_name_cannot_leave_the_cache(cache: Cache, name: Any) -> None:
    with pytest.raises(ValueError, match="is not a name"):
        cache.bind_name(name, KEY)


@pytest.mark.parametrize("name", ["a", "a.json", "größe/\ud800", "x" * 5000, "a b\n"])
def test_names_may_be_odd(cache: Cache, name: str) -> None:
    assert cache.bind_name(name, KEY) is None
    assert cache.resolve_name(name) == KEY


# ---- what it costs -----------------------------------------------------------------------------


def test_importing_the_store_imports_little() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import dask_batch.cache.store, sys; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert {"h5py", "numpy", "xxhash"} <= loaded
    assert not loaded & {"dask", "networkx", "jinja2", "pandas", "psutil", "yaml", "scipy"}
