"""A client that is killed at any step of its hand-over, and the client that comes after it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from clients import SEVENTEEN, Clients, poll
from test_lifecycle import EXPECTED, ONCE

KILLED = """
import signal
from dask_batch.submitting import defining
from dask_batch.backends.local.backend import LocalBackend
from dask_batch.backends.slurm.backend import SlurmBackend
from dask_batch.cache.claims import Claims
from dask_batch.errors import QueueFullError

STEP, WHEN, NUMBER = os.environ.get("KILL", "never:before:1").split(":")
ROOM = int(os.environ.get("ROOM", "1000"))
count = 0


def step(name, when):
    global count
    if (name, when) == (STEP, WHEN):
        count += 1
        if count == int(NUMBER):
            os.kill(os.getpid(), signal.SIGKILL)


def kill_at(owner, attribute, name):
    real = getattr(owner, attribute)

    def killed(*args, **kwargs):
        step(name(*args) if callable(name) else name, "before")
        found = real(*args, **kwargs)
        step(name(*args) if callable(name) else name, "after")
        return found

    setattr(owner, attribute, killed)


def narrow(backend):
    real = backend.submit

    def submit(self, jobs, accepted):
        real(self, jobs[:ROOM], accepted)
        if len(jobs) > ROOM:
            raise QueueFullError(1, ["submit"], "there is no more room")

    backend.submit = submit


kill_at(Claims, "begin", "begin")
kill_at(Claims, "claim", "claim")
kill_at(Claims, "record", lambda claims, run, event: event["event"])
kill_at(defining, "write_definitions", "define")
for each in (LocalBackend, SlurmBackend):
    kill_at(each, "release", "release")
    kill_at(each, "cancel", "cancel")
    narrow(each)
"""
STEPS = [
    "begin:before:1", "begin:after:1", "claim:after:1", "claim:after:9", "claim:after:17",
    "define:after:1", "job:before:1", "job:after:1", "job:before:9", "job:after:17",
    "steward:before:1", "steward:after:1", "accepted:before:1", "accepted:after:1",
    "release:before:1", "release:after:1", "released:after:1",
]  # fmt: skip
OF_A_WINDOW = [
    "job:after:7", "cancel:before:1", "cancel:after:1", "steward:before:1", "steward:after:2",
    "left:before:1", "left:after:1", "accepted:after:1", "release:after:1", "released:after:1",
]  # fmt: skip


def clients_for(folder: Path, backend: str) -> Clients:
    return Clients(folder, backend, KILLED + with_retries(SEVENTEEN))


def with_retries(script: str) -> str:
    """Let a steward be handed over with the graph."""
    return script.replace(
        "    compute(graph())",
        "    with dask.annotate(retries=1):\n        made = graph()\n    compute(made)",
    )


def killed_at(clients: Clients, **environment: str) -> None:
    client = clients.start(**environment)
    _, err = client.communicate(timeout=120)
    assert client.returncode == -signal.SIGKILL, err


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step_of_a_hand_over(tmp_path: Path, step: str) -> None:
    clients = clients_for(tmp_path, "local")
    killed_at(clients, KILL=step)
    assert clients.run() == EXPECTED
    assert clients.bodies() == ONCE


@pytest.mark.parametrize("step", OF_A_WINDOW)
def test_killed_at_a_step_of_a_window(tmp_path: Path, step: str) -> None:
    clients = clients_for(tmp_path, "local")
    killed_at(clients, KILL=step, ROOM="10")
    assert clients.run(ROOM="10") == EXPECTED
    assert clients.bodies() == ONCE


def test_a_window_and_its_steward_do_without_the_client(tmp_path: Path) -> None:
    clients = clients_for(tmp_path, "local")
    killed_at(clients, KILL="released:after:1", ROOM="10")
    poll(lambda: clients.results() == 17, 60, "the graph, without its client")
    assert clients.run() == EXPECTED
    assert clients.bodies() == ONCE


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("step", "room"),
    [
        ("job:before:9", "1000"),
        ("steward:after:1", "1000"),
        ("accepted:after:1", "1000"),
        ("cancel:after:1", "10"),
        ("left:after:1", "10"),
        ("released:after:1", "10"),
    ],
)
def test_killed_at_a_step_of_a_hand_over_to_slurm(tmp_path: Path, step: str, room: str) -> None:
    clients = clients_for(tmp_path, "slurm")
    killed_at(clients, KILL=step, ROOM=room)
    assert clients.run() == EXPECTED
    assert clients.bodies() == ONCE
