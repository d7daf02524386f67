"""What outlives the client, and what runs once whoever asks for it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from clients import SEVENTEEN, Clients, poll

BACKENDS = ["local", pytest.param("slurm", marks=pytest.mark.slurm)]
EXPECTED = (
    "end(last(both(four0(pair0(leaf0(),leaf1()),pair1(leaf2(),leaf3())),"
    "four1(pair2(leaf4(),leaf5()),pair3(leaf6(),leaf7()))),"
    "both(four0(pair0(leaf0(),leaf1()),pair1(leaf2(),leaf3())),"
    "four1(pair2(leaf4(),leaf5()),pair3(leaf6(),leaf7())))))"
)
ONCE = Counter(
    [f"leaf{i}" for i in range(8)]
    + [f"pair{i}" for i in range(4)]
    + ["four0", "four1", "both", "last", "end"]
)


def first_line(clients: Clients, process: object) -> str:
    return process.stdout.readline()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGHUP])
def test_a_graph_finishes_without_its_client(
    tmp_path: Path, backend: str, how: signal.Signals
) -> None:
    clients = Clients(tmp_path, backend, SEVENTEEN)
    client = clients.start()
    poll(lambda: bool(clients.bodies()), 60, "the first task")
    # The whole session, as when a login ends; SIGKILL to the client alone.
    if how is signal.SIGHUP:
        os.killpg(client.pid, how)
    else:
        client.send_signal(how)
    assert client.wait(10) == -how
    poll(lambda: clients.results() == 17, 120, "the graph, without its client")
    assert clients.run() == EXPECTED
    assert clients.bodies() == ONCE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(6))
def test_killed_while_handing_over_the_graph_has_run_whole_or_not_at_all(
    tmp_path: Path, backend: str, seed: int
) -> None:
    clients = Clients(tmp_path, backend, SEVENTEEN)
    client = clients.start()
    assert client.stdout is not None
    assert client.stdout.readline() == "computing\n"
    time.sleep(random.Random(seed).uniform(0.0, 0.6))  # any moment is as good as another
    client.kill()
    client.wait(10)
    # Whatever was let go runs to its end; what was not stays as it is.
    settle(clients)
    assert clients.bodies() in (Counter(), ONCE)
    assert clients.run() == EXPECTED
    assert clients.bodies() == ONCE


def settle(clients: Clients) -> None:
    """Wait until the traces stop growing: all of them, or none after a while."""
    deadline = time.monotonic() + 4
    poll(
        lambda: (
            clients.bodies() == ONCE
            or (not clients.bodies() and time.monotonic() > deadline)
            or time.monotonic() > deadline + 60
        ),
        90,
        "the end of what was let go",
    )


TWO_HUNDRED = """
def graph():
    task = dask.delayed(body)
    leaves = [task(f"leaf{i}") for i in range(150)]
    groups = [task(f"group{i}", *leaves[3 * i : 3 * i + 3]) for i in range(49)]
    return dask.delayed(len)([task("end", *groups)])

if __name__ == "__main__":
    while time.time() < float(os.environ["BEGIN"]):
        pass
    compute(graph())
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_clients_at_the_same_moment_run_each_body_once(tmp_path: Path, backend: str) -> None:
    clients = Clients(tmp_path, backend, TWO_HUNDRED)
    begin = str(time.time() + 3)
    both = [clients.start(BEGIN=begin) for _ in range(2)]
    for client in both:
        out, err = client.communicate(timeout=240)
        assert client.returncode == 0, err
        assert out.splitlines()[-1] == "1"
    counts = clients.bodies()
    # The last three leaves are nobody's: Dask leaves them out.
    assert len(counts) == 147 + 49 + 1
    assert set(counts.values()) == {1}


NESTED_SAMPLES = """
def sample():
    return random.SystemRandom().random()

def graph():
    f = dask.delayed(lambda value, i: (i, value))
    return [f(dask.delayed(sample)(), i) for i in range(8)]

if __name__ == "__main__":
    lazy = graph()
    if len(sys.argv) > 1 or os.environ.get("ONE"):
        compute(lazy[int(os.environ["ONE"])])
    else:
        compute(lazy)
"""


def test_samples_keep_their_pairing_over_hash_seeds(tmp_path: Path) -> None:
    clients = Clients(tmp_path, "local", NESTED_SAMPLES)
    printed = {clients.run(PYTHONHASHSEED=str(seed)) for seed in range(5)}
    assert len(printed) == 1
    every = eval(printed.pop())
    assert len({value for _, value in every}) == 8
    # Another script that asks for one alone gets the first: that is documented.
    assert eval(clients.run(ONE="0")) == every[0]


STOPPED = """
from dask_batch.cache.claims import Claims

if os.environ.get("STOP"):
    accepted = Claims.record_job

    def stopped(*args):
        Claims.record_job = accepted  # once is enough
        Path("stopped").touch()
        while not Path("go").exists():
            time.sleep(0.02)
        accepted(*args)

    Claims.record_job = stopped
"""


def test_an_interrupt_while_another_client_hands_over_ends_the_wait(tmp_path: Path) -> None:
    clients = Clients(tmp_path, "local", STOPPED + SEVENTEEN)
    first = clients.start(STOP="1")
    second = None
    try:
        poll((tmp_path / "stopped").exists, 60, "the claims")
        second = clients.start()
        assert first_line(clients, second) == "computing\n"
        time.sleep(1.0)  # whether it waits already makes no difference
        second.send_signal(signal.SIGINT)
        _, err = second.communicate(timeout=20)
        assert second.returncode == -signal.SIGINT
        assert "come back to them" in err
        assert "nothing handed over" in err
    finally:
        (tmp_path / "go").touch()
        first.communicate(timeout=60)
        if second is not None:
            second.kill()
    assert clients.bodies() == ONCE
