"""The socket at which workers meet their client: who is let in, and what is said there."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import dask_batch.backends.workers.door as module
from clients import poll
from dask_batch.backends.workers.door import Door, local_door, network_door, sweep_sockets
from dask_batch.cache.meeting import Meeting
from dask_batch.cache.owner import Owner
from dask_batch.errors import CacheError
from dask_batch.job.arrival import arrive
from dask_batch.job.channel import Channel, Message, StrangerError, connect, prove

SECRET = "ab" * 32


@pytest.fixture(params=["local", "network"])
def door(request: pytest.FixtureRequest) -> Iterator[Door]:
    door = local_door() if request.param == "local" else network_door(localhost=True)
    yield door
    door.close()


def _opened(door: Door) -> list[tuple[Channel, Message]]:
    admitted: list[tuple[Channel, Message]] = []
    door.open(SECRET, lambda channel, hello: admitted.append((channel, hello)))
    return admitted


def _arrive(door: Door, secret: str = SECRET) -> Channel:
    channel = connect(door.addresses[0])
    prove(channel, secret, client=False)
    channel.send({"worker": 7})
    return channel


def test_who_knows_the_secret_is_let_in(door: Door) -> None:
    admitted = _opened(door)
    worker = _arrive(door)
    poll(lambda: bool(admitted), 10, "the worker")
    client, hello = admitted[0]
    assert hello == {"worker": 7}
    client.send({"do": "end"})
    assert worker.receive() == {"do": "end"}
    client.close()
    with pytest.raises(EOFError):
        worker.receive()


def test_who_does_not_know_the_secret_is_refused(door: Door) -> None:
    admitted = _opened(door)
    with pytest.raises(StrangerError):
        _arrive(door, secret="cd" * 32)
    worker = _arrive(door)  # and keeps nobody out
    poll(lambda: bool(admitted), 10, "the worker")
    assert len(admitted) == 1
    worker.close()


def test_a_stranger_who_says_nothing_keeps_nobody_waiting(door: Door) -> None:
    admitted = _opened(door)
    silent = [connect(door.addresses[0]) for _ in range(5)]
    worker = _arrive(door)
    poll(lambda: bool(admitted), 5, "the worker")  # much sooner than a stranger is sent away
    for channel in (*silent, worker):
        channel.close()


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000])
def test_who_speaks_another_language_is_refused(door: Door, said: bytes) -> None:
    admitted = _opened(door)
    stranger = connect(door.addresses[0])
    stranger.send_raw(said)
    assert stranger.receive_raw(1000)  # the client's greeting
    with pytest.raises(EOFError):
        stranger.receive_raw(1000)
    assert not admitted


def test_a_proof_cannot_be_sent_back() -> None:
    """Who echoes what it hears proves nothing."""
    one, other = socket.socketpair()
    mirror = Channel(other)

    def echo() -> None:
        try:
            while True:
                mirror.send_raw(mirror.receive_raw(1000))
        except (EOFError, OSError):
            return

    thread = threading.Thread(target=echo)
    thread.start()
    channel = Channel(one)
    with pytest.raises(StrangerError):
        prove(channel, SECRET, client=True)
    channel.close()
    thread.join()


def test_a_worker_does_not_obey_who_is_not_its_client() -> None:
    """Whoever has taken over the address must prove that it is the client."""
    listener = socket.create_server(("127.0.0.1", 0))

    def impostor() -> None:
        end, _ = listener.accept()
        with pytest.raises(StrangerError):
            prove(Channel(end), "cd" * 32, client=True)

    thread = threading.Thread(target=impostor)
    thread.start()
    channel = connect(("127.0.0.1", listener.getsockname()[1]))
    with pytest.raises(StrangerError):
        prove(channel, SECRET, client=False)
    channel.close()
    thread.join()
    listener.close()


def test_no_message_is_longer_than_it_may_be() -> None:
    one, other = (Channel(end) for end in socket.socketpair())
    sender = threading.Thread(target=_send_much, args=(one,))
    sender.start()
    with pytest.raises(EOFError):
        other.receive()
    other.close()
    sender.join()
    one.close()


def _send_much(channel: Channel) -> None:
    try:
        channel.send_raw(b"x" * (1 << 21))
    except OSError:
        return


def test_what_is_no_message_ends_the_conversation() -> None:
    one, other = (Channel(end) for end in socket.socketpair())
    one.send_raw(b"[1, 2]")
    with pytest.raises(EOFError):
        other.receive()
    one.close()
    other.close()


def test_the_local_door_is_behind_a_directory_of_ones_own() -> None:
    door = local_door()
    folder = Path(str(door.addresses[0])).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.stat().st_uid == os.getuid()
    door.close()
    assert not folder.exists()


def test_only_sockets_of_clients_that_are_gone_are_swept_away(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    tmp_path = Path(tempfile.mkdtemp(dir="/tmp"))  # a socket's path must be short
    request.addfinalizer(lambda: shutil.rmtree(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = local_door()
    pid = os.fork()
    if pid == 0:
        local_door()
        os._exit(0)  # as if it were killed
    os.waitpid(pid, 0)
    mine_too = [Path(str(door.addresses[0])).parent for door in (mine, local_door())]
    (tmp_path / "dask-batch-workers-elsewhere").symlink_to(tmp_path / "other")
    (tmp_path / "other").mkdir()
    (tmp_path / "dask-batch-workers-new").mkdir()  # is just being made
    assert len(list(tmp_path.glob("dask-batch-workers-*"))) == 5
    sweep_sockets()
    assert len(list(tmp_path.glob("dask-batch-workers-*"))) == 4
    assert all((folder / "sock").exists() for folder in mine_too)
    mine.close()


def test_a_meeting_place_survives_the_journey_and_hides_its_secret(tmp_path: Path) -> None:
    meeting = Meeting(("/run/sock", ("node1", 4242)), SECRET, True, Owner.current())
    path = tmp_path / "place.json"
    path.write_bytes(meeting.text())
    path.chmod(0o600)
    assert Meeting.read(path) == meeting
    assert SECRET not in repr(meeting)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"addresses": [1], "secret": "a"}'])
def test_what_is_no_meeting_place_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "place.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(CacheError, match=r"place\.json"):
        Meeting.read(path)


def test_a_meeting_place_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "place.json"
    path.write_bytes(Meeting((), SECRET, False, Owner.current()).text())
    path.chmod(0o666)
    with pytest.raises(CacheError, match="may be written by others"):
        Meeting.read(path)


def test_strangers_do_not_keep_workers_out(door: Door) -> None:
    """However many they are: the one who has been here longest goes."""
    admitted = _opened(door)
    silent = [connect(door.addresses[0]) for _ in range(80)]
    worker = _arrive(door)
    poll(lambda: bool(admitted), 10, "the worker")
    assert silent[0].receive_raw(1000)  # the client's greeting
    with pytest.raises(EOFError):
        silent[0].receive_raw(1000)
    for channel in (*silent, worker):
        channel.close()


def test_a_stranger_who_says_little_is_sent_away_all_the_same(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One time limit holds for the whole proof, not one for each byte."""
    monkeypatch.setattr(module, "_PROOF_S", 2)
    _opened(door)
    stranger = connect(door.addresses[0])
    os.write(stranger.fileno(), b"\0\0\0\x33")  # so many bytes are to come
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        _drip(stranger)
    stranger.close()


