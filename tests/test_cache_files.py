"""Publishing without clobbering, opening with owner and mode checked."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dask_batch.cache.files import (
    check_directory,
    make_directory,
    open_owned,
    private_path,
    publish_bytes,
    publish_no_clobber,
    read_owned,
)
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError


@pytest.fixture
def tiny_file_system(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    path = tmp_path / "tiny"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(path)]
    if os.geteuid() != 0:
        pytest.skip("only root can mount a tmpfs")
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_the_first_writer_wins_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    assert publish_bytes(path, b"first")
    assert not publish_bytes(path, b"second")
    assert path.read_bytes() == b"first"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        publish_bytes(tmp_path / "d" / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "d" / "file").stat().st_mode) == 0o600


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def write(private: Path) -> None:
        private.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_no_clobber(tmp_path / "file", write)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_said_and_leaves_nothing(tiny_file_system: Path) -> None:
    with pytest.raises(CacheError, match="no space is left") as raised:
        publish_bytes(tiny_file_system / "file", bytes(2 << 20))
    assert raised.value.errno == errno.ENOSPC
    assert os.listdir(tiny_file_system) == []
    assert publish_bytes(tiny_file_system / "file", b"small")


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EDQUOT, "quota is exceeded"), (errno.EIO, "cannot be written")]
)
def test_other_refusals_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(CacheError, match=words):
        publish_bytes(tmp_path / "file", b"")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def no_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file system refuse every link."""

    def refuse(source: Path, target: Path, **_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", source, None, target)

    monkeypatch.setattr("os.link", refuse)


@pytest.mark.usefixtures("no_hard_links")
def test_without_hard_links_a_file_is_renamed_and_nothing_is_replaced(tmp_path: Path) -> None:
    assert publish_bytes(tmp_path / "file", b"first")
    assert not publish_bytes(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.usefixtures("no_hard_links")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EPERM])
def test_a_file_system_that_can_do_neither_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), source, None, target)

    monkeypatch.setattr("dask_batch.cache.files.rename_no_replace", refuse)
    with pytest.raises(CacheError, match="has no hard links"):
        publish_bytes(tmp_path / "file", b"")
    assert os.listdir(tmp_path) == []


def test_a_link_whose_answer_was_lost_counts_as_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_and_say_it_is_there(source: Path, target: Path, **_: object) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists", source, None, target)

    monkeypatch.setattr("os.link", link_and_say_it_is_there)
    assert publish_bytes(tmp_path / "file", b"mine")


def test_private_names_are_unique(tmp_path: Path) -> None:
    assert len({private_path(tmp_path) for _ in range(100)}) == 100


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_not_opened(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    path.chmod(mode)
    with pytest.raises(CacheError, match="may be written by others"):
        open_owned(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    path.chmod(0o600)
    os.chown(path, 12345, -1)
    with pytest.raises(CacheError, match="belongs to user 12345"):
        open_owned(path)
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(CacheError, match="belongs to user 12345"):
        check_directory(tmp_path)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "link").symlink_to("target")
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(CacheError, match="symbolic link"):
        open_owned(tmp_path / "link")
    with pytest.raises(CacheError, match="not a regular file"):
        open_owned(tmp_path / "fifo")
    with pytest.raises(CacheError, match="not a regular file"):
        open_owned(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_owned(tmp_path / "missing")


def test_a_cache_that_is_gone_is_not_brought_back_in_part(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "results").path  # which may have a section's name
    assert publish_bytes(cache / "attempts" / "ab" / "first", b"")
    shutil.rmtree(cache)
    for path in (cache / "attempts" / "ab" / "second", cache / "runs" / "second"):
        with pytest.raises(CacheError, match=r"cache .*results is gone: it has been removed"):
            publish_bytes(path, b"")
    assert not cache.exists()


def test_make_directory_says_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CacheError, match="cannot be made"):
            make_directory(path)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc")
def test_a_file_system_that_makes_no_directories_says_so() -> None:
    with pytest.raises(CacheError, match="/proc/cache cannot be made"):
        make_directory(Path("/proc/cache"))
