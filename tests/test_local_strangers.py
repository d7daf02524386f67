"""What clients may do to the queue that no client should: it goes on serving the others."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dask_batch.backends.base import JobState
from dask_batch.backends.local import local_jobs
from dask_batch.backends.local.known import Known, status_of
from dask_batch.backends.local.profiles import Profiles
from dask_batch.backends.local.protocol import PROTOCOL_VERSION, encode
from dask_batch.backends.local.submission import parts
from local_harness import Bench, bench, eventually, queue_pid

HELLO = {"type": "hello", "version": PROTOCOL_VERSION}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with bench(monkeypatch) as a_bench:
        a_bench.backend.status([])
        yield a_bench


def stranger() -> socket.socket:
    (path,) = Path(os.environ["DASK_BATCH_QUEUE_DIR"]).glob("*.sock")
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect(str(path))
    return connection


def memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "message",
    [
        {"type": "hello", "version": PROTOCOL_VERSION + 1},
        {"type": "hello", "version": [1]},
        {"type": "submit", "group": 5, "cap": None},
        {"type": "submit", "group": "g", "cap": 0},
        {"type": "submit", "group": "g", "cap": [1, 0]},
        {"type": "submit", "group": "g", "cap": [1, 2, 3]},
        {"type": "submit", "group": "g", "cap": [[1], 2]},
        {"type": "rerun", "group": None, "cap": None, "job": "local-1"},
        {"type": "rerun", "group": None, "cap": None},
        {"type": "repoint", "job": 1, "parents": []},
        {"type": "repoint", "job": "x", "parents": [1]},
        {"type": "release", "jobs": {"a": 1}},
        {"type": "status", "jobs": [None]},
        {"type": "find", "names": [["x"]]},
        {"type": "cancel"},
        {"type": "list", "from": "first"},
        {"type": "part", "jobs": [[]]},
        {"type": "a type of later versions"},
    ],
)
def test_what_makes_no_sense_ends_that_connection_alone(
    given: Bench, message: dict[str, object]
) -> None:
    pid = queue_pid()
    with stranger() as connection:
        connection.sendall(encode(HELLO) + encode(message))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            continue
    assert queue_pid() == pid
    assert given.run(given.job("nothing"))[0].state is JobState.COMPLETED


def test_whatever_is_sent_the_queue_lives(given: Bench) -> None:
    pid = queue_pid()
    members = Profiles().members([given.job("count", f"j{i}") for i in range(3)])
    whole = b"".join(
        encode(m) for m in (HELLO, *parts(members), {"type": "submit", "group": None, "cap": None})
    )
    choose = random.Random(3)
    for _ in range(200):
        data = bytearray(whole[: choose.randrange(1, len(whole))])
        for _ in range(choose.randrange(3)):
            data[choose.randrange(len(data))] = choose.randrange(256)
        with stranger() as connection:
            connection.sendall(data)
    assert queue_pid() == pid
    assert local_jobs() == []


def test_half_a_frame_keeps_nobody_waiting(given: Bench) -> None:
    with stranger() as slow:
        slow.sendall(encode(HELLO) + encode({"type": "status", "jobs": []})[:7])
        assert given.run(given.job("nothing"))[0].state is JobState.COMPLETED
        slow.sendall(encode({"type": "status", "jobs": []})[7:])
        assert slow.recv(65536)


def test_a_client_that_never_reads_does_not_fill_the_queue(given: Bench) -> None:
    ids = list(given.submit(*(given.job("nothing") for _ in range(3000)), release=False).values())
    pid = queue_pid() or 0
    before = memory_bytes(pid)
    request = encode({"type": "status", "jobs": ids})
    with stranger() as deaf:
        deaf.sendall(encode(HELLO))
        deaf.settimeout(1.0)
        with pytest.raises(TimeoutError):  # it is not read from any more
            deaf.sendall(request * 2000)
        assert given.run(given.job("nothing"))[0].state is JobState.COMPLETED
        assert memory_bytes(pid) - before < 400 * 2**20
    given.backend.cancel(ids)


def test_many_connections_at_once(given: Bench) -> None:
    connections = [stranger() for _ in range(200)]
    assert given.run(given.job("nothing"))[0].state is JobState.COMPLETED
    for connection in connections:
        connection.close()


def test_two_thousand_jobs_all_end_and_are_forgotten_by_a_long_lived_client(given: Bench) -> None:
    given.backend._known = Known(keep_ended=100)
    ids = given.submit(*(given.job("nothing") for _ in range(2000)))
    ended = given.end(ids)
    assert {status.state for status in ended.values()} == {JobState.COMPLETED}
    assert len(given.backend._known) <= 100
    assert given.end(ids) == ended
    eventually(lambda: local_jobs() == [])


def test_of_the_ended_only_the_latest_are_kept() -> None:
    known = Known(keep_ended=2)
    for number, state in enumerate(["completed", "running", "failed", "completed", "odd"]):
        known.take(status_of([str(number), state, None, None, "", ""]))
    known.take(status_of(["0", "waiting", None, None, "", ""]))
    known.shrink()
    assert len(known) == 5
    known.take(status_of(["0", "cancelled", None, None, "", ""]))
    known.shrink()
    assert [str(n) in known for n in range(5)] == [True, True, False, True, True]
