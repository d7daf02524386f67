"""What test jobs run in place of a task: the definition's file name says what to do."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path


def run(definition: str, index: int) -> int:
    """Entry point of warm workers in tests."""
    code: int = globals()["body_" + Path(definition).name](Path(definition).parent, index)
    return code


def note(folder: Path, index: int, value: object) -> None:
    """Leave a finding for the test, whole or not at all."""
    draft = folder / f"{index}.draft{os.getpid()}"
    draft.write_text(json.dumps(value))
    draft.rename(folder / f"{index}.json")


def body_nothing(folder: Path, index: int) -> int:
    return 0


def body_count(folder: Path, index: int) -> int:
    """Leave one line per run: two runs of one job show."""
    descriptor = os.open(folder / "runs", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{index}\n".encode())
    os.close(descriptor)
    return 0


def body_fail_until_file(folder: Path, index: int) -> int:
    """Count, and fail as long as the test has not left the file ``mended``."""
    body_count(folder, index)
    return 0 if (folder / "mended").exists() else 5


def body_warned(folder: Path, index: int) -> int:
    """Listen for the warning before the time limit, and end upon it."""
    warned: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: warned.append(number))
    note(folder, index, os.getpid())
    while not warned:
        signal.pause()
    return 4


def body_vanish(folder: Path, index: int) -> int:
    os._exit(0)


def body_steward(folder: Path, index: int) -> int:
    """Do with the queue what a client does: look, run again, hand over, cancel."""
    from local_harness import Bench

    told = json.loads((folder / "told").read_text())
    bench = Bench(folder, first_index=1000)
    again = bench.job("fail_until_file", told["name"], index=told["index"])
    new = bench.job("count")
    ids = bench.submit(new)
    (folder / "mended").touch()
    rerun = bench.backend.rerun(again, told["id"], {})
    bench.backend.cancel([told["cancel"]])
    ended = bench.end({**ids, "again": rerun})
    note(folder, index, [rerun, *(status.state.value for status in ended.values())])
    bench.backend.close()
    return 0


def body_count_slowly(folder: Path, index: int) -> int:
    """Take a while before and after the run counts, so that a kill can fall into either."""
    time.sleep(random.random() * 0.03)
    body_count(folder, index)
    time.sleep(random.random() * 0.03)
    return 0


def body_memory_upon_file(folder: Path, index: int) -> int:
    """Take memory only when the test lets go."""
    body_until_file(folder, index)
    return body_memory(folder, index)


def body_exit_three(folder: Path, index: int) -> int:
    return 3


def body_raises(folder: Path, index: int) -> int:
    raise ValueError("a body that raises")


def body_killed(folder: Path, index: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def body_forever(folder: Path, index: int) -> int:
    note(folder, index, os.getpid())
    while True:
        signal.pause()


def body_stubborn(folder: Path, index: int) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return body_forever(folder, index)


def body_until_file(folder: Path, index: int) -> int:
    """Run until the test lets go."""
    note(folder, index, os.getpid())
    while not (folder / "go").exists():
        time.sleep(0.01)
    return 0


def body_until_file_then_fail(folder: Path, index: int) -> int:
    body_until_file(folder, index)
    return 7


def body_memory(folder: Path, index: int) -> int:
    block = bytearray(400 * 2**20)
    return body_forever(folder, index) + len(block)


def body_mapped_file(folder: Path, index: int) -> int:
    """Read a large file through a map: memory that the kernel can take back."""
    import numpy as np

    array = np.memmap(folder / "large", mode="r", dtype="u1")
    total = int(array[::4096].sum())
    note(folder, index, total)
    time.sleep(1.5)  # the time that must pass is the queue's poll of memory, twice
    return 0


def body_leaves_children(folder: Path, index: int) -> int:
    """Leave a child, a grandchild that was given up by its parent, and one in its own group."""
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    child = subprocess.Popen(sleeper)
    own_group = subprocess.Popen(sleeper, process_group=0)
    script = f"import subprocess; print(subprocess.Popen({sleeper!r}, stdout=-3).pid)"
    orphan = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    note(folder, index, [child.pid, own_group.pid, int(orphan.stdout)])
    return 0


def body_leaves_children_forever(folder: Path, index: int) -> int:
    body_leaves_children(folder, index)
    while True:
        signal.pause()


def body_look(folder: Path, index: int) -> int:
    """Report everything that a process can see of how it was started."""
    print("to stdout")
    print("to stderr", file=sys.stderr)
    note(
        folder,
        index,
        {
            "environment": dict(os.environ),
            "directory": os.getcwd(),
            "files": {n: os.readlink(f"/proc/self/fd/{n}") for n in _open_files()},
            "session": os.getsid(0) == os.getpid(),
            "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
            "ignored": sorted(s for s in signal.valid_signals() if _ignored(s)),
            "main": sys.modules["__main__"].__name__,
            "modules": sorted(sys.modules),
            "random": random.random(),
            "threads": len(os.listdir("/proc/self/task")),
        },
    )
    return 0


def _ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


def _open_files() -> list[str]:
    names = []
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:  # the descriptor of the listing itself
            continue
        names.append(name)
    return names


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], int(sys.argv[2])))


def body_devices(folder: Path, index: int) -> int:
    """Tell which devices are seen, and go on until the test lets go."""
    names = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
    note(folder, index, {name: os.environ[name] for name in names if name in os.environ})
    while not (folder / "go").exists():
        time.sleep(0.01)
    return 0


def body_preloaded(folder: Path, index: int) -> int:
    """Tell which devices a library has seen, if the parent has imported it."""
    note(folder, index, getattr(sys.modules.get("looks_at_import"), "SEEN", "not imported"))
    return 0
