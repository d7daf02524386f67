"""What is killed on a real Flux: clients in the middle of a hand-over, and brokers."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bodies import gated, open_gate, traces
from clients import SEVENTEEN, Clients, poll
from dask_batch import FluxClusterExecutor
from dask_batch.backends.flux import bindings
from dask_batch.backends.flux.bindings import Bindings
from dask_batch.errors import BackendUnavailableError
from flux_systems import own_instance
from test_lifecycle import EXPECTED, ONCE
from test_submission_killed import KILLED, killed_at, with_retries

pytest_plugins = ["flux_systems"]
pytestmark = [pytest.mark.flux, pytest.mark.usefixtures("flux")]

_HERE = "from dask_batch.backends.flux.backend import FluxBackend\nfor each in (FluxBackend,):"


@pytest.fixture
def clients(tmp_path: Path) -> Clients:
    script = KILLED.replace("for each in (LocalBackend, SlurmBackend):", _HERE)
    assert _HERE in script
    return Clients(tmp_path, "flux", script + with_retries(SEVENTEEN))


@pytest.mark.parametrize(
    ("step", "room"),
    [
        ("job:before:1", "1000"),
        ("job:before:9", "1000"),
        ("steward:after:1", "1000"),
        ("accepted:after:1", "1000"),
        ("cancel:after:1", "10"),
        ("released:after:1", "10"),
    ],
)
def test_killed_at_a_step_of_a_hand_over(clients: Clients, step: str, room: str) -> None:
    killed_at(clients, KILL=step, ROOM=room)
    assert clients.run() == EXPECTED
    assert clients.bodies() == ONCE
    runs = [path.stem for path in clients.cache.glob("runs/*.json")]

    def left() -> list[str]:
        return [row.name for row in Bindings().active() if any(run in row.name for run in runs)]

    poll(lambda: not left(), 60, "nothing is left in the queue")


def test_a_window_and_its_steward_do_without_the_client(clients: Clients) -> None:
    killed_at(clients, KILL="released:after:1", ROOM="10")
    poll(lambda: clients.results() == 17, 120, "the graph, without its client")
    assert clients.run() == EXPECTED
    assert clients.bodies() == ONCE


def pid_of_broker(uri: str) -> int:
    argv = ["flux", "getattr", "broker.pid"]
    environment = {**os.environ, "FLUX_URI": uri}
    return int(subprocess.run(argv, env=environment, capture_output=True, check=True).stdout)


def test_nobody_waits_for_ever_for_a_broker_that_is_stopped(monkeypatch) -> None:
    monkeypatch.setattr(bindings, "_ANSWER_S", 0.5)
    with own_instance(cpus=2) as uri:
        there = Bindings(uri)
        broker = pid_of_broker(uri)

        def asked_by_a_new_connection(ask: Callable[[], object]) -> None:
            there.close()
            ask()

        def asked_by_an_old_one(ask: Callable[[], object]) -> None:
            there._open()
            opened.release()
            stopped.wait()
            ask()

        asks: tuple[Callable[[], object], ...] = (
            lambda: there.note("f1"),
            lambda: there.rows(["f1"]),
            there.active,
            there.machine,
            lambda: next(there.events(lambda: True)),
        )
        ended: list[BaseException | None] = []

        def note(way: Callable[..., None], ask: Callable[[], object]) -> None:
            try:
                way(ask)
            except BackendUnavailableError as error:
                ended.append(error)

        opened, stopped = threading.Semaphore(0), threading.Event()
        ways = [(asked_by_an_old_one, ask) for ask in asks]
        ways += [(asked_by_a_new_connection, ask) for ask in (lambda: Bindings(uri), there.active)]
        threads = [threading.Thread(target=note, args=way, daemon=True) for way in ways]
        for thread in threads[: len(asks)]:
            thread.start()
            opened.acquire()
        os.kill(broker, signal.SIGSTOP)
        try:
            stopped.set()
            for thread in threads[len(asks) :]:
                thread.start()
            poll(lambda: len(ended) == len(ways), 60, "the ends of all questions")
        finally:
            os.kill(broker, signal.SIGCONT)


def test_a_broker_that_is_killed_is_no_verdict(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with own_instance(cpus=2) as uri:
        exe = FluxClusterExecutor(cache_directory=cache, flux_uri=uri, failure_grace_s=0.0)
        future = exe.submit(gated, tmp_path, "job")
        poll(lambda: traces(tmp_path)["job"] == 1, 60, "the job")
        os.kill(pid_of_broker(uri), signal.SIGKILL)
        exe.shutdown(wait=False)
        backend = exe._session.backend
        poll(lambda: not backend._journal._reading, 60, "the journal's end")
        time.sleep(2.0)  # for a verdict that must not come
        assert not future.done()
    open_gate(tmp_path)
    # Its processes may live on, and publish; or they are gone, and the task is run again.
    with FluxClusterExecutor(cache_directory=cache) as later:
        assert later.submit(gated, tmp_path, "job").result(120) == "job"
    assert future.result(60) == "job"


def test_a_broker_that_hangs_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with own_instance(cpus=2) as uri:
        instance = Bindings(uri)
        assert instance.rows(["f1"]) == []
        monkeypatch.setattr("dask_batch.backends.flux.bindings._ANSWER_S", 0.5)
        broker = pid_of_broker(uri)
        os.kill(broker, signal.SIGSTOP)
        try:
            for ask in (lambda: instance.rows(["f1"]), lambda: instance.named(["a"])):
                with pytest.raises(BackendUnavailableError, match="does not answer"):
                    ask()
        finally:
            os.kill(broker, signal.SIGCONT)
        monkeypatch.undo()
        assert instance.rows(["f1"]) == []
