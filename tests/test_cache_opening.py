"""Late, stale and failing file systems: what they do not say is not taken for an answer."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims, Owner, Run
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError, DamagedEntryError, MissingEntryError

KEY = "ab" * 32


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_what_cannot_be_read_is_neither_absent_nor_damaged(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    cache.publish(KEY, 1, {})

    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(number, os.strerror(number))

    for call in ("os.pread", "os.preadv"):
        with monkeypatch.context() as broken:
            broken.setattr(call, refuse)
            for ask in (cache.load, cache.check, cache.attributes):
                with pytest.raises(CacheError, match="cannot be read") as raised:
                    ask(KEY)
                assert not isinstance(raised.value, DamagedEntryError | MissingEntryError)
                assert raised.value.errno == number
    with monkeypatch.context() as broken:
        broken.setattr("os.stat", refuse)
        with pytest.raises(CacheError, match="cannot be read"):
            cache.present([KEY])
    assert cache.load(KEY) == 1


def test_a_stale_handle_is_opened_anew(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.publish(KEY, 1, {})
    for name in ("pread", "preadv", "stat", "open"):
        call, failures = getattr(os, name), [1]

        def once_stale(
            *args: Any, call: Any = call, failures: list[int] = failures, **options: Any
        ) -> Any:
            if failures.pop() if failures else 0:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return call(*args, **options)

        with monkeypatch.context() as stale:
            stale.setattr(f"os.{name}", once_stale)
            assert cache.present([KEY]) == {KEY}
            assert cache.load(KEY) == 1
            assert not failures


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Give what lets a file be absent, as an NFS client has it, until its directory is opened."""
    hidden: set[str] = set()
    open_, stat = os.open, os.stat

    def full(path: Any, options: dict[str, Any]) -> str:
        fd = options.get("dir_fd")
        return os.path.join(os.readlink(f"/proc/self/fd/{fd}"), path) if fd else os.fspath(path)

    def late_open(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_DIRECTORY:
            here = os.fspath(path)
            hidden.difference_update([name for name in hidden if os.path.dirname(name) == here])
        elif full(path, options) in hidden:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return open_(path, flags, *args, **options)

    def late_stat(path: Any, **options: Any) -> os.stat_result:
        if not isinstance(path, int) and full(path, options) in hidden:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return stat(path, **options)

    monkeypatch.setattr("os.open", late_open)
    monkeypatch.setattr("os.stat", late_stat)
    yield lambda path: hidden.add(os.fspath(path))
    assert not hidden, "nobody opened the directory"


def test_every_look_up_opens_the_directory_before_it_says_no(
    cache: Cache, late: Callable[[Path], None]
) -> None:
    cache.publish(KEY, 1, {"function": "f"})
    cache.bind_name("name", KEY)
    claims = Claims(cache)
    run = Run("run", Owner.current(), "local", 1.0, (("f-run-0", KEY),))
    claims.begin(run)
    claims.claim(KEY, run)
    claims.record_job("run", "f-run-0", "1")
    attempts.start(cache, KEY, 0, {"job_id": "1"})
    attempts.end(cache, KEY, 0, {"outcome": "exception"})
    named = next((cache.path / "names").glob("*/*.json"))
    base = cache.path / "attempts" / "ab" / KEY
    looks: list[tuple[Path, Callable[[], Any]]] = [
        (cache.path_of(KEY), lambda: cache.present([KEY])),
        (cache.path_of(KEY), lambda: cache.load(KEY)),
        (cache.path_of(KEY), lambda: cache.look(KEY)),
        (cache.path_of(KEY), lambda: cache.size(KEY)),
        (named, lambda: cache.resolve_name("name")),
        (Path(f"{base}.0.start"), lambda: attempts.read_start(cache, KEY, 0)),
        (Path(f"{base}.0.end"), lambda: attempts.read_end(cache, KEY, 0)),
        (cache.path / "claims" / "ab" / f"{KEY}.0", lambda: Claims(cache).current(KEY)),
        (cache.path / "runs" / "run.json", lambda: Claims(cache).run("run")),
        (cache.path / "runs" / "run.log", lambda: Claims(cache).log("run").ids),
    ]
    for path, look in looks:
        late(path)
        assert look(), path


def test_what_is_absent_costs_one_look_more(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.publish(KEY, 1, {})
    opened = []
    open_ = os.open

    def counted(path: Any, *args: Any, **options: Any) -> int:
        opened.append(os.fspath(path))
        return open_(path, *args, **options)

    monkeypatch.setattr("os.open", counted)
    other = KEY[:-1] + "0"
    with pytest.raises(MissingEntryError):
        cache.load(other)
    file, shard = str(cache.path_of(other)), str(cache.path_of(other).parent)
    assert opened == [file, shard, file]
