"""The quickstart, three times: until its client is killed, once more, and from the cache alone.

Each run is a process of its own, on the local queue whatever else this machine has.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "examples" / "quickstart.py"
FOLDER = ROOT / ".cache" / "demo"
RESULTS = 25
"""Twelve samples, a measurement of each, and the summary."""


def say(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m", flush=True)


def start() -> subprocess.Popen[bytes]:
    environment = {**os.environ, "DASK_BATCH__BACKEND": "local"}
    environment.pop("DASK_BATCH__CACHE_DIRECTORY", None)
    return subprocess.Popen([sys.executable, str(QUICKSTART)], cwd=FOLDER, env=environment)


def run() -> None:
    client = start()
    if client.wait() != 0:
        sys.exit(f"the quickstart failed with exit code {client.returncode}")


def finished() -> int:
    """Count the results in the cache."""
    return sum(1 for _ in FOLDER.glob("dask_batch_cache/results/*/*.h5"))


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)

    say("First run: its client is killed when the first task has finished")
    client = start()
    while finished() == 0 and client.poll() is None:
        time.sleep(0.02)
    client.send_signal(signal.SIGKILL)
    client.wait()
    print(f"killed; {finished()} result(s) in the cache", flush=True)

    say("The jobs go on without it")
    deadline = time.monotonic() + 300
    while (count := finished()) < RESULTS:
        if time.monotonic() > deadline:
            sys.exit(f"only {count} of {RESULTS} results after five minutes; logs: {FOLDER}")
        print(f"{count} result(s)", flush=True)
        time.sleep(1)
    print(f"{count} result(s)", flush=True)

    say("Second run: the same script finds everything done")
    run()

    say("What the cache knows")
    from dask_batch import get_cache_data

    entries = get_cache_data(FOLDER / "dask_batch_cache")
    for name in ("draw", "measure", "summarise"):
        times = [entry["runtime"] for entry in entries if entry["function"] == name]
        print(f"{name:10} {len(times):3} task(s), {sum(times):6.2f} s of work, each run once")


if __name__ == "__main__":
    main()
