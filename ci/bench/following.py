"""What it costs a client to follow a thousand jobs that are pending.

    python ci/bench/following.py [--jobs 1000] [--seconds 60] [--slurm]

Told are the CPU time of the client's process over the wall time of a steady stretch, as a share of
one core, and its ratio to a floor: a process with as many idle futures that does nothing but call
``squeue`` as often, and split its answer into lines. It is measured for a young run, which asks
every few seconds, and for one that is an hour old. Calls of Slurm's commands are counted, and set
against those that the rule for the interval allows.

Jobs are held by a stub of Slurm's commands, or (``--slurm``) by the real ones: a root that may not
begin before tomorrow, and its dependents.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import dask

from dask_batch import SlurmClusterExecutor
from dask_batch.verdicts.follow import poll_interval_s

HOUR_S = 3600.0
SETTLE_S = 5.0
POLL_S = {"shortest_s": 5.0, "longest_s": 120.0}

SBATCH = """#!/bin/sh
for word in "$@"; do case $word in --job-name=*) name=${word#*=};; esac; done
echo "$$ $name" >> "$STUB_FOLDER/jobs"
echo $$
"""
LIST = """#!{python} -IS
import os, re, sys
folder = os.environ["STUB_FOLDER"]
with open(folder + "/calls", "a") as calls:
    calls.write(os.path.basename(sys.argv[0]) + "\\n")
form = next((b for a, b in zip(sys.argv, sys.argv[1:]) if a in ("-O", "-o")), "")
words = {{"jobid": 0, "jobarrayid": 0, "%a": 0, "%i": 0, "name": 1, "%j": 1}}
other = {{"state": "PENDING", "%t": "PENDING", "exit_code": "0", "reason": "(Dependency)"}}
for line in open(folder + "/jobs"):
    job = line.split()
    cells = [f.split(":")[0].strip().lower() for f in re.split("[|,]+", form) if f.strip()]
    print("|".join(job[words[c]] if c in words else other.get(c, "") for c in cells))
"""
QUIET = '#!/bin/sh\necho "${0##*/}" >> "$STUB_FOLDER/calls"\n'
SINFO = "#!/bin/sh\necho 'debug|1|64|999999|infinite|(null)'\n"


def lay_out_stub(folder: Path) -> None:
    """Put commands on PATH that take every job and keep it pending."""
    commands = {
        "sbatch": SBATCH,
        "squeue": LIST.format(python=sys.executable),
        "sinfo": SINFO,
        **dict.fromkeys(("sacct", "scontrol", "scancel"), QUIET),
    }
    for name, text in commands.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "jobs").touch()
    (folder / "calls").touch()
    os.environ["STUB_FOLDER"] = str(folder)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


def lay_out_wrappers(folder: Path) -> None:
    """Put wrappers of Slurm's own commands on PATH that note each call."""
    for name in ("squeue", "sacct"):
        found = subprocess.run(["which", name], capture_output=True, text=True, check=True)
        (folder / name).write_text(QUIET + f'exec {found.stdout.strip()} "$@"\n')
        (folder / name).chmod(0o755)
    (folder / "calls").touch()
    os.environ["STUB_FOLDER"] = str(folder)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


def add(*values: int) -> int:
    return sum(values)


@dataclass(frozen=True, slots=True)
class Stretch:
    """What was used over some time."""

    wall_s: float
    client_s: float
    """CPU time of the process itself."""
    commands_s: float
    """CPU time of the commands that it ran to their end."""
    calls: int

    @property
    def share(self) -> float:
        """Of one core, the process itself."""
        return self.client_s / self.wall_s


def measure(folder: Path, seconds: float) -> Stretch:
    """Let the process be for some time."""

    def reading() -> tuple[float, float, float, int]:
        times = os.times()
        calls = len((folder / "calls").read_text().splitlines())
        return (
            time.monotonic(),
            time.process_time(),
            times.children_user + times.children_system,
            calls,
        )

    before = reading()
    time.sleep(seconds)
    after = reading()
    wall_s, client_s, commands_s = (b - a for a, b in zip(before[:3], after[:3], strict=True))
    return Stretch(wall_s, client_s, commands_s, after[3] - before[3])


def floor(jobs: int, calls: int) -> float:
    """Return the CPU time of bare calls of ``squeue``, with idle futures in memory."""
    futures: list[Future[int]] = [Future() for _ in range(jobs)]
    began = time.process_time()
    for _ in range(calls):
        argv = ["squeue", "-h", "-r", "-t", "all", "-O", "JobID:|,State:|,exit_code:|,Reason:"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        assert len(done.stdout.splitlines()) >= len(futures)
    return time.process_time() - began


def expected_calls(age_s: float, over_s: float) -> int:
    """Return how many questions the rule for the interval allows, from an age on."""
    end_s, calls = age_s + over_s, 0
    while age_s < end_s:
        age_s += poll_interval_s(age_s, **POLL_S)
        calls += 1
    return calls


def tell(name: str, stretch: Stretch, jobs: int, age_s: float) -> None:
    share, calls = stretch.share, max(stretch.calls, 1)
    least = floor(jobs, calls) * stretch.calls / calls
    ratio = f"{stretch.client_s / least:5.1f} times the floor" if least else "no call to compare"
    allowed = expected_calls(age_s, stretch.wall_s)
    print(
        f"{name}: {100 * share:5.2f} % of a core over {stretch.wall_s:.0f} s, {ratio}; "
        f"commands {100 * stretch.commands_s / stretch.wall_s:.2f} %; "
        f"{stretch.calls} calls, {allowed} allowed"
    )


def grow_old(exe: SlurmClusterExecutor, age_s: float) -> None:
    """Let the run look as if it had been handed over earlier."""
    watch = exe._session.engine._watch
    for entry in list(watch.entries.values()):
        entry.since -= age_s
    exe._session.backend.wake()


def follow(exe: SlurmClusterExecutor, folder: Path, jobs: int, seconds: float) -> None:
    """Hand over a root that may not begin yet and what waits for it; measure and tell."""
    task = dask.delayed(add, pure=False)
    with dask.annotate(resources={"job_extra_directives": ["--begin=now+1day"]}):
        root = task(0)
    began = time.monotonic()
    futures = exe.compute(*(task(root, i) for i in range(jobs - 1)))
    exe._session.engine.flush()
    print(f"{len(futures) + 1:,} jobs handed over in {time.monotonic() - began:.0f} s")
    time.sleep(SETTLE_S)
    age_s = time.monotonic() - began
    tell("young", measure(folder, seconds), jobs, age_s)
    grow_old(exe, HOUR_S)
    time.sleep(SETTLE_S)
    tell("old  ", measure(folder, seconds), jobs, HOUR_S)
    print(f"questions an hour in steady state: {expected_calls(HOUR_S, HOUR_S)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--slurm", action="store_true", help="the real Slurm, not a stub")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "bin"
        folder.mkdir()
        (lay_out_wrappers if asked.slurm else lay_out_stub)(folder)
        exe = SlurmClusterExecutor(cache_directory=Path(name) / "cache")
        try:
            follow(exe, folder, asked.jobs, asked.seconds)
        finally:
            exe.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    main()
