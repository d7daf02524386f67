"""What the tests of long-lived workers have them do."""

from __future__ import annotations

import gc
import json
import os
import random
import re
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "beginning",
    "closing_all",
    "count",
    "crash",
    "deaf",
    "detaching",
    "die",
    "die_once",
    "drawn",
    "forking",
    "leave",
    "meet",
    "printed",
    "process",
    "raising",
    "seeded",
    "slow",
    "spoiling",
    "standing",
    "told",
]


def process(*_: Any) -> int:
    """Return the process that runs this."""
    return os.getpid()


def told(folder: Path, word: str) -> None:
    """Leave a trace with this process's number in it."""
    (folder / f"{word}.{os.getpid()}.{random.SystemRandom().getrandbits(48):x}").touch()


def count(step: int) -> int:
    """Count in a library's module, which stays in a process."""
    json.counted = getattr(json, "counted", 0) + step  # type: ignore[attr-defined]
    return json.counted  # type: ignore[attr-defined, no-any-return]


def beginning(folder: Path) -> dict[str, Any]:
    """Begin a worker."""
    told(folder, "begin")
    return {"notes": [], "name": f"worker of {os.getpid()}"}


def raising(word: str) -> None:
    raise ValueError(word)


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)


def leave(code: int) -> None:
    os._exit(code)


def die_once(folder: Path, word: str) -> int:
    """Die at the first call, and return the process at the next."""
    first = not list(folder.glob(f"{word}.*"))
    told(folder, word)
    if first:
        die()
    return os.getpid()


def meet(folder: Path, own: str, other: str) -> int:
    """Return when another call is under way in another process at the same time."""
    told(folder, own)
    until = time.monotonic() + 60
    while not list(folder.glob(f"{other}.*")):
        if time.monotonic() > until:
            raise TimeoutError(f"{other} has not come")
        time.sleep(0.01)
    return os.getpid()


def placed(folder: Path, own: str, other: str, executorlib_worker_id: int) -> int:
    """Return the number of the worker, as executorlib fills it in, while another one is busy."""
    meet(folder, own, other)
    return executorlib_worker_id


def slow(folder: Path, word: str) -> int:
    """Be under way until the file ``go`` is there."""
    told(folder, word)
    while not (folder / "go").exists():
        time.sleep(0.01)
    return os.getpid()


def forking(folder: Path, word: str) -> None:
    """Have a child that does not end by itself."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        told(folder, word)
        while True:
            time.sleep(1)
    slow(folder, f"parent-of-{word}")


def deaf(folder: Path) -> None:
    """Be in compiled code that does not let go of the interpreter, for ages."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    told(folder, "deaf")
    re.match(r"(a+)+b", "a" * 60)


def printed(word: str) -> int:
    print("out", word, flush=True)
    print("err", word, file=sys.stderr, flush=True)
    os.system(f"echo child {word}")
    return os.getpid()


def detaching(folder: Path, word: str) -> None:
    """Have two children that no process group holds, and that do not end by themselves."""
    for forks in (1, 2):
        if os.fork() == 0:
            os.setsid()
            if forks == 2 and os.fork():
                os._exit(0)
            told(folder, word)
            time.sleep(1000)


def spoiling() -> int:
    """Change what belongs to the whole process."""
    os.umask(0)
    os.chdir("/")
    os.environ["SPOILT"] = "1"
    os.environ.pop("HOME", None)
    sys.path.insert(0, "/spoilt")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    gc.disable()
    sys.setswitchinterval(1)
    return seeded()


def seeded() -> int:
    """Seed the global generators as people do, so that the next numbers are known."""
    np.random.seed(0)
    random.seed(0)
    return os.getpid()


def standing() -> tuple[Any, ...]:
    """Tell what belongs to the whole process."""
    umask = os.umask(0)
    os.umask(umask)
    return (
        umask,
        os.getcwd(),
        {name: value for name, value in os.environ.items() if not name.startswith("DASK_")},
        list(sys.path),
        str(signal.getsignal(signal.SIGTERM)).partition(" at ")[0],
        signal.pthread_sigmask(signal.SIG_BLOCK, []),
        resource.getrlimit(resource.RLIMIT_NOFILE),
        gc.isenabled(),
        sys.getswitchinterval(),
    )


def drawn() -> tuple[float, float]:
    """Return random numbers."""
    return float(np.random.random()), random.random()


def closing_all(word: str) -> str:
    """Close all files, as who becomes a daemon does."""
    os.closerange(0, 2000)
    return word
