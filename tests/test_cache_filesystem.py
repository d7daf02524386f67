"""Folders that other machines cannot see are told by what the kernel says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dask_batch.cache.filesystem import Mount, mount_of, mounts, why_not_shared

MOUNTINFO = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /dev/shm rw,nosuid shared:2 - tmpfs tmpfs rw
24 22 0:22 / /home rw shared:3 - nfs4 server:/home rw
25 22 0:23 / /lustre rw shared:4 - lustre 10.0.0.1@o2ib:/work rw
26 22 0:24 / /tmp/shared rw - nfs server:/tmp rw
27 22 0:25 / /mnt/with\040blank rw - tmpfs tmpfs rw
28 24 0:26 / /home/me/ram rw - ramfs ramfs rw
a line of another shape
"""


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/home/me/cache", ""),
        ("/lustre/me/cache", ""),
        ("/data/cache", ""),  # a disk: perhaps of the server itself
        ("/tmp/cache", "each machine has a /tmp of its own"),
        ("/var/tmp/cache", "each machine has a /var/tmp of its own"),
        ("/tmp", "each machine has a /tmp of its own"),
        ("/tmpfiles", ""),
        ("/tmp/shared/cache", ""),
        ("/dev/shm/cache", "it is in memory (tmpfs on /dev/shm)"),
        ("/home/me/ram/cache", "it is in memory (ramfs on /home/me/ram)"),
        ("/home/me/ramble", ""),
        ("/mnt/with blank/cache", "it is in memory (tmpfs on /mnt/with blank)"),
    ],
)
def test_local_folders_are_told_from_those_that_may_be_shared(path: str, said: str) -> None:
    assert why_not_shared(Path(path), mountinfo=MOUNTINFO) == said


def test_the_inside_of_a_container_is_not_shared() -> None:
    text = "1 0 0:1 / / rw - overlay overlay rw\n2 1 0:2 / /data rw - nfs4 server:/ rw\n"
    assert "container" in why_not_shared(Path("/home/cache"), mountinfo=text)
    assert why_not_shared(Path("/data/cache"), mountinfo=text) == ""


def test_without_proc_the_place_alone_tells() -> None:
    assert why_not_shared(Path("/home/cache"), mountinfo="") == ""
    assert why_not_shared(Path("/tmp/cache"), mountinfo="") == "each machine has a /tmp of its own"


def test_of_two_mounts_in_one_place_the_last_is_seen() -> None:
    there = [Mount("/", "ext4"), Mount("/a", "nfs"), Mount("/a", "tmpfs")]
    assert mount_of("/a/b", there) == Mount("/a", "tmpfs")
    assert mount_of("/ab", there) == Mount("/", "ext4")


def test_this_machine_can_be_asked(tmp_path: Path) -> None:
    assert isinstance(why_not_shared(tmp_path), str)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/shm")
    assert "memory" in why_not_shared(tmp_path / "link" / "cache", mountinfo=MOUNTINFO)


def test_lines_of_another_shape_are_left_out() -> None:
    assert mounts("nonsense\n1 2 3 - \n - ext4\n") == []
