"""Private files of the dead are removed, those of the living are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dask_batch.cache import owner
from dask_batch.cache.files import private_path
from dask_batch.cache.housekeeping import clean_temporary
from dask_batch.cache.owner import Owner
from dask_batch.cache.store import Cache

DAY_S = 24 * 3600


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def renamed(directory: Path, **changes: str) -> Path:
    """Return a private name of another writer."""
    parts = dict(
        zip(
            ("prefix", "host", "boot", "pid", "started", "token"),
            private_path(directory).name.split("~"),
            strict=True,
        )
    )
    return directory / "~".join({**parts, **changes}.values())


@pytest.mark.parametrize(
    ("changes", "age_s", "removed"),
    [
        ({}, 100 * DAY_S, False),
        ({"started": "1"}, 0, True),
        ({"pid": "4194305"}, 0, True),
        ({"boot": "00000000"}, 0, True),
        ({"host": "elsewhere"}, DAY_S, False),
        ({"host": "elsewhere"}, 8 * DAY_S, True),
        ({"pid": "unreadable"}, DAY_S, False),
    ],
    ids=["mine", "reused pid", "dead", "earlier boot", "young elsewhere", "old elsewhere", "odd"],
)
def test_whose_files_go(cache: Cache, changes: dict[str, str], age_s: int, removed: bool) -> None:
    for section in ("results/ab", "runs", "."):
        (cache.path / section).mkdir(parents=True, exist_ok=True)
        path = renamed(cache.path / section, **changes)
        path.touch()
        now = path.stat().st_mtime
        os.utime(path, (now - age_s, now - age_s))
        assert clean_temporary(cache) == int(removed)
        assert path.exists() is not removed
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("namespace", "pid", "removed"),
    [("4026532001", None, False), ("4026532001", "4194305", True), ("4026532999", "1", False)],
    ids=["mine", "dead in my container", "in another container"],
)
def test_in_a_container_too(
    cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
    namespace: str,
    pid: str | None,
    removed: bool,
) -> None:
    boot = Owner.current().boot_id.partition(":")[0]
    monkeypatch.setattr("dask_batch.cache.owner._boot_id", lambda: f"{boot}:4026532001")
    owner._of_process.cache_clear()
    try:
        changes = {"boot": f"{boot.replace('-', '')[:8]}-{namespace}"}
        path = renamed(cache.path, **changes, **({"pid": pid} if pid else {}))
        path.touch()
        assert clean_temporary(cache) == int(removed)
    finally:
        owner._of_process.cache_clear()


def test_what_is_published_stays(cache: Cache) -> None:
    key = "ab" * 32
    cache.publish(key, 1, {})
    cache.bind_name("name", key)
    assert clean_temporary(cache, grace_s=-1e9) == 0
    assert cache.load(key) == 1
    assert cache.resolve_name("name") == key
    assert not [name for name in os.listdir(cache.path) if name.startswith(".tmp")]
