"""The queue outlives clients, ends when idle, and never loses what it has taken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dask_batch.backends.base import JobState
from dask_batch.backends.local import LocalBackend, local_jobs, stop_local_queue
from dask_batch.errors import BackendUnavailableError
from local_harness import Bench, alive, bench, client, eventually, queue_pid


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with bench(monkeypatch) as a_bench:
        yield a_bench


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench whose queue ends at once when it is idle."""
    with bench(monkeypatch, idle_s=0.001) as a_bench:
        yield a_bench


SUBMIT_AND_STAY = """
first = bench.job("until_file", "first")
last = bench.job("count", "last", parents=["first"])
ids = bench.submit(first, last)
bench.finding(first)
print(ids["last"], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_jobs_go_on_when_the_clients_session_ends(given: Bench, number: signal.Signals) -> None:
    process = client(
        SUBMIT_AND_STAY, str(given.folder), stdin=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    job_id = process.stdout.readline().strip()
    os.killpg(process.pid, number)
    process.communicate()
    assert given.runs() == []
    (given.folder / "go").touch()
    assert given.end({"last": job_id})["last"].state is JobState.COMPLETED
    assert len(given.runs()) == 1


def test_what_a_dead_client_left_held_is_found(given: Bench) -> None:
    code = """
root, child = bench.job("count", "root"), bench.job("count", "child", parents=["root"])
bench.submit(root, child, release=False)
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
"""
    client(code, str(given.folder)).communicate()
    found = given.backend.find(["root", "child"])
    assert given.backend.status([found["root"]])[found["root"]].state is JobState.HELD
    assert given.runs() == []
    given.backend.release(list(found.values()))
    assert {status.state for status in given.end(found).values()} == {JobState.COMPLETED}


def test_a_client_killed_while_it_hands_over_leaves_nothing(given: Bench) -> None:
    code = """
from dask_batch.backends.local.connection import Connection
from dask_batch.backends.local.profiles import Profiles
from dask_batch.backends.local.submission import parts
import os, signal
connection = Connection(print)
members = Profiles().members([bench.job("count", f"j{i}") for i in range(20000)])
for message in list(parts(members))[:-1]:
    connection._channel.send_whole(message)
