"""The files that jobs' words go to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dask_batch.backends import logs
from dask_batch.backends.base import Job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("name", Path("/none"), 3, {}, log_directory=tmp_path)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_logs_are_for_their_owner_alone(job: Job, umask: int) -> None:
    (job.log_directory / "3.out").write_text("earlier\n")
    (job.log_directory / "3.out").chmod(0o644)
    before = os.umask(umask)
    try:
        logs.prepare(job)
    finally:
        os.umask(before)
    paths = sorted(job.log_directory.iterdir())
    assert [path.name for path in paths] == ["3.err", "3.out"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}
    assert paths[1].read_text() == "earlier\n"


def test_a_link_in_the_place_of_a_log_is_not_followed(job: Job, tmp_path: Path) -> None:
    (job.log_directory / "3.err").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"3\.err"):
        logs.prepare(job)
    logs.separate(job)
    assert not (tmp_path / "elsewhere").exists()


def test_a_line_tells_the_words_of_two_attempts_apart(job: Job) -> None:
    log = job.log_directory / "3.err"
    logs.separate(job)
    assert log.read_text() == ""  # of an attempt that said nothing nothing is to be told apart
    log.write_text("first\n")
    logs.separate(job)
    assert logs.last_attempt(log.read_text()) == ""
    with log.open("a") as file:
        file.write("second\nits end\n")
    assert logs.last_attempt(log.read_text()) == "second\nits end\n"
    assert log.read_text().startswith("first\n")


def test_without_repetition_all_is_the_last_attempts() -> None:
    assert logs.last_attempt("a\nb") == "a\nb"
    assert logs.last_attempt("") == ""
