"""What calls are given: futures anywhere, large arrays, what cannot travel."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest

from bodies import add, fail, gated, noted, open_gate, traces
from clients import poll
from dask_batch import SingleNodeExecutor
from dask_batch.cache.store import Cache
from dask_batch.errors import DependencyFailedError, SerializationError


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def exe(cache: Path) -> Iterator[SingleNodeExecutor]:
    with SingleNodeExecutor(cache_directory=cache) as executor:
        yield executor


@dataclasses.dataclass(frozen=True)
class Pair:
    left: Any
    right: Any


class Holder:
    def __init__(self, held: Any) -> None:
        self.held = held


# ---- futures as arguments ----------------------------------------------------------------------


def flat(value: Any) -> list[int]:
    """Return the numbers in a structure, in its order; sets sorted."""
    if isinstance(value, dict):
        return flat([part for item in value.items() for part in item])
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [number for part in value for number in flat(part)]
    if isinstance(value, Pair):
        return flat([value.left, value.right])
    if isinstance(value, Holder):
        return flat(value.held)
    return [value]


NESTINGS = {
    "list": lambda f: [1, f, [f]],
    "tuple": lambda f: (f, (1, f)),
    "dict value": lambda f: {1: f, 2: {3: f}},
    "dict key": lambda f: {f: 1},
    "set": lambda f: {f, 1},
    "frozenset": lambda f: frozenset({f, 1}),
    "dataclass": lambda f: Pair(f, [Pair(1, f)]),
    "attribute": lambda f: Holder({1: f}),
    "object array": lambda f: np.array([f, 1], dtype=object).tolist(),
}


@pytest.mark.parametrize("where", NESTINGS)
def test_a_future_may_stand_anywhere(exe: SingleNodeExecutor, where: str) -> None:
    future = exe.submit(add, 40, 2)
    nest = NESTINGS[where]
    child = exe.submit(flat, nest(future))
    assert child.result(60) == flat(nest(42))
    # The parent has ended now: the same call is the same task.
    assert exe.submit(flat, nest(future)).key == child.key


def test_a_future_may_be_a_keyword_or_part_of_the_function(exe: SingleNodeExecutor) -> None:
    future = exe.submit(add, 1, 2)
    assert exe.submit(add, a=future, b=future).result(60) == 6
    assert exe.submit(functools.partial(add, future), 1).result(60) == 4

    def closure() -> Any:
        return future + 1

    # In a closure it stands for its value, too: it travels with the function.
    assert exe.submit(closure).result(60) == 4


def test_whether_the_parent_has_ended_does_not_change_a_key(
    exe: SingleNodeExecutor, tmp_path: Path
) -> None:
    parent = exe.submit(gated, tmp_path, "parent")
    before = exe.submit(noted, tmp_path, "child", [parent])
    open_gate(tmp_path)
    assert before.result(60) == ["parent"]
    after = exe.submit(noted, tmp_path, "child", [parent])
    assert after.result(60) == ["parent"]
    assert before.key == after.key
    assert traces(tmp_path)["child"] == 1


def test_a_foreign_future_enters_by_its_value(exe: SingleNodeExecutor, tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        gate = threading.Event()
        done = pool.submit(int, 5)
        assert exe.submit(add, done, 1).result(60) == 6
        waiting = pool.submit(gate.wait)
        later = pool.submit(int, 7)
        child = exe.submit(add, later, 1)
        grandchild = exe.submit(add, child, 1)
        assert exe.submit(add, 1, 1).result(60) == 2  # nobody is held up by it
        assert not child.done()
        gate.set()
        assert waiting.result(60)
        assert child.result(60) == 8
        assert grandchild.result(60) == 9
    # By value: the same number written down is the same call.
    assert exe.submit(add, 7, 1).key
    assert exe.submit(noted, tmp_path, "again", done).result(60) == 5


def test_a_foreign_future_delays_leaving(cache: Path) -> None:
    gate = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        slow = pool.submit(lambda: gate.wait() and 3)
        with SingleNodeExecutor(cache_directory=cache) as executor:
            child = executor.submit(add, slow, 1)
            threading.Timer(0.1, gate.set).start()
        assert child.done()
        assert child.result() == 4


def test_a_future_of_another_cache_is_copied_over(exe: SingleNodeExecutor, tmp_path: Path) -> None:
    with SingleNodeExecutor(cache_directory=tmp_path / "other") as other:
        finished = other.submit(add, 1, 2)
        assert finished.result(60) == 3
        assert exe.submit(add, finished, 1).result(60) == 4
        slow = other.submit(gated, tmp_path, "slow")
        child = exe.submit(noted, tmp_path, "child", slow)
        assert not child.done()
        open_gate(tmp_path)
        assert child.result(60) == "slow"


def test_executors_of_one_cache_take_each_others_futures_before_they_are_handed_over(
    exe: SingleNodeExecutor, cache: Path, tmp_path: Path
) -> None:
    with SingleNodeExecutor(cache_directory=cache) as other:
        value = exe.submit(add, 0, 1)
        for step in range(4):
            value = other.submit(sum, [value, step])
            value = exe.submit(add, value, 1)
        assert value.result(60) == 11
        lazy = dask.delayed(add)(exe.submit(add, 20, 1), 1)
        assert lazy.compute(scheduler=other) == 22
        slow = exe.submit(gated, tmp_path, "slow")
        child = other.submit(noted, tmp_path, "child", [slow])
        poll(lambda: child.job_id is not None, 60, "the job of the child")  # it need not have ended
        assert not slow.done()
        open_gate(tmp_path)
        assert child.result(60) == ["slow"]
        failed = exe.submit(fail, "of the one")
        error = other.submit(add, failed, 1).exception(60)
        assert isinstance(error, DependencyFailedError)
        assert error.root == failed.key


def test_a_callback_has_a_small_value_at_once_as_of_a_pool(
    exe: SingleNodeExecutor, cache: Path, tmp_path: Path
) -> None:
    told: list[Any] = []
    called = threading.Event()

    def callback(future: Any) -> None:
        try:
            told.append(future.result(0))
        finally:
            called.set()

    def without_entries(future: Any) -> None:
        shutil.rmtree(cache / "results")

    small = exe.submit(gated, tmp_path, "small")
    small.add_done_callback(without_entries)
    small.add_done_callback(callback)
    open_gate(tmp_path)
    assert called.wait(60)
    assert told == ["small"]
    assert small.result() == "small"


def test_what_is_an_argument_is_what_it_was_however_long_its_neighbour_takes(
    exe: SingleNodeExecutor, cache: Path, tmp_path: Path
) -> None:
    with SingleNodeExecutor(cache_directory=cache) as other:
        mutable = [1]
        child = other.submit(noted, tmp_path, "child", (exe.submit(add, 30, 1), mutable))
        mutable.append(2)
        assert child.result(60) == (31, [1])


def test_a_failed_parent_fails_the_child_and_is_named(
    exe: SingleNodeExecutor, tmp_path: Path
) -> None:
    parent = exe.submit(fail, "the cause")
    child = exe.submit(noted, tmp_path, "child", parent)
    grandchild = exe.submit(noted, tmp_path, "grandchild", child)
    for future in (child, grandchild):
        error = future.exception(60)
        assert isinstance(error, DependencyFailedError)
        assert "fail" in str(error)
        assert "the cause" in str(error)
        assert error.root == parent.key
    assert isinstance(parent.exception(), LookupError)
    late = exe.submit(noted, tmp_path, "late", parent).exception(60)
    assert isinstance(late, DependencyFailedError)
    assert isinstance(late.__cause__, LookupError)
    assert not traces(tmp_path)


def test_a_failed_foreign_parent_fails_the_child(exe: SingleNodeExecutor) -> None:
    foreign: concurrent.futures.Future[int] = concurrent.futures.Future()
    child = exe.submit(add, foreign, 1)
    foreign.set_exception(ValueError("from outside"))
    error = child.exception(60)
    assert isinstance(error, DependencyFailedError)
    assert "from outside" in str(error)
    cancelled: concurrent.futures.Future[int] = concurrent.futures.Future()
    cancelled.cancel()
    assert isinstance(exe.submit(add, cancelled, 1).exception(60), DependencyFailedError)


def test_a_cancelled_parent_fails_the_child(cache: Path, tmp_path: Path) -> None:
    with SingleNodeExecutor(1, cache_directory=cache) as executor:
        blocker = executor.submit(gated, tmp_path, "blocker")
        poll(blocker.running, 60, "the start")
        parent = executor.submit(noted, tmp_path, "parent", 1)
        assert parent.cancel()
        child = executor.submit(noted, tmp_path, "child", parent)
        error = child.exception(60)
        open_gate(tmp_path)
    assert isinstance(error, DependencyFailedError)
    assert isinstance(error.__cause__, concurrent.futures.CancelledError)
    assert traces(tmp_path)["child"] == 0


# ---- what travels ------------------------------------------------------------------------------


def test_a_large_argument_is_stored_once(exe: SingleNodeExecutor, cache: Path) -> None:
    large = np.arange(1 << 18)  # 2 MiB
    futures = [exe.submit(lambda x, i: int(x[i]), large, i) for i in range(5)]
    large[:] = -1  # what was submitted is what counts
    assert [future.result(60) for future in futures] == list(range(5))
    store = Cache(cache, create=False)
    kinds = [store.attributes(key)["kind"] for key in store.keys()]  # noqa: SIM118
    assert sorted(kinds) == ["result"] * 5 + ["value"]
    assert sum(path.stat().st_size for path in cache.rglob("definitions/*")) < large.nbytes


def test_results_of_the_field_come_back_as_they_were(exe: SingleNodeExecutor) -> None:
    xarray = pytest.importorskip("xarray")
    array = np.arange(6.0).reshape(2, 3)
    frame = pd.DataFrame({"a": [1, 2], "b": pd.Categorical(["x", "y"])}, index=["i", "j"])
    cube = xarray.DataArray(array, dims=("y", "x"), coords={"x": [1, 2, 3]}, attrs={"u": "m"})
    big = np.random.default_rng(0).normal(size=(1000, 500))

    def same(value: Any) -> Any:
        return value

    np.testing.assert_array_equal(exe.submit(same, array).result(60), array)
    pd.testing.assert_frame_equal(exe.submit(same, frame).result(60), frame)
    xarray.testing.assert_identical(exe.submit(same, cube).result(60), cube)
    np.testing.assert_array_equal(exe.submit(same, big).result(60), big)
    returned = exe.submit(same, Pair(1, [Holder(2)])).result(60)
    assert type(returned) is Pair
    assert type(returned.right[0]) is Holder
    # A result is the caller's own: it may be written to, and the cache keeps what it has.
    mine = exe.submit(same, array).result(60)
    mine[:] = 0
    np.testing.assert_array_equal(exe.submit(same, array).result(60), array)


@pytest.mark.filterwarnings("ignore::dask_batch.errors.UncacheableWarning")
def test_what_cannot_travel_is_named_with_its_path(exe: SingleNodeExecutor, cache: Path) -> None:
    thread = threading.Thread()
    for call, path in (
        (lambda: exe.submit(add, {"settings": [1, thread]}, 1), r"\['settings'\]\[1\]"),
        (lambda: exe.submit(add, 1, b=Holder(thread)), "held"),
        (lambda: exe.submit(lambda: thread.name), "thread"),
    ):
        future = call()
        error = future.exception(60)
        assert isinstance(error, SerializationError)
        with pytest.raises(SerializationError, match=path):
            future.result()
    assert not list(cache.glob("runs/*"))


class Refuses:
    def __reduce__(self) -> Any:
        raise PermissionError("I stay here")


def test_a_reduce_that_raises_is_chained(exe: SingleNodeExecutor) -> None:
    error = exe.submit(noted, Path("/"), "x", [Refuses()]).exception(60)
    assert isinstance(error, SerializationError)
    causes = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    assert any(isinstance(each, PermissionError) for each in causes)
    assert "I stay here" in str(error) + str(causes)


# ---- classes of the main module ----------------------------------------------------------------

CLIENT = """
import sys
from dataclasses import dataclass

