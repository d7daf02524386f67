"""Whose file is it? Asked of the open file, before anything in it is unpickled."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dask_batch import SingleNodeExecutor
from dask_batch.cache import attempts
from dask_batch.cache.definitions import DefinitionDraft, read_definition, write_definitions
from dask_batch.cache.store import Cache
from dask_batch.code import pickling
from dask_batch.errors import CacheError

KEY = "ab" * 32
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")


@pytest.fixture
def stranger() -> pwd.struct_passwd:
    """Return another user of this machine."""
    return pwd.getpwnam("nobody")


@dataclass
class Trap:
    """Unpickling it leaves a trace."""

    path: Path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def publish(cache: Cache, trap: Trap) -> None:
    """Publish a trap, and set it again: a result of the user's class is tried out before."""
    cache.publish(KEY, trap, {})
    trap.path.rmdir()


# ---- every kind of file that may hold a pickle -------------------------------------------------


@dataclass
class Kind:
    """A file of the cache, and what reads it."""

    path: Path
    read: Callable[[], Any]


def a_result(cache: Cache, trap: Trap) -> Kind:
    publish(cache, trap)
    return Kind(cache.path_of(KEY), lambda: cache.load(KEY))


def the_attributes_of_a_result(cache: Cache, trap: Trap) -> Kind:
    publish(cache, trap)
    return Kind(cache.path_of(KEY), lambda: cache.attributes(KEY))


def a_definition(cache: Cache, trap: Trap) -> Kind:
    draft = DefinitionDraft({"key": KEY}, pickling.dumps(trap))
    path = write_definitions(cache, "run", {}, [draft])

    def read() -> Any:
        found = read_definition(path, 0)
        return pickling.loads(found.data, found.buffers)

    return Kind(path, read)


def an_end_record(cache: Cache, trap: Trap) -> Kind:
    attempts.end(cache, KEY, 0, {"outcome": "exception"})
    (path,) = cache.path.glob("attempts/*/*.end")
    return Kind(path, lambda: attempts.read_end(cache, KEY, 0))


def a_start_record(cache: Cache, trap: Trap) -> Kind:
    attempts.start(cache, KEY, 0, {"job_id": "1"})
    (path,) = cache.path.glob("attempts/*/*.start")
    return Kind(path, lambda: attempts.read_start(cache, KEY, 0))


def a_name(cache: Cache, trap: Trap) -> Kind:
    cache.bind_name("survey", KEY)
    (path,) = cache.path.glob("names/*/*")
    return Kind(path, lambda: cache.resolve_name("survey"))


def the_marker(cache: Cache, trap: Trap) -> Kind:
    return Kind(cache.path / "dask-batch-cache.json", lambda: Cache(cache.path))


def group_may_write(path: Path, uid: int) -> None:
    path.chmod(0o620)


def all_may_write(path: Path, uid: int) -> None:
    path.chmod(0o602)


def is_a_strangers(path: Path, uid: int) -> None:
    os.chown(path, uid, -1)


def is_a_link_to_a_strangers(path: Path, uid: int) -> None:
    aside = path.parent / "aside"
    path.rename(aside)
    os.chown(aside, uid, -1)
    path.symlink_to(aside)


def is_a_link_to_our_own(path: Path, uid: int) -> None:
    aside = path.parent / "aside"
    path.rename(aside)
    path.symlink_to(aside)


def is_a_second_name_of_a_strangers(path: Path, uid: int) -> None:
    aside = path.parent / "aside"
    path.rename(aside)
    os.chown(aside, uid, -1)
    os.link(aside, path)


def is_a_fifo(path: Path, uid: int) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def is_a_directory(path: Path, uid: int) -> None:
    path.unlink()
    path.mkdir(mode=0o700)


