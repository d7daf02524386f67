"""What goes wrong after everybody has logged out is put right without them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from clients import Clients, poll

FAILS_AT_FIRST = """
FIRST = Path({folder!r})

def once(name):
    '''Tell whether a body runs for the first time.'''
    try:
        os.close(os.open(FIRST / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

def hungry(name, parent):
    if once(name):
        filled = bytearray(b"1") * 3_000_000_000
        time.sleep(600)
    return body(name, parent)

def slow(name, parent):
    if once(name):
        time.sleep(600)
    return body(name, parent)

def graph():
    task = dask.delayed(body)
    with dask.annotate(retries=2):
        roots = [task(f"root{{i}}") for i in range(79)]
    with dask.annotate(retries=2, resources={{"memory_max": 0.25}}):
        hungry_ones = [dask.delayed(hungry)(f"hungry{{i}}", roots[i]) for i in range(5)]
    with dask.annotate(retries=2, resources={{"run_time_max": {limit_s}}}):
        slow_ones = [dask.delayed(slow)(f"slow{{i}}", roots[i]) for i in range(5)]
    with dask.annotate(retries=2):
        middle = [task(f"middle{{i}}", roots[i % 79]) for i in range(150)]
        below = [task(f"below{{i}}", *middle[3 * i : 3 * i + 3]) for i in range(50)]
        after = [task(f"after{{i}}", h, s) for i, (h, s) in enumerate(zip(hungry_ones, slow_ones))]
        middles = [task(f"join{{i}}", *below[10 * i : 10 * i + 10]) for i in range(5)]
    with dask.annotate(retries=2):
        return dask.delayed(len)([*after, *middles])

if __name__ == "__main__":
    with dask.config.set({{"batch.resource-dict": {resources!r}}}):
        compute(graph())
"""
TASKS = 79 + 5 + 5 + 150 + 50 + 5 + 5 + 1


def clients_for(tmp_path: Path, backend: str, limit_s: int, **resources: str) -> Clients:
    first = tmp_path / "first"
    first.mkdir()
    script = FAILS_AT_FIRST.format(folder=str(first), limit_s=limit_s, resources=resources)
    return Clients(tmp_path, backend, script)


def handed_over(clients: Clients) -> bool:
    return bool(list(clients.cache.glob("runs/*.settled")))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("backend", "resources"),
    [
        ("local", {}),
        pytest.param("slurm", {}, marks=pytest.mark.slurm),
        # A QOS of ci/slurm/slurm-up that lets a user have 50 jobs in the queue.
        pytest.param("slurm", {"qos": "small"}, marks=pytest.mark.slurm),
    ],
    ids=["local", "slurm", "slurm, at most 50 jobs"],
)
def test_a_graph_repeats_what_failed_with_nobody_logged_in(
    tmp_path: Path, backend: str, resources: dict[str, str]
) -> None:
    limit_s = 8 if backend == "local" else 60
    clients = clients_for(tmp_path, backend, limit_s, **resources)
    client = clients.start()
    poll(lambda: handed_over(clients), 120, "the hand-over")
    client.kill()
    client.wait(10)
    poll(lambda: clients.results() == TASKS, 420, "the graph, without its client")
    assert clients.run() == "10"
    # The first attempts of ten left their mark elsewhere; every body ran to its end just once.
    assert set(clients.bodies().values()) == {1}
    assert sum(clients.bodies().values()) == TASKS - 1
    assert len(list((tmp_path / "first").iterdir())) == 10
    counts = Counter(name.rstrip("0123456789") for name in clients.bodies())
    assert (counts["hungry"], counts["slow"]) == (5, 5)