from dask_batch import SingleNodeExecutor

@dataclass
class Point:
    x: int

    def doubled(self):
        return Point(2 * self.x)

def make(x):
    return {"point": Point(x).doubled()}

if __name__ == "__main__":
    with SingleNodeExecutor(cache_directory=sys.argv[1]) as exe:
        future = exe.submit(make, 21)
        point = future.result()["point"]
        print(type(point) is Point, point == Point(42), future.job_id is None)
"""


def test_a_result_of_a_class_of_the_main_module_is_the_clients_own(
    cache: Path, tmp_path: Path
) -> None:
    script = tmp_path / "client.py"
    script.write_text(CLIENT)
    for expected in ("True True False\n", "True True True\n"):
        argv = [sys.executable, str(script), str(cache)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout == expected, done.stderr


# ---- surroundings ------------------------------------------------------------------------------


def test_a_function_finds_the_clients_surroundings(
    exe: SingleNodeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / 'with space, "quote" and ü'
    modules = tmp_path / "modules"
    folder.mkdir()
    modules.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MY_SETTING", "a 'b'\nc=ü")
    monkeypatch.setenv("SLURM_JOB_ID", "999")
    monkeypatch.setenv("PMI_RANK", "3")
    monkeypatch.syspath_prepend(str(modules))
    umask = os.umask(0o027)

    def look() -> dict[str, Any]:
        import os
        import sys

        present = os.umask(0)
        os.umask(present)
        return {
            "cwd": os.getcwd(),
            "umask": present,
            "setting": os.environ.get("MY_SETTING"),
            "slurm": os.environ.get("SLURM_JOB_ID"),
            "pmi": os.environ.get("PMI_RANK"),
            "path": sys.path,
            "python": sys.executable,
        }

    try:
        seen = exe.submit(look).result(60)
    finally:
        os.umask(umask)
    path = seen.pop("path")
    assert str(modules) in path
    assert seen == {
        "cwd": str(folder),
        "umask": 0o027,
        "setting": "a 'b'\nc=ü",
        "slurm": None,
        "pmi": None,
        "python": sys.executable,
    }


def test_cwd_may_be_chosen(exe: SingleNodeExecutor, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    resources = {"cwd": str(tmp_path / "there")}
    assert exe.submit(os.getcwd, resource_dict=resources).result(60) == str(tmp_path / "there")


EDITED = """
import os, sys, time
from pathlib import Path