ALL = (
    a_result,
    the_attributes_of_a_result,
    a_definition,
    an_end_record,
    a_start_record,
    a_name,
    the_marker,
)
SPOILT = (
    group_may_write,
    all_may_write,
    is_a_link_to_our_own,
    is_a_fifo,
    is_a_directory,
    pytest.param(is_a_strangers, marks=needs_root),
    pytest.param(is_a_link_to_a_strangers, marks=needs_root),
    pytest.param(is_a_second_name_of_a_strangers, marks=needs_root),
)


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("make", ALL)
def test_what_others_may_have_written_is_not_read(
    make: Callable[[Cache, Trap], Kind],
    spoil: Callable[[Path, int], None],
    tmp_path: Path,
    stranger: pwd.struct_passwd,
) -> None:
    kind = make(Cache(tmp_path / "cache"), Trap(tmp_path / "TRAPPED"))
    spoil(kind.path, stranger.pw_uid)
    with pytest.raises(CacheError) as caught:
        kind.read()
    assert str(kind.path) in str(caught.value)
    assert not (tmp_path / "TRAPPED").exists()


@pytest.mark.parametrize("make", ALL)
def test_what_is_ours_is_read(make: Callable[[Cache, Trap], Kind], tmp_path: Path) -> None:
    make(Cache(tmp_path / "cache"), Trap(tmp_path / "TRAPPED")).read()
    assert (tmp_path / "TRAPPED").exists() == (make in (a_result, a_definition))


@needs_root
def test_a_file_that_is_swapped_all_the_time_is_never_a_strangers(
    tmp_path: Path, stranger: pwd.struct_passwd
) -> None:
    ours, theirs = Cache(tmp_path / "ours"), Cache(tmp_path / "theirs")
    ours.publish(KEY, "ours", {})
    publish(theirs, Trap(tmp_path / "TRAPPED"))
    kept, foreign = tmp_path / "kept", theirs.path_of(KEY)
    os.link(ours.path_of(KEY), kept)
    os.chown(foreign, stranger.pw_uid, -1)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for source in (foreign, kept):
                os.link(source, tmp_path / "next")
                os.rename(tmp_path / "next", ours.path_of(KEY))

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen = {"ours": 0, "refused": 0}
    try:
        for _ in range(300):
            try:
                seen[ours.load(KEY)] += 1
            except CacheError:
                seen["refused"] += 1
    finally:
        stop.set()
        swapper.join()
    assert sum(seen.values()) == 300
    assert not (tmp_path / "TRAPPED").exists()


@needs_root
@pytest.mark.parametrize("spoil", [is_a_strangers, group_may_write])
def test_a_job_does_not_run_a_strangers_definition(
    spoil: Callable[[Path, int], None], tmp_path: Path, stranger: pwd.struct_passwd
) -> None:
    with SingleNodeExecutor(cache_directory=tmp_path / "cache") as exe:
        assert exe.submit(os.makedirs, tmp_path / "TRAPPED").result(60) is None
    (tmp_path / "TRAPPED").rmdir()
    for result in tmp_path.glob("cache/results/*/*"):
        result.unlink()
    (definition,) = tmp_path.glob("cache/definitions/*.h5")
    spoil(definition, stranger.pw_uid)
    argv = [sys.executable, "-P", "-m", "dask_batch.job", str(definition), "0"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "belongs to" in done.stderr or "may be written by others" in done.stderr
    assert not (tmp_path / "TRAPPED").exists()


@needs_root
def test_a_directory_of_the_cache_may_be_a_strangers_but_not_its_files(
    tmp_path: Path, stranger: pwd.struct_passwd
) -> None:
    """Who may write a shard can take results away, and can put none there."""
    cache = Cache(tmp_path / "cache")
    kind = a_result(cache, Trap(tmp_path / "TRAPPED"))
    kind.path.parent.chmod(0o777)
    is_a_strangers(kind.path, stranger.pw_uid)
    with pytest.raises(CacheError, match="belongs to"):
        cache.load(KEY)
    assert not (tmp_path / "TRAPPED").exists()