os.kill(os.getpid(), signal.SIGKILL)
"""
    client(code, str(given.folder)).communicate()
    assert given.backend.find(["j0", "j1"]) == {}
    assert local_jobs() == []


def test_captured_output_ends_with_the_client(given: Bench) -> None:
    code = "from local_harness import Bench; from pathlib import Path; import sys; " + (
        "bench = Bench(Path(sys.argv[1])); print(bench.submit(bench.job('forever', 'x'))['x'])"
    )
    argv = [sys.executable, "-c", code, str(given.folder)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    job_id = done.stdout.strip()
    assert not given.backend.status([job_id])[job_id].state.ended


def test_the_queue_holds_nothing_of_who_started_it(given: Bench) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    code = 'bench.run(bench.job("nothing"))'
    client(code, str(given.folder), close_fds=False, cwd=given.folder).communicate()
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)
    pid = queue_pid()
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid or 0) not in (os.getsid(0), pid)
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"


def test_it_ends_when_idle_and_its_parents_with_it(hasty: Bench) -> None:
    hasty.run(hasty.job("nothing"))
    pid = queue_pid()
    assert pid is not None
    hasty.backend.close()
    eventually(lambda: not alive(pid), what="the queue ends")
    assert not stop_local_queue()


def test_no_hand_over_is_lost_to_a_queue_that_ends(hasty: Bench) -> None:
    """Clients come and go at the pace at which the queue ends."""
    lock = threading.Lock()
    ended = []

    def visit(index: int) -> None:
        backend = LocalBackend()
        with lock:
            job = hasty.job("count", f"visit{index}")
        ids = hasty.submit(job, backend=backend)
        while not backend.status(ids.values())[ids[job.name]].state.ended:
            backend.wait(10)
        ended.append(job.index)
        backend.close()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(visit, range(60)))
    assert sorted(hasty.runs()) == sorted(ended)
    assert len(ended) == 60


def test_of_many_clients_that_start_at_once_all_get_the_same_queue(given: Bench) -> None:
    code = (
        "bench.backend.status([]); print(bench.backend._connection.queue, flush=True); "
        "sys.stdin.read()"
    )
    clients = [client(code, str(given.folder), stdin=subprocess.PIPE) for _ in range(4)]
    queues = {process.stdout.readline() for process in clients if process.stdout}
    for process in clients:
        process.communicate()
    assert len(queues) == 1


def test_stop_waits_for_jobs_or_kills_them(given: Bench) -> None:
    ids = given.submit(job := given.job("forever"))
    pid, queue = given.finding(job), queue_pid()
    assert queue is not None
    assert stop_local_queue(wait=False)
    assert alive(pid)
    assert stop_local_queue(kill_jobs=True)
    eventually(lambda: not alive(queue))
    assert not alive(pid)
    assert not stop_local_queue()
    (status,) = given.backend.status(ids.values()).values()
    assert status.state is JobState.CANCELLED


def test_a_later_queue_knows_how_jobs_of_an_earlier_one_ended(given: Bench) -> None:
    good, bad = given.job("nothing", "good"), given.job("exit_three", "bad")
    late = given.job("nothing", "late", run_time_max=0.2)
    ids = given.submit(good, bad, late)
    before = given.end(ids)
    stop_local_queue()
    assert given.end(ids) == before
    assert given.backend.find(["good", "bad", "nobody"]) == {n: ids[n] for n in ("good", "bad")}


def test_a_queue_that_was_killed_goes_on_with_what_it_had(given: Bench) -> None:
    good, bad = given.job("until_file"), given.job("until_file_then_fail")
    child, never = given.job("count", parents=[good.name]), given.job("count", parents=[bad.name])
    ids = given.submit(good, bad, child, never)
    held = given.job("count")
    ids |= given.submit(held, release=False)
    pids = [given.finding(good), given.finding(bad)]
    queue = queue_pid()
    assert queue is not None
    os.kill(queue, signal.SIGKILL)
    given.backend.wait(600)
    states = given.backend.status(ids.values())
    assert [states[ids[job.name]].state for job in (good, bad)] == [JobState.RUNNING] * 2
    assert [states[ids[job.name]].state for job in (child, never)] == [JobState.WAITING] * 2
    assert states[ids[held.name]].state is JobState.HELD
    assert given.backend.find(ids) == ids
    assert all(map(alive, pids))
    given.backend.release([ids[held.name]])
    given.submit(given.job("nothing"))
    (given.folder / "go").touch()
    ended = given.end(ids)
    assert ended[good.name].state is JobState.COMPLETED
    assert (ended[bad.name].state, ended[bad.name].exit_code) == (JobState.FAILED, 7)
    assert ended[never.name].state is JobState.DEPENDENCY_FAILED
    assert sorted(given.runs()) == [child.index, held.index]


def _all_ended(given: Bench, job_ids: list[str]) -> object:
    found = given.backend.status(job_ids)
    return found if all(status.state.ended for status in found.values()) else None


def test_jobs_of_a_killed_queue_can_be_cancelled(given: Bench) -> None:
    ids = given.submit(job := given.job("forever"))
    pid = given.finding(job)
    os.kill(queue_pid() or 0, signal.SIGKILL)
    job_id = ids[job.name]
    eventually(lambda: given.backend.status([job_id])[job_id].state is JobState.RUNNING)
    given.backend.cancel([job_id])
    eventually(lambda: not alive(pid))
    ended = eventually(lambda: _all_ended(given, [job_id]))
    assert ended[job_id].state is JobState.CANCELLED


def test_a_killed_worker_parent_ends_its_jobs_with_a_verdict(given: Bench) -> None:
    ids = given.submit(job := given.job("forever"))
    pid = given.finding(job)
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGKILL)
    assert given.end(ids)[job.name].state is JobState.NODE_FAILURE
    eventually(lambda: not alive(pid))
    (status,) = given.run(given.job("nothing"))
    assert status.state is JobState.COMPLETED


def test_a_queue_that_does_not_start_says_why(
    given: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_BATCH_QUEUE_IDLE_S", "soon")
    with pytest.raises(BackendUnavailableError, match="soon"):
        given.backend.status([])


def test_a_fork_of_a_client_has_a_connection_of_its_own(given: Bench) -> None:
    ids = given.submit(given.job("nothing", "parents"))
    given.end(ids)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if given.end(given.submit(given.job("nothing", "childs"))) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert given.end(ids)["parents"].state is JobState.COMPLETED
    assert given.run(given.job("nothing"))[0].state is JobState.COMPLETED


def test_strangers_messages_do_no_harm(given: Bench) -> None:
    import socket

    ids = given.submit(job := given.job("forever"))
    given.finding(job)
    path = next(Path(os.environ["DASK_BATCH_QUEUE_DIR"]).glob("*.sock"))
    hello = b'\0\0\0\x1c{"type":"hello","version":2}'
    for data in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x02[]",
        b'\0\0\0\x0f{"type":"list"}',
        b"\0\0\x01\0" + b"[" * 256,
        hello + b'\0\0\0\x11{"type":"status"}',
        hello + b'\0\0\0\x1c{"type":"release","jobs":[1]}'[:32],
        hello,
    ):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(path))
            stranger.sendall(data)
    (status,) = given.backend.status(ids.values()).values()
    assert status.state is JobState.RUNNING