def _drip(stranger: Channel) -> None:
    for _ in range(0x33 - 1):
        os.write(stranger.fileno(), b"d")
        time.sleep(0.3)


def test_without_descriptors_the_door_waits_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    door = network_door(localhost=True)
    admitted = _opened(door)
    ends = [socket.socket() for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 3, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        for end in ends:
            end.connect(door.addresses[0])
        spent_s = time.process_time()
        time.sleep(1.5)
        spent_s = time.process_time() - spent_s
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)
    said = [r for r in caplog.records if "could not be taken" in r.message]
    assert len(said) == 1
    assert spent_s < 1
    worker = _arrive(door)
    poll(lambda: bool(admitted), 10, "the worker, once there are descriptors again")
    for end in ends:
        end.close()
    worker.close()
    door.close()


def test_a_worker_that_is_dropped_tries_again(tmp_path: Path) -> None:
    """Its client had no room for it; who does not know the secret is not asked again."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = ("127.0.0.1", listener.getsockname()[1])
    met: list[Message] = []

    def client() -> None:
        listener.accept()[0].close()
        channel = Channel(listener.accept()[0])
        prove(channel, SECRET, client=True)
        met.append(channel.receive())
        channel.close()

    thread = threading.Thread(target=client)
    thread.start()
    worker = arrive(Meeting((address,), SECRET, False, Owner.current()), 3)
    thread.join()
    assert worker is not None
    assert met[0]["worker"] == 3
    worker.close()
    listener.close()


def test_a_fork_of_the_client_does_not_hold_the_door(door: Door) -> None:
    _opened(door)
    descriptor = door._listener.fileno()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.fstat(descriptor)
            os.write(writer, b"open")
        except OSError:
            os.write(writer, b"closed")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 10) == b"closed"
    os.close(reader)
    os.close(writer)
    _arrive(door).close()  # and the client has it still
