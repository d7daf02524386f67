"""Which directories are accepted as a cache, and what is said about the others."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dask_batch.cache.directory import MARKER
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError, MissingEntryError

KEY = "ab" * 32


def test_a_new_cache_is_private_and_marked(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "above" / "cache")
    assert stat.S_IMODE(cache.path.stat().st_mode) == 0o700
    assert json.loads((cache.path / MARKER).read_bytes())["version"] == 1
    assert (cache.path / ".gitignore").read_text() == "*\n"
    assert Cache(cache.path, create=False).path == cache.path


def test_a_relative_path_is_fixed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = Cache("cache")
    monkeypatch.chdir("/")
    cache.publish(KEY, 1, {})
    assert cache.path == tmp_path / "cache"
    assert Cache(tmp_path / "cache").load(KEY) == 1


@pytest.mark.parametrize("name", ["a b", "it's", 'say "x"', "new\nline", "größe-ß-数", "$HOME`x`"])
def test_odd_paths(tmp_path: Path, name: str) -> None:
    cache = Cache(tmp_path / name)
    cache.publish(KEY, [1], {"function": "f"})
    assert Cache(str(cache.path), create=False).load(KEY) == [1]


def test_a_symbolic_link_to_a_directory_is_followed_and_kept(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    assert Cache(tmp_path / "link").path == tmp_path / "link"
    assert (tmp_path / "real" / MARKER).exists()


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(CacheError, match="is a file: name another"):
        Cache(tmp_path / "file")
    with pytest.raises(CacheError, match="symbolic link to nowhere"):
        Cache(tmp_path / "dangling")
    with pytest.raises(CacheError, match="cannot be made"):
        Cache(tmp_path / "file" / "below")


def test_without_create_a_cache_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(MissingEntryError):
        Cache(tmp_path / "cache", create=False)
    with pytest.raises(MissingEntryError, match="not a dask-batch cache"):
        Cache(tmp_path, create=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", [0o770, 0o703, 0o777])
def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    cache = Cache(tmp_path / "cache")
    cache.path.chmod(mode)
    for create in (True, False):
        with pytest.raises(CacheError, match=r"may be written by others.*chmod go-w"):
            Cache(cache.path, create=create)


def test_another_format_is_refused(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    (cache.path / MARKER).write_text('{"format": "dask-batch cache", "version": 2}')
    with pytest.raises(CacheError, match="is a cache of format 2"):
        Cache(cache.path)
    (cache.path / MARKER).write_text("garbage")
    with pytest.raises(CacheError, match="cannot be read"):
        Cache(cache.path)


def test_a_directory_with_files_of_the_user_keeps_them_visible(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("")
    tmp_path.chmod(0o700)
    Cache(tmp_path).publish(KEY, 1, {})
    assert not (tmp_path / ".gitignore").exists()


def test_a_directory_that_uses_our_names_otherwise_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    with pytest.raises(CacheError, match="holds 'results'"):
        Cache(tmp_path)


UNPRIVILEGED = """
import os, sys
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError
os.setuid(12345)
try:
    Cache(sys.argv[1])
except CacheError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(("below", "words"), [("", "not writable"), ("new", "cannot be made")])
def test_a_directory_that_is_not_writable_is_refused(below: str, words: str) -> None:
    with tempfile.TemporaryDirectory(prefix="readonly") as name:
        os.chown(name, 12345, -1)
        os.chmod(name, 0o500)
        done = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, os.path.join(name, below)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert words in done.stdout
