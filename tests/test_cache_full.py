"""A full disk, a used up quota, a limit on the size of files: said, and nothing half is left."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dask_batch import SingleNodeExecutor, clean, verify
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims, Owner, Run
from dask_batch.cache.definitions import DefinitionDraft, write_definitions
from dask_batch.cache.files import PRIVATE_PREFIX
from dask_batch.cache.store import Cache
from dask_batch.code import pickling
from dask_batch.errors import (
    DependencyFailedError,
    DiedTaskError,
    FullError,
    UnstorableResultError,
)

KEY, OTHER = "ab" * 32, "cd" * 32
PAGE = 4096


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    path = tmp_path / "small"
    path.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a tmpfs")
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=200,mode=700", "tmpfs", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(directory: Path, *, leave: int = 0) -> Path:
    """Use up the space of a file system, but for so many bytes."""
    filler = directory / "filler"
    with open(filler, "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(PAGE))
        file.truncate(max(0, file.tell() - leave))
    assert os.statvfs(directory).f_bavail * PAGE == leave
    return filler


def names(cache: Cache) -> set[str]:
    return {path.name for path in cache.path.rglob("*") if path.is_file()}


def a_run(run_id: str = "run") -> Run:
    return Run(run_id, Owner.current(), "local", 1.0, (("f-run-0", KEY), ("f-run-1", OTHER)))


def claim(cache: Cache) -> None:
    claims = Claims(cache)
    claims.begin(a_run())
    claims.claim(KEY, a_run())


WRITES: dict[str, Callable[[Cache], Any]] = {
    "result": lambda cache: cache.publish(KEY, np.zeros(1000), {"function": "f"}),
    "definitions": lambda cache: write_definitions(
        cache, "run", {}, [DefinitionDraft({}, pickling.dumps(bytes(10_000)))]
    ),
    "end": lambda cache: attempts.end(cache, KEY, 0, {"outcome": "exception"}),
    "start": lambda cache: attempts.start(cache, KEY, 0, {"job_id": "1"}),
    "cut": lambda cache: attempts.record_cut(cache, KEY, 0, {"time": 1.0}),
    "name": lambda cache: cache.bind_name("name", KEY),
    "run": claim,
    "log": lambda cache: Claims(cache).record_job("begun", "f-run-0", "4711"),
}


@pytest.mark.parametrize("what", WRITES)
def test_what_does_not_fit_is_said_and_leaves_nothing(small: Path, what: str) -> None:
    cache = Cache(small / "cache")
    Claims(cache).begin(a_run("begun"))
    filler = fill(small)
    before = names(cache)
    with pytest.raises(FullError, match=r"no space is left.*free") as raised:
        WRITES[what](cache)
    assert raised.value.errno == errno.ENOSPC
    assert str(cache.path) in str(raised.value)
    left = names(cache) - before
    assert left <= {"begun.log"}, "an empty log is no half entry"
    assert verify(cache.path).ok
    filler.unlink()
    WRITES[what](cache)
    assert verify(cache.path).ok


def test_how_much_was_to_be_written_and_how_much_is_free_is_said(small: Path) -> None:
    cache = Cache(small / "cache")
    fill(small, leave=8 * PAGE)
    with pytest.raises(FullError, match=r"\(800 kB\).*32.8 kB and \d+ inodes free"):
        cache.publish(KEY, np.zeros(100_000), {})
    assert cache.publish(KEY, 1, {})


def test_what_a_full_disk_calls_for_works_on_it(small: Path) -> None:
    cache = Cache(small / "cache")
    cache.publish(KEY, np.zeros(1000), {"function": "f"})
    fill(small)
    for number in range(300):  # nor inodes
        try:
            (small / str(number)).touch()
        except OSError:
            break
    assert clean(cache.path, keys=KEY).removed == {"results": 1}
    assert cache.present([KEY]) == set()


def test_no_inodes_are_left(small: Path) -> None:
    cache = Cache(small / "cache")
    for number in range(300):
        try:
            (small / str(number)).touch()
        except OSError:
            break
    with pytest.raises(FullError, match="0 inodes free"):
        cache.publish(KEY, 1, {})


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EDQUOT, "quota is exceeded.*dask_batch.clean"),
        (errno.ENOSPC, "no space is left.*dask_batch.clean"),
        (errno.EFBIG, "ulimit -f"),
    ],
)
@pytest.mark.parametrize("call", ["open", "write", "fsync", "link", "mkdir"])
def test_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, words: str
) -> None:
    cache = Cache(tmp_path / "cache")
    original = getattr(os, call)

    def refuse(*args: Any, **options: Any) -> Any:
        if call != "open" or args[1] & os.O_CREAT:
            raise OSError(number, os.strerror(number), *args[:1])
        return original(*args, **options)

    with monkeypatch.context() as full:
        full.setattr(f"os.{call}", refuse)
        with pytest.raises(FullError, match=words) as raised:
            cache.publish(KEY, 1, {})
    assert raised.value.errno == number
    assert not [path for path in cache.path.rglob("*") if path.name.startswith(PRIVATE_PREFIX)]
    assert cache.publish(KEY, 1, {})


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN, "Python asks to be told, not killed"
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(FullError, match="ulimit -f"):
            cache.publish(KEY, np.zeros(100_000), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(cache.path_of(KEY).parent) == []


def test_a_hand_over_that_does_not_fit_fails_its_caller_and_blocks_nobody(small: Path) -> None:
    cache = Cache(small / "cache")
    with SingleNodeExecutor(cache_directory=cache.path) as executor:
        assert executor.submit(pow, 2, 5).result(timeout=120) == 32
        for pages in range(8):
            filler = fill(small, leave=pages * PAGE)
            failed = executor.submit(len, bytes(20_000) + bytes([pages]))
            assert isinstance(failed.exception(timeout=120), FullError), pages
            filler.unlink()
            again = executor.submit(len, bytes(20_000) + bytes([pages]))
            assert again.result(timeout=120) == 20_001, pages
    assert verify(cache.path).ok
    assert "temporary" not in clean(cache.path).removed


def test_a_result_that_does_not_fit_ends_its_job_with_the_reason(small: Path) -> None:
    cache = Cache(small / "cache")
    with SingleNodeExecutor(cache_directory=cache.path) as executor:
        failed = executor.submit(bytes, 3_000_000)
        with pytest.raises(UnstorableResultError, match=r"no space is left.* free"):
            failed.result(timeout=120)
        assert executor.submit(len, b"abc").result(timeout=120) == 3
    assert verify(cache.path).ok
    assert "temporary" not in clean(cache.path).removed


def fill_and_die(directory: Path) -> None:
    with open(directory / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(PAGE))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_failure_that_cannot_be_recorded_is_told_all_the_same(small: Path) -> None:
    cache = Cache(small / "cache")
    pace = {"shortest_poll_s": 0.3, "failure_grace_s": 0.5}
    with SingleNodeExecutor(cache_directory=cache.path, **pace) as executor:
        failed = executor.submit(fill_and_die, small)
        child = executor.submit(str, failed)
        assert isinstance(failed.exception(timeout=60), DiedTaskError)
        assert isinstance(child.exception(timeout=60), DependencyFailedError)
        (small / "filler").unlink()
        assert executor.submit(len, b"abc").result(timeout=60) == 3
    assert verify(cache.path).ok
