"""JSON lines that outlive torn writes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dask_batch.cache.lines import append_line, read_lines
from dask_batch.errors import CacheError, FullError


def test_records_come_back_in_order(tmp_path: Path) -> None:
    records = [{"name": "a\n\ud800"}, {"n": 1}, {}]
    for record in records:
        append_line(tmp_path / "log", record, durable=True)
    assert list(read_lines(tmp_path / "log")) == records


def test_no_file_has_no_records(tmp_path: Path) -> None:
    assert list(read_lines(tmp_path / "log")) == []


def test_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append_line(path, {"n": 1})
    whole = path.read_bytes()
    append_line(path, {"n": 2})
    for length in range(len(whole) + 1, len(path.read_bytes()) - 1):
        torn = tmp_path / f"torn{length}"
        append_line(torn, {})
        torn.write_bytes(path.read_bytes()[:length])
        # Of a line that lacks no more than its checksum, the record is whole.
        kept = [{"n": 2}] if torn.read_bytes().rstrip().endswith(b'{"n": 2}') else []
        assert list(read_lines(torn)) == [{"n": 1}, *kept]
        append_line(torn, {"n": 3})
        assert list(read_lines(torn)) == [{"n": 1}, *kept, {"n": 3}]


def test_no_flipped_bit_becomes_another_record(tmp_path: Path) -> None:
    path = tmp_path / "log"
    records = [{"event": "job", "name": "f-0", "id": "4711"}, {"event": "accepted"}]
    for record in records:
        append_line(path, record)
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        found = list(read_lines(path))
        assert len(found) < 2
        assert all(record in records for record in found)


def test_lines_without_checksums_are_read(tmp_path: Path) -> None:
    append_line(tmp_path / "log", {"n": 1})
    with open(tmp_path / "log", "ab") as file:
        file.write(b'{"n": 2}\n')
    assert list(read_lines(tmp_path / "log")) == [{"n": 1}, {"n": 2}]


def test_lines_that_others_may_have_written_are_not_read(tmp_path: Path) -> None:
    append_line(tmp_path / "log", {})
    (tmp_path / "log").chmod(0o622)
    with pytest.raises(CacheError, match="may be written by others"):
        list(read_lines(tmp_path / "log"))


def test_what_was_aborted_is_said_on_a_full_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    append_line(tmp_path / "log", {"event": "job"})
    with monkeypatch.context() as no_space:
        no_space.setattr("os.write", full)
        for path in (tmp_path / "log", tmp_path / "other"):
            append_line(path, {"event": "aborted", "reason": "no space"})
            with pytest.raises(FullError):
                append_line(path, {"event": "accepted"})
    assert list(read_lines(tmp_path / "log")) == [{"event": "job"}, {"event": "aborted"}]
    assert list(read_lines(tmp_path / "other")) == [{"event": "aborted"}]
