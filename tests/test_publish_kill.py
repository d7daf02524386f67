"""A writer is killed at each step of publishing; the next one publishes, and clean leaves nothing.

The writer is a process of its own. Before it publishes, the calls that make up the steps are
replaced by ones that count, and kill the process before or after the n-th of them, or in the
middle of a write. So every state that a kill can leave on the disk is there once.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dask_batch import clean, verify
from dask_batch.cache import attempts, files
from dask_batch.cache.claims import Claims, Owner, Run
from dask_batch.cache.definitions import DefinitionDraft, read_definition, write_definitions
from dask_batch.cache.store import Cache
from dask_batch.code import pickling

KEY = "ab" * 32
STEPS = ("mkdir", "open", "fchmod", "write", "fsync", "link", "unlink", "close")
VALUE = {"array": np.arange(1_000.0), "text": "größe"}


# ---- killed ------------------------------------------------------------------------------------


def doomed(action: Callable[[], Any], step: int, when: str) -> int:
    """Run an action in a process that is killed at its n-th call; return how that ended."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    calls = 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls != step:
                return call(*args, **options)
            if when == "before":
                die()
            if when == "amidst" and name == "write":
                call(args[0], bytes(args[1])[: len(args[1]) // 2])
                die()
            try:
                return call(*args, **options)
            finally:
                die()

        return wrapper

    try:
        for name in STEPS:
            setattr(os, name, counted(name, getattr(os, name)))
        action()
    except BaseException:
        os._exit(1)
    os._exit(0)


def publish_result(cache: Cache) -> None:
    cache.publish(KEY, VALUE, {"function": "f"})
    back = cache.load(KEY)
    assert back["text"] == VALUE["text"]
    assert np.array_equal(back["array"], VALUE["array"])


def publish_definitions(cache: Cache) -> None:
    path = cache.path / "definitions" / "run.h5"
    if not path.exists():
        write_definitions(cache, "run", {}, [DefinitionDraft({"key": KEY}, pickling.dumps(7))])
    read = read_definition(path, 0)
    assert pickling.loads(read.data, read.buffers) == 7


def publish_claims(cache: Cache) -> None:
    claims = Claims(cache)
    run = Run(f"r{secrets.token_hex(4)}", Owner.current(), "local", 1.0, (("f-0", KEY),))
    claims.begin(run)
    claims.claim(KEY, run)
    claims.record_job(run.id, run.jobs[0][0], "1")
    claims.record(run.id, {"event": "aborted"})
    current = claims.current(KEY)
    assert current is not None
    assert claims.log(run.id).aborted


def publish_attempt(cache: Cache) -> None:
    attempts.start(cache, KEY, 0, {"job_id": "1", "restart": 0})
    attempts.end(cache, KEY, 0, {"outcome": "exception"})
    assert attempts.read_end(cache, KEY, 0) == {"outcome": "exception"}


def publish_name(cache: Cache) -> None:
    cache.bind_name("name", KEY)
    assert cache.resolve_name("name") == KEY


@pytest.mark.parametrize("when", ["before", "amidst", "after"])
@pytest.mark.parametrize(
    "publish",
    [publish_result, publish_definitions, publish_claims, publish_attempt, publish_name],
    ids=lambda function: function.__name__,
)
def test_killed_at_each_step(tmp_path: Path, publish: Callable[[Cache], None], when: str) -> None:
    seen = set()
    for step in range(1, 200):
        cache = Cache(tmp_path / str(step))
        status = doomed(lambda cache=cache: publish(cache), step, when)
        seen.add(status)
        publish(cache)
        clean(cache.path)
        assert not [p for p in cache.path.rglob("*") if p.name.startswith(files.PRIVATE_PREFIX)]
        report = verify(cache.path)
        assert report.ok, str(report)
        publish(cache)
        if status == 0:
            break
    assert seen == {0, signal.SIGKILL}
    assert step > 8, "there are as many steps as that"


def test_clean_leaves_the_files_of_a_writer_that_lives(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")

    def write(private: Path) -> None:
        removed = clean(cache.path, keep=0).removed
        assert "temporary" not in removed
        private.write_bytes(b"content")

    assert files.publish_no_clobber(cache.path / "results" / "ab" / "file", write)


# ---- raced -------------------------------------------------------------------------------------

RACER = """
import os, sys
from dask_batch.cache.store import Cache

if sys.argv[3] == "no links":
    def refuse(source, target, **_):
        raise PermissionError(1, "Operation not permitted", source, None, target)
    os.link = refuse
cache, me = Cache(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for number in range(40):
    print(int(cache.publish(f"{number:064x}", [me] * 3000, {"function": "f"})), flush=True)
"""


@pytest.mark.parametrize("links", ["links", "no links"])
def test_of_processes_that_race_for_a_key_one_publishes(tmp_path: Path, links: str) -> None:
    cache = Cache(tmp_path / "cache")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(cache.path), str(number), links],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(3)
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    won = [racer.communicate(timeout=120)[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    for number in range(40):
        winners = [racer for racer, answers in enumerate(won) if answers[number] == "1"]
        assert [cache.load(f"{number:064x}")] == [[winner] * 3000 for winner in winners]
    assert not [p for p in cache.path.rglob("*") if p.name.startswith(files.PRIVATE_PREFIX)]
