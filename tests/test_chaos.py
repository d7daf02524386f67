"""Clients, jobs and the controller are killed at random for a while: the results are the same."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

import slurm_daemons
from clients import Clients, poll
from dask_batch import clean

CHAOS_S = 150.0
CLIENTS = 4
CALM_S = 420.0
"""How long each of the clients has that compute in peace."""
LAST_S = 180.0
"""How long the last jobs have to leave, and what was brought back to be found and ended."""
LIMIT_S = 240 + 2 * CHAOS_S + CLIENTS * CALM_S + 2 * LAST_S + 120
"""More than all that is waited for: what does not come is to be told, rather than cut off."""

THREE_HUNDRED = """
def graph():
    task = dask.delayed(body)
    with dask.annotate(retries=5):
        leaves = [
            task(f"leaf{i}", seconds=random.Random(i).uniform(0.1, 1.0)) for i in range(180)
        ]
        pairs = [task(f"pair{i}", *leaves[2 * i : 2 * i + 2], seconds=0.2) for i in range(90)]
        tens = [task(f"ten{i}", *pairs[9 * i : 9 * i + 9]) for i in range(10)]
        chain = task("chain0", *tens)
        for i in range(1, 19):
            chain = task(f"chain{i}", chain)
        return task("end", chain)

if __name__ == "__main__":
    import hashlib
    print("computing", flush=True)
    options = {"backend": BACKEND, "cache_directory": CACHE}
    value, = dask.compute(graph(), scheduler=cluster_get, **options)
    print(hashlib.sha256(value.encode()).hexdigest(), flush=True)
"""


def calm_answer(folder: Path) -> str:
    """Compute the same graph without any batch system."""
    folder.mkdir()
    script = THREE_HUNDRED.replace("scheduler=cluster_get, **options", "scheduler='synchronous'")
    script = script.replace("seconds=0.2", "seconds=0").replace(
        "uniform(0.1, 1.0)", "uniform(0, 0)"
    )
    return chaotic_clients(folder, "local", script).run()


def chaotic_clients(folder: Path, backend: str, script: str) -> Clients:
    cache = str(folder / "cache")
    script = script.replace("BACKEND,", f"{backend!r},").replace("CACHE}", f"{cache!r}}}")
    return Clients(folder, backend, script)


def jobs_of(cache: Path) -> list[psutil.Process]:
    """Return the processes of our jobs: their command lines name their definitions."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if "dask_batch.job" in line and any(word.startswith(f"{cache}/") for word in line):
                found.append(process)
    return found


def ended(client: subprocess.Popen[str], backend: str) -> bool:
    if client.poll() is None and backend == "slurm":
        slurm_daemons.resume_nodes()
        time.sleep(1.0)
    return client.poll() is not None


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("backend", ["local", pytest.param("slurm", marks=pytest.mark.slurm)])
def test_a_graph_survives_chaos(tmp_path: Path, backend: str) -> None:
    with slurm_daemons.wrecked() if backend == "slurm" else contextlib.nullcontext():
        go_through_chaos(tmp_path, backend)


def go_through_chaos(tmp_path: Path, backend: str) -> None:
    expected = calm_answer(tmp_path / "calm")
    folder = tmp_path / "chaos"
    folder.mkdir()
    clients = chaotic_clients(folder, backend, THREE_HUNDRED)
    dice = random.Random(os.environ.get("CHAOS_SEED", "17"))
    client = clients.start()
    began = time.monotonic()
    blows = 0
    while time.monotonic() - began < CHAOS_S and clients.results() < 300:
        time.sleep(dice.uniform(0.2, 2.0))
        if client.poll() is not None:
            client.communicate()
            client = clients.start()
        blow = dice.random()
        if blow < 0.3:
            client.kill()
        elif blow < 0.85:
            victims = jobs_of(clients.cache)
            if victims:
                with contextlib.suppress(psutil.Error):
                    dice.choice(victims).send_signal(signal.SIGKILL)
        elif backend == "slurm":
            with slurm_daemons.controller_down(kill=dice.random() < 0.5):
                time.sleep(dice.uniform(0.0, 4.0))
        blows += 1
    assert blows > 10
    client.kill()
    client.communicate()
    published = {path.name: path.stat().st_ino for path in clients.cache.glob("results/*/*.h5")}
    # Calm again. A client may be told of a task that was killed too often: it computes again.
    for _ in range(CLIENTS):
        client = clients.start()
        poll(lambda: ended(client, backend), CALM_S, "a client's end", clients.tell)  # noqa: B023
        out, _ = client.communicate()
        if client.returncode == 0:
            break
    assert client.returncode == 0, clients.tell()
    assert out.splitlines()[-1] == expected
    after = {path.name: path.stat().st_ino for path in clients.cache.glob("results/*/*.h5")}
    assert published.items() <= after.items()  # nothing that was published ran again
    poll(lambda: not jobs_of(clients.cache), LAST_S, "the end of all jobs", clients.tell)
    clean(clients.cache)
    assert not list(clients.cache.rglob(".tmp~*"))
    poll(lambda: not queued(clients), LAST_S, "the end of what is queued", clients.tell)


def queued(clients: Clients) -> list[str]:
    """Return the jobs that wait, after a clean-up: a controller may have brought them back."""
    clean(clients.cache)
    rows = [row for row in clients.queued() if "|PENDING|" in row]
    if rows:
        time.sleep(2.0)
    return rows
