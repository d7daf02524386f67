"""``python step_clients.py NAME FOLDER``: what clients do inside an allocation, for the tests.

The last line that each prints is what it has to tell, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from bodies import add, fail, gated, kill_myself, noted, trace, traces
from dask_batch import FluxJobExecutor, SlurmJobExecutor, cluster_get
from dask_batch.errors import BatchError

EXECUTORS = {"slurm": SlurmJobExecutor, "flux": FluxJobExecutor}
Executor: Any = EXECUTORS[os.environ.get("STEP_TEST", "slurm")]


def at_work(folder: Path, seconds: float = 0.4) -> dict[str, Any]:
    """Tell when this ran, and what was visible to it."""
    began = time.time()
    time.sleep(seconds)
    seen = {name: os.environ.get(name, "") for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
    return {"began": began, "ended": time.time(), "pid": os.getpid(), **seen}


def fill(megabytes: int) -> int:
    """Use so much memory."""
    return len(b"x" * (megabytes * 2**20))


def sleep_long(folder: Path, name: str) -> None:
    """Leave the process's id behind, and sleep whatever signals come."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / f"{name}.pid").write_text(str(os.getpid()))
    time.sleep(300)


def once_gated(folder: Path, name: str, *parents: Any) -> str:
    """Wait for the gate, and leave the process's id behind."""
    (folder / f"{name}.pid").write_text(str(os.getpid()))
    return gated(folder, name, *parents)


def ranked(folder: Path, name: str, other: str) -> list[Any]:
    """Tell of a rank in which company it is, once another call's ranks have been met."""
    from mpi4py import MPI

    (folder / f"{name}.here").touch()
    deadline = time.monotonic() + 60
    while not (folder / f"{other}.here").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} runs, and {other} does not")
        time.sleep(0.02)
    world = MPI.COMM_WORLD
    return [world.Get_rank(), world.Get_size()]


# ---- clients -----------------------------------------------------------------------------------


def sums(folder: Path) -> Any:
    with Executor(max_workers=4) as exe:
        futures = [exe.submit(sum, [i, i], resource_dict={"cores": 1}) for i in range(4)]
        values = [f.result() for f in futures]
        ids = [f.job_id for f in futures]
    return {"values": values, "ids": ids}


def many(folder: Path, caps: str = "{}", each: str = "{}") -> Any:
    with Executor(cache_directory=folder / "cache", **json.loads(caps)) as exe:
        asked = {**json.loads(each), "cache": False}
        futures = [exe.submit(at_work, folder, resource_dict=asked) for _ in range(7)]
        return [f.result() for f in futures]


def devices(folder: Path) -> Any:
    with Executor() as exe:
        gpu = [exe.submit(at_work, folder, resource_dict={"gpus_per_core": 1}) for _ in range(4)]
        cpu = [exe.submit(at_work, folder) for _ in range(2)]
        return {"gpu": [f.result() for f in gpu], "cpu": [f.result() for f in cpu]}


def dependent(folder: Path) -> Any:
    with Executor(cache_directory=folder / "cache") as exe:
        future: Any = 0
        for i in range(4, 8):
            future = exe.submit(add, i, future)
        broken = exe.submit(add, exe.submit(fail, "the weakest"), 1)
        return {"sum": future.result(), "broken": repr(broken.exception())}


def verdicts(folder: Path) -> Any:
    told = {}
    with Executor(cache_directory=folder / "cache") as exe:
        calls = {
            "exception": exe.submit(fail, "lost"),
            "killed": exe.submit(kill_myself, 9),
            "timeout": exe.submit(time.sleep, 60, resource_dict={"run_time_max": 2}),
        }
        if Executor is SlurmJobExecutor:
            asked = {"slurm_cmd_args": ["--nodelist=nowhere"]}
            calls["memory"] = exe.submit(fill, 900, resource_dict={"memory_max": 0.3})
            calls["refused"] = exe.submit(add, 1, 1, resource_dict=asked)
        for name, future in calls.items():
            error = future.exception()
            told[name] = [type(error).__name__, str(error)]
    return told


def table(folder: Path, wait: str, cancel: str) -> Any:
    exe = Executor(max_workers=1, cache_directory=folder / "cache")
    running = exe.submit(once_gated, folder, "running")
    waiting = exe.submit(noted, folder, "waiting", 2)
    while not (running.running() and (folder / "running.pid").exists()):
        time.sleep(0.01)
    if wait == "wait":
        (folder / "open").touch()
    exe.shutdown(wait == "wait", cancel_futures=cancel == "cancel")
    told = {
        "running": _state(running),
        "waiting": _state(waiting),
        "pid": int((folder / "running.pid").read_text()),
    }
    (folder / "open").touch()
    return told