import helper
import dask
from dask_batch import SingleNodeExecutor

FOLDER = Path(sys.argv[1])

def block():
    while not (FOLDER / "open").exists():
        time.sleep(0.01)

def work():
    import helper as inside
    return helper.answer(), inside.answer()

if __name__ == "__main__":
    with SingleNodeExecutor(1, cache_directory=FOLDER / "cache") as exe:
        blocker = exe.submit(block, resource_dict={"cache": False})
        future = exe.submit(work)
        exe._session.engine.flush()
        (FOLDER / "helper.py").write_text("def answer():\\n    return 'edited'\\n")
        (FOLDER / "open").touch()
        print(*future.result())
"""


def test_what_was_hashed_runs_though_a_module_is_edited_meanwhile(tmp_path: Path) -> None:
    original = textwrap.dedent(
        """
        def answer():
            return 'original'
        """
    )
    (tmp_path / "client.py").write_text(EDITED)
    printed = []
    for _ in range(2):
        (tmp_path / "open").unlink(missing_ok=True)
        if not printed:
            (tmp_path / "helper.py").write_text(original)
        argv = [sys.executable, "-B", "client.py", str(tmp_path)]
        done = subprocess.run(
            argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.strip())
    # The second run hashes the edited module: another key, so no result of the first.
    assert printed == ["original original", "edited edited"]


def test_dask_in_a_job_computes_in_its_process(exe: SingleNodeExecutor) -> None:
    def nested() -> tuple[int, str]:
        lazy = dask.delayed(add)(1, 2)
        return lazy.compute(), str(dask.config.get("scheduler"))

    assert exe.submit(nested).result(60) == (3, "synchronous")
