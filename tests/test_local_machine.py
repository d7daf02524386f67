"""What of the machine may be used, and where the queue lives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dask_batch.backends.local import machine, runtime
from dask_batch.backends.local.machine import Machine
from dask_batch.backends.local.runtime import Runtime
from dask_batch.errors import BackendUnavailableError


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file system of control groups with this process in ``a/b``."""
    root = tmp_path / "cgroup"
    (root / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(machine, "_CONTROL_GROUPS", root)
    monkeypatch.setattr(machine, "_affinity", lambda: 64)
    membership = tmp_path / "membership"
    membership.write_text("0::/a/b\n4:cpu,cpuacct:/a\n5:memory:/nowhere/mounted\n")
    monkeypatch.setattr(machine, "_MEMBERSHIP", membership)
    return root


def test_without_limits_the_affinity_counts(groups: Path) -> None:
    (groups / "a" / "cpu.max").write_text("max 100000\n")
    (groups / "memory").mkdir()
    (groups / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert Machine.here().cpus == 64
    assert Machine.here().memory_bytes > 2**20


def test_the_tightest_limit_of_all_groups_above_counts(groups: Path) -> None:
    (groups / "a" / "b" / "cpu.max").write_text("max 100000\n")
    (groups / "a" / "cpu.max").write_text("350000 100000\n")
    (groups / "a" / "b" / "memory.max").write_text("2000000\n")
    (groups / "a" / "memory.max").write_text("1000000\n")
    assert Machine.here() == Machine(cpus=3, memory_bytes=1_000_000)


def test_control_groups_of_version_1(groups: Path) -> None:
    for controller in ("cpu", "memory"):
        (groups / controller).mkdir()
    (groups / "cpu" / "cpu.cfs_quota_us").write_text("150000\n")
    (groups / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (groups / "memory" / "memory.limit_in_bytes").write_text("5000000\n")
    assert Machine.here() == Machine(cpus=1, memory_bytes=5_000_000)


def test_less_than_one_cpu_is_one(groups: Path) -> None:
    (groups / "cpu.max").write_text("20000 100000\n")
    assert Machine.here().cpus == 1


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "queue"
    monkeypatch.setenv(runtime.DIRECTORY_VARIABLE, str(path))
    return path


def test_the_directory_is_made_private(directory: Path) -> None:
    Runtime.prepare()
    assert directory.stat().st_mode & 0o777 == 0o700
    Runtime.prepare()


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o777])
def test_a_directory_that_others_may_enter_is_refused(directory: Path, mode: int) -> None:
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(BackendUnavailableError, match="0700"):
        Runtime.prepare()


def test_a_link_to_a_directory_is_refused(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BackendUnavailableError, match="cannot be used"):
        Runtime.prepare()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_someone_else_is_refused(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    os.chown(directory, 12345, 12345)
    with pytest.raises(BackendUnavailableError, match="belongs to user 12345"):
        Runtime.prepare()


def test_a_file_in_the_way_is_refused(directory: Path) -> None:
    directory.touch()
    with pytest.raises(BackendUnavailableError, match="cannot be used"):
        Runtime.prepare()


def test_addresses_are_short_however_long_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 120) / ("y" * 120)
    monkeypatch.setenv(runtime.DIRECTORY_VARIABLE, str(deep))
    with Runtime.prepare().socket_address() as address:
        assert len(address) < 100
        Path(address).touch()
    assert [path.suffix for path in deep.iterdir()] == [".sock"]


def test_files_of_the_queue_are_private_and_never_links(directory: Path) -> None:
    place = Runtime.prepare()
    os.close(place.open_private("log", os.O_WRONLY))
    assert place.path("log").stat().st_mode & 0o777 == 0o600
    place.path("life").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic"):
        place.open_private("life", os.O_RDWR)