def _state(future: Any) -> str:
    if future.cancelled():
        return "cancelled"
    return "done" if future.done() else "open"


def killed(folder: Path) -> Any:
    with Executor(cache_directory=folder / "cache") as exe:
        futures = [exe.submit(sleep_long, folder, f"sleeper{i}") for i in range(2)]
        return [f.result() for f in futures]


def chain(folder: Path) -> Any:
    with Executor(cache_directory=folder / "cache") as exe:
        first = exe.submit(noted, folder, "first", 1)
        first.result()
        second = exe.submit(once_gated, folder, "second", first)
        third = exe.submit(noted, folder, "third", [second])
        print("handed over", flush=True)
        return third.result()


def kept(folder: Path) -> Any:
    with Executor(cache_directory=folder / "cache") as exe:
        return [exe.submit(noted, folder, "kept", i).result() for i in range(2)]


def not_kept(folder: Path) -> Any:
    with Executor() as exe:
        values = [exe.submit(noted, folder, "same", 7).result() for _ in range(3)]
        unread = exe.submit(noted, folder, "unread", list(range(1000)))
        place = exe.cache_directory
        there = place.exists()
    runs = traces(folder)
    return [values, len(unread.result()), runs, there, place.exists(), place.parent.exists()]


def graph(folder: Path) -> Any:
    import dask

    task = dask.delayed(add)
    total = task(task(1, 2), task(3, 4))
    options = {"backend": f"{os.environ.get('STEP_TEST', 'slurm')}-step"}
    return dask.compute(total, scheduler=cluster_get, cache_directory=folder / "cache", **options)


def ranks(folder: Path) -> Any:
    with Executor() as exe:
        futures = [
            exe.submit(ranked, folder, *names, resource_dict={"cores": 2})
            for names in (("one", "other"), ("other", "one"))
        ]
        return [f.result() for f in futures]


def by_mpiexec(folder: Path) -> Any:
    with Executor() as exe:
        asked = {"cores": 2, "pmi_mode": "mpiexec"}
        return exe.submit(ranked, folder, "mpiexec", "mpiexec", resource_dict=asked).result()


def alone(folder: Path) -> Any:
    """Use MPI in one process: in a step as its library needs it, and in one of another kind."""
    told: list[Any] = []
    for mode in ("pmix", "none"):
        with Executor(pmi_mode=mode) as exe:
            try:
                told.append(exe.submit(ranked, folder, "alone", "alone").result())
            except BatchError as error:
                told.append(str(error))
    return told


def too_large(folder: Path) -> Any:
    told = {}
    with Executor(cache_directory=folder / "cache") as exe:
        for name, value in (
            ("threads_per_core", 99), ("gpus_per_core", 9), ("memory_max", 9999),
            ("partition", "long"), ("slurm_cmd_args", ["--ntasks=2"]),
        ):  # fmt: skip
            try:
                exe.submit(trace, folder, "never", resource_dict={name: value})
                told[name] = "accepted"
            except BatchError as error:
                told[name] = str(error)
    return told


def once_failing(folder: Path, name: str) -> int:
    """Fail the first time, and tell which time it is."""
    trace(folder, name)
    if traces(folder)[name] == 1:
        kill_myself(9)
    return traces(folder)[name]


def repeated(folder: Path) -> Any:
    asked = {"retries": 1, "retry_exceptions": True}
    with Executor(cache_directory=folder / "cache") as exe:
        future = exe.submit(once_failing, folder, "tried", resource_dict=asked)
        return exe.submit(add, future, 10).result()


def interrupted(folder: Path) -> Any:
    import dask

    task = dask.delayed(sleep_long)
    graph = [task(folder, f"sleeper{i}") for i in range(2)]
    options = {"backend": "slurm-step", "cache_directory": folder / "cache"}
    return dask.compute(*graph, scheduler=cluster_get, **options)


def two_executors(folder: Path) -> Any:
    options = {"cache_directory": folder / "cache"}
    with Executor(max_workers=1, **options) as one, Executor(max_workers=1, **options) as other:
        first = one.submit(at_work, folder, 1.0)
        second = other.submit(noted, folder, "second", [first])
        same = other.submit(at_work, folder, 1.0)
        return [second.result()[0] == first.result() == same.result()]


def ends_without_shutdown(folder: Path) -> Any:
    exe = Executor(cache_directory=folder / "cache")
    exe.submit(at_work, folder)
    exe.submit(noted, folder, "last")
    return None


if __name__ == "__main__":
    # What a shell starts in the background ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    name, where, *rest = sys.argv[1:]
    answer = globals()[name](Path(where), *rest)
    print(json.dumps(answer), flush=True)
