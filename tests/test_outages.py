"""A batch system that is away, forgets, or says nothing: nothing fails, is lost, or runs twice."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import slurm_daemons
from clients import Client, Clients, poll

END_S = 420.0
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(2 * 240 + 300 + END_S + 300)]
"""More than all that a test waits for: what does not come is to be told, rather than cut off."""

HUNDRED = """
def graph():
    task = dask.delayed(body)
    leaves = [task(f"leaf{i}", seconds=random.Random(i).uniform(0.5, 4.0)) for i in range(75)]
    groups = [task(f"group{i}", *leaves[3 * i : 3 * i + 3], seconds=0.5) for i in range(25)]
    return dask.delayed(len)([*groups])

if __name__ == "__main__":
    compute(graph())
"""
ONCE = Counter([f"leaf{i}" for i in range(75)] + [f"group{i}" for i in range(25)])


def finished(clients: Clients, client: Client) -> None:
    poll(lambda: client.poll() is not None, END_S, "the client's end", clients.tell)
    out, _ = client.communicate()
    assert client.returncode == 0, clients.tell()
    assert out.splitlines()[-1] == "25"


def test_the_controller_is_away_for_a_minute(tmp_path: Path) -> None:
    slurm_daemons.require_ours()
    clients = Clients(tmp_path, "slurm", HUNDRED)
    client = clients.start()
    poll(lambda: len(clients.bodies()) >= 5, 120, "the first tasks", clients.tell)
    with slurm_daemons.controller_down():
        time.sleep(60)
    finished(clients, client)
    assert clients.bodies() == ONCE


@pytest.fixture
def wrecked() -> Iterator[None]:
    with slurm_daemons.wrecked():
        yield


@pytest.mark.usefixtures("wrecked")
def test_the_controller_is_killed_while_jobs_are_handed_over_and_run(tmp_path: Path) -> None:
    clients = Clients(tmp_path, "slurm", HUNDRED)
    client = clients.start()
    for fewest in (1, 40):
        some = lambda n=fewest: attended(len(clients.bodies()) >= n)  # noqa: E731
        poll(some, 240, f"{fewest} tasks", clients.tell)
        with slurm_daemons.controller_down(kill=True):
            time.sleep(3)
    poll(lambda: attended(clients.results() == 101), 300, "the end", clients.tell)
    finished(clients, client)
    # A job whose first copy was killed with the controller's memory of it may begin twice; none
    # that has published runs again, and each has a result.
    assert clients.bodies().keys() == ONCE.keys()
    assert clients.results() == 101


def attended(done: bool) -> bool:
    """Look after the nodes while something is waited for."""
    if not done:
        slurm_daemons.resume_nodes()
        time.sleep(1.0)
    return done


FLAKY = """#!{python} -ISE
import os, random, sys
if random.random() < 0.5:
    sys.stderr.write("slurm_load_jobs error: Unable to contact slurm controller\\n")
    sys.exit(1)
os.execv({real!r}, [{real!r}, *sys.argv[1:]])
"""


@pytest.mark.parametrize("command", ["squeue", "sacct"])
def test_a_command_fails_half_of_the_time(tmp_path: Path, command: str) -> None:
    commands = tmp_path / "commands"
    commands.mkdir()
    real = shutil.which(command)
    assert real is not None
    wrapper = commands / command
    wrapper.write_text(FLAKY.format(python=sys.executable, real=real))
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    clients = Clients(tmp_path, "slurm", HUNDRED)
    client = clients.start(PATH=f"{commands}:{os.environ['PATH']}")
    finished(clients, client)
    assert clients.bodies() == ONCE


FORGOTTEN = """
def graph(extra):
    task = dask.delayed(body)
    parent = task("parent")
    return [parent, *(task(name, parent) for name in extra)]

def broken(name):
    body(name)
    raise ValueError(name)

if __name__ == "__main__":
    if sys.argv[1:] == ["broken"] or os.environ.get("BROKEN"):
        failing = dask.delayed(broken)("broken", dask_key_name="broken")
        compute(dask.delayed(body)("below", failing))
    else:
        compute(graph(os.environ["EXTRA"].split()))
"""


def test_parents_that_slurm_has_forgotten(tmp_path: Path) -> None:
    """Slurm takes a dependency on a forgotten job as met, even if that job has failed."""
    slurm_daemons.require_ours()
    with slurm_daemons.settings(SLURM_TEST_MIN_JOB_AGE="5"):
        clients = Clients(tmp_path, "slurm", FORGOTTEN)
        assert "parent()" in clients.run(EXTRA="one")
        failing = clients.start(BROKEN="1")
        _, err = failing.communicate(timeout=120)
        assert failing.returncode != 0
        assert "ValueError: broken" in err
        poll(lambda: not known_jobs(tmp_path), 240, "slurmctld's forgetting", clients.tell)
        # The finished parent is not run again; the failed one is, and its child never without it.
        assert "two(parent())" in clients.run(EXTRA="one two")
        failing = clients.start(BROKEN="1")
        _, err = failing.communicate(timeout=120)
        assert "ValueError: broken" in err
        assert clients.bodies() == Counter(parent=1, one=1, two=1, broken=2)


def known_jobs(folder: Path) -> list[str]:
    import subprocess

    argv = ["squeue", "-h", "-t", "all", "-o", "%A %Z"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    return [line for line in done.stdout.splitlines() if str(folder) in line]
