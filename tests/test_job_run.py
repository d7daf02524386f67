"""A job's process by itself: what it leaves behind, whatever its function does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients import poll
from dask_batch.cache import attempts
from dask_batch.cache.checkpoints import checkpoint_path
from dask_batch.cache.claims import Claims, Run
from dask_batch.cache.definitions import read_definition
from dask_batch.cache.owner import Owner
from dask_batch.errors import FullError
from dask_batch.job import exit_codes
from dask_batch.job.run import Attempt
from job_bench import PACKAGE, Defined, define

# ---- before the function ---------------------------------------------------------------------


def answer() -> int:
    return 42


def test_a_result_tells_of_the_environment_that_it_comes_from(tmp_path: Path) -> None:
    def shape(size: int) -> Any:
        return np.zeros(size).shape

    job = define(tmp_path, shape, 3)
    ran = job.run()
    assert (ran.code, ran.end, ran.err) == (0, None, "")
    assert job.result() == (3,)
    environment = job.cache.attributes(job.key)["environment"]
    assert environment.keys() == {"python", "platform", "machine", "packages"}
    assert environment["packages"]["numpy"] == np.__version__
    assert "dask-batch" in environment["packages"]


@pytest.mark.parametrize("what", ["missing", "another directory", "another cache"])
def test_a_node_that_does_not_share_the_cache_is_named(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dask_batch.job import opening

    job = define(tmp_path, answer)
    shutil.rmtree(job.cache.path)
    if what != "missing":
        job.cache.path.mkdir(mode=0o700)
    if what == "another cache":
        type(job.cache)(job.cache.path)
    with pytest.raises(opening.RefusedError) as caught:
        opening.open_task(job.definition, 0, late_s=0.0)
    assert caught.value.exit_code == exit_codes.NO_CACHE
    for part in (str(job.cache.path), os.uname().nodename, "cache_directory="):
        assert part in str(caught.value)
    if what == "missing":
        ran = job.run()
        assert ran.code == exit_codes.NO_CACHE
        assert str(caught.value) in ran.err
        assert not job.cache.path.exists(), "a job makes no cache"


def test_a_cache_that_is_seen_late_is_waited_for(tmp_path: Path) -> None:
    job = define(tmp_path, answer)
    job.cache.path.rename(tmp_path / "away")
    process = job.start()
    (tmp_path / "away").rename(job.cache.path)
    assert process.wait(60) == 0
    process.communicate()


def test_a_definition_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    job = define(tmp_path, answer)
    os.truncate(job.definition, 100)
    ran = job.run()
    assert ran.code == exit_codes.BAD_DEFINITION
    assert str(job.definition) in ran.err


def test_another_python_is_an_environment_of_another_kind(tmp_path: Path) -> None:
    job = define(tmp_path, answer, common={"python": [3, 1]})
    ran = job.run()
    assert ran.code == exit_codes.BAD_PYTHON
    assert ran.end is not None
    assert ran.end["outcome"] == "environment"
    assert "Python 3.1," in ran.end["message"]
    assert ran.end["message"] in ran.err


def test_an_interpreter_without_the_packages_of_a_job_says_so(tmp_path: Path) -> None:
    job = define(tmp_path, answer)
    ran = job.run(python=(sys.executable, "-S"))  # without site-packages
    assert ran.code == exit_codes.NO_MODULE
    assert sys.executable in ran.err
    assert "does not have the module" in ran.err


@pytest.mark.parametrize("broken", ["missing", "uninstalled", "unimportable"])
def test_a_missing_module_is_named(
    tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site-packages"
    site.mkdir()
    library = site / "library_of_ours.py"
    library.write_text("def answer():\n    return 42\n")
    if broken == "uninstalled":
        library.write_text("__version__ = '1.2.3'\n" + library.read_text())
    monkeypatch.syspath_prepend(site)
    import library_of_ours

    job = define(tmp_path, library_of_ours.answer)
    if broken == "unimportable":
        library.write_text("raise ImportError('libours.so.3: cannot open shared object file')")
    else:
        library.unlink()
    ran = job.run()
    assert ran.code == exit_codes.NO_MODULE
    assert ran.end is not None
    assert ran.end["outcome"] == "environment"
    named = "libours.so.3" if broken == "unimportable" else "ours"
    for part in (named, sys.executable, os.uname().nodename, "job_script_prologue"):
        assert part in ran.end["message"]
    del sys.modules["library_of_ours"]


def test_a_module_that_the_function_itself_misses_is_its_own_exception(tmp_path: Path) -> None:
    def importing() -> None:
        import no_such_module_of_ours  # noqa: F401

    ran = define(tmp_path, importing).run()
    assert ran.end is not None
    assert ran.end["outcome"] == "exception"
    assert ran.end["exception_type"] == "builtins.ModuleNotFoundError"
    assert sys.executable in ran.end["traceback"]


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    job = define(tmp_path, answer, cwd=str(tmp_path))
    gone = tmp_path / "gone"
    surroundings = {"working_directory": str(gone), "umask": 0o22, "module_path": []}
    job = define(tmp_path, answer, common={"surroundings": [surroundings]})
    ran = job.run()
    assert ran.code == exit_codes.NO_DIRECTORY
    assert ran.end is not None
    assert ran.end["outcome"] == "environment"
    assert str(gone) in ran.end["message"]


# ---- which attempt it is -----------------------------------------------------------------------


def test_all_that_a_repeated_job_leaves_belongs_to_its_latest_attempt(tmp_path: Path) -> None:
    def fails_at_first(folder: Path) -> int:
        if not (folder / "mended").exists():
            raise LookupError("broken")
        return 1

    job = define(tmp_path, fails_at_first, tmp_path)
    run_id = job.definition.stem
    claims = Claims(job.cache)
    run = Run(run_id, Owner.current(), "local", 1.0, (("f-0", job.key),))
    claims.begin(run)
    claims.claim(job.key, run)
    assert job.run().code == exit_codes.FAILED
    claims.claim(job.key, run, after=0)
    assert job.run().code == exit_codes.FAILED
    for generation in (0, 1):
        assert attempts.read_start(job.cache, job.key, generation) is not None
        assert attempts.read_end(job.cache, job.key, generation) is not None
    claims.claim(job.key, run, after=1)
    (tmp_path / "mended").touch()
    assert job.run().code == 0
    assert job.cache.attributes(job.key)["generation"] == 2
    other = Run("other", Owner.current(), "local", 1.0, (("f-1", job.key),))
    claims.begin(other)
    claims.claim(job.key, other, after=2)
    job.cache.retire(job.key)
    ran = job.run()
    assert ran.code == exit_codes.FAILED
    assert "later attempt" in ran.err
    assert attempts.read_start(job.cache, job.key, 3) is None


# ---- what a function does to its process -------------------------------------------------------


def close_streams() -> np.ndarray[Any, Any]:
    os.closerange(0, 3)
    return np.arange(100_000)


def close_everything() -> np.ndarray[Any, Any]:
    os.closerange(0, 1000)
    return np.arange(100_000)


def close_stream_objects() -> np.ndarray[Any, Any]:
    sys.stdout.close()
    sys.stderr.close()
    return np.arange(100_000)


def replace_streams() -> np.ndarray[Any, Any]:
    sys.stdout = sys.stderr = None  # type: ignore[assignment]
    return np.arange(100_000)


def change_surroundings() -> np.ndarray[Any, Any]:
    import tempfile
    import warnings

    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)
    os.umask(0o777)
    os.environ.clear()
    sys.setrecursionlimit(60)
    warnings.simplefilter("error")
    signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        try:
            return np.arange(100_000)
        except ZeroDivisionError:
            continue


def leave_threads_and_children() -> np.ndarray[Any, Any]:
    import threading
    import time

    threading.Thread(target=time.sleep, args=(600,)).start()
    if os.fork() == 0:
        time.sleep(0.2)
        return np.zeros(3)  # in the child: not the job's result
    subprocess.Popen(["sleep", "2"])
    return np.arange(100_000)


def fork_and_raise() -> np.ndarray[Any, Any]:
    if os.fork() == 0:
        raise LookupError("in the child")
    os.wait()
    return np.arange(100_000)


def fork_and_leave() -> np.ndarray[Any, Any]:
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    return np.arange(100_000)


def change_signals() -> np.ndarray[Any, Any]:
    caught: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: caught.append(number))
        signal.raise_signal(number)
    assert caught == [signal.SIGUSR1, signal.SIGTERM]
    return np.arange(100_000)


@pytest.mark.parametrize(
    "function",
    [
        *(close_streams, close_everything, close_stream_objects, replace_streams),
        *(change_surroundings, leave_threads_and_children, fork_and_raise, fork_and_leave),
        change_signals,
    ],
)
def test_a_result_is_whole_whatever_the_function_did_to_its_process(
    tmp_path: Path, function: Any
) -> None:
    job = define(tmp_path, function)
    with open(tmp_path / "log", "w+") as log:
        process = job.start(stdout=log, stderr=log)
        assert process.wait(60) == 0, (tmp_path / "log").read_text()
    assert job.cache.check(job.key)
    assert np.array_equal(job.result(), np.arange(100_000))
    assert job.end is None
    assert attempts.read_cut(job.cache, job.key, 0) is None, "the function's own handlers count"


@pytest.mark.parametrize(("code", "outcome"), [(0, "no output"), (3, "died")])
def test_a_function_that_leaves_by_itself_is_found_out(
    tmp_path: Path, code: int, outcome: str
) -> None:
    def leave(code: int) -> None:
        sys.stdout.write("last words")
        sys.stdout.flush()
        os._exit(code)

    ran = define(tmp_path, leave, code).run()
    assert ran.code == (code or exit_codes.FAILED), "0 would let others start after it"
    assert ran.end is not None
    assert ran.end["outcome"] == outcome
    assert f"exit code {code}" in ran.end["message"]
    assert ran.out == "last words"


def test_a_crash_in_compiled_code_leaves_its_frames_at_the_end_of_the_log(tmp_path: Path) -> None:
    def crash() -> None:
        import ctypes

        os.close(2)
        with open(tmp_path / "innocent", "w") as innocent:
            assert innocent.fileno() == 2
            ctypes.string_at(0)

    ran = define(tmp_path, crash).run()
    assert ran.code == -signal.SIGSEGV
    assert ran.end is None
    assert "in crash" in ran.err
    assert (tmp_path / "innocent").read_text() == ""


# ---- how it ends -------------------------------------------------------------------------------


def big_message() -> None:
    raise ValueError("x" * 50_000_000)


def deep() -> None:
    deep()


def groups() -> None:
    raise ExceptionGroup("many", [ValueError(f"number {i}") for i in range(50)])


def chained() -> None:
    try:
        {}["first"]
    except KeyError:
        try:
            int("second")
        except ValueError as error:
            raise LookupError("third") from error


def out_of_memory() -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("function", "kind", "words"),
    [
        (big_message, "builtins.ValueError", ["characters left out"]),
        (deep, "builtins.RecursionError", ["maximum recursion depth"]),
        (groups, "builtins.ExceptionGroup", ["number 0", "number 49"]),
        (chained, "builtins.LookupError", ["KeyError: 'first'", "'second'", "LookupError: third"]),
        (out_of_memory, "builtins.MemoryError", ["in out_of_memory"]),
    ],
)
def test_an_exception_is_recorded_with_all_that_led_to_it(
    tmp_path: Path, function: Any, kind: str, words: list[str]
) -> None:
    ran = define(tmp_path, function).run()
    assert ran.code == exit_codes.FAILED
    assert ran.end is not None
    assert (ran.end["outcome"], ran.end["exception_type"]) == ("exception", kind)
    assert all(word in ran.end["traceback"] for word in words)
    assert len(json.dumps(ran.end)) < 2_000_000
    assert len(ran.err) < 100_000


def test_where_the_address_space_is_limited_a_memory_error_is_that_limit(tmp_path: Path) -> None:
    def greedy() -> int:
        return len(bytearray(1 << 40))

    job = define(tmp_path, greedy)
    limited = f'ulimit -v {8 << 20}; exec {sys.executable} "$@"'
    ran = job.run(python=("bash", "-c", limited, "bash"))
    assert ran.end is not None
    assert ran.end["outcome"] == "out of memory"
    assert ran.end["exception_type"] == "builtins.MemoryError"


class Nasty:
    def __reduce__(self) -> Any:
        raise SystemExit("from a __reduce__")


@pytest.mark.parametrize("value", ["file", "generator", "lock", "socket", "deep", "nasty"])
def test_a_result_that_cannot_be_stored_leaves_nothing_behind(tmp_path: Path, value: str) -> None:
    def unstorable(value: str) -> Any:
        import socket
        import threading

        if value == "deep":
            nested: Any = []
            for _ in range(100_000):
                nested = [nested]
            return nested
        makers: dict[str, Any] = {
            "file": lambda: open(os.devnull),  # noqa: SIM115
            "generator": lambda: [(i for i in range(3))],
            "lock": lambda: threading.Thread(),
            "socket": socket.socket,
            "nasty": Nasty,
        }
        return makers[value]()

    job = define(tmp_path, unstorable, value)
    ran = job.run()
    assert ran.code == exit_codes.FAILED
    assert ran.end is not None
    assert ran.end["outcome"] == "unstorable"
    assert not job.cache.present([job.key])
    assert not list(job.cache.path.glob("results/*/.tmp*"))


def test_a_full_disk_has_words_of_its_own(tmp_path: Path) -> None:
    """A limit on the size of files stands for a disk without space."""

    def large(size: int) -> Any:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
        return np.zeros(size)

    job = define(tmp_path, large, 1_000_000)
    ran = job.run()
    assert ran.end is not None
    assert ran.end["outcome"] == "unstorable"
    assert "could not be written" in ran.end["message"]
    assert not list(job.cache.path.glob("results/*/*"))


def test_a_job_that_cannot_record_its_end_says_so_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from dask_batch.job import recording

    tries = []

    def full(*_: Any) -> bool:
        tries.append(1)
        raise FullError("no space is left")

    job = define(tmp_path, answer)
    attempt = Attempt(job.cache, read_definition(job.definition, 0))
    monkeypatch.setattr(recording, "_PAUSE_S", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(attempts, "end", full)
        code = recording.record_end(attempt, {"outcome": "unstorable", "message": "m"}, 1)
    assert code == exit_codes.NO_SPACE
    assert len(tries) > 1
    assert "no space is left" in capfd.readouterr().err
    assert recording.record_end(attempt, {"outcome": "unstorable", "message": "m"}, 1) == 1
    assert job.end is not None


@pytest.mark.parametrize("anew", [False, True])
def test_a_job_whose_cache_was_removed_brings_nothing_of_it_back(
    tmp_path: Path, anew: bool
) -> None:
    def removes(cache: str, anew: bool) -> None:
        import os
        import shutil

        shutil.rmtree(cache)
        if anew:  # as whoever computes again, in the same place, does
            os.mkdir(cache, 0o700)
        raise LookupError("and fails")

    cache = tmp_path / "cache"
    ran = define(tmp_path, removes, str(cache), anew).run()
    assert ran.code == exit_codes.FAILED
    assert "its cache has been removed" in ran.err
    assert not cache.exists() or not list(cache.iterdir())


# ---- where it looks for modules ----------------------------------------------------------------


@pytest.mark.parametrize("path", [None, ":", "."])
def test_a_stray_file_is_not_imported_in_place_of_a_library(
    tmp_path: Path, path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def importing() -> list[str]:
        import colorsys
        import importlib
        import random

        import h5py
        import numpy
        import xxhash

        nested = importlib.import_module("numpy.polynomial")
        modules = (colorsys, random, h5py, numpy, xxhash, nested)
        return [str(module.__file__) for module in modules]

    strays = tmp_path / "strays"
    (strays / "numpy").mkdir(parents=True)
    for name in ("h5py", "random", "xxhash", "colorsys", "dask", "numpy/__init__"):
        (strays / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    monkeypatch.chdir(strays)
    # As if the client's script lay here.
    monkeypatch.setattr(sys, "path", [str(strays), *sys.path])
    job = define(tmp_path, importing)
    environment = {} if path is None else {"PYTHONPATH": f"{PACKAGE}:{path}".rstrip()}
    ran = job.run(cwd=strays, environment=environment)
    assert ran.code == 0, ran.err
    assert not [file for file in job.result() if str(tmp_path) in file]


def test_a_module_that_only_the_client_has_is_found_behind_everything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("VALUE = 5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def importing(name: str) -> Any:
        import importlib

        return importlib.import_module(name).VALUE

    job = define(tmp_path, importing, "only_here")
    assert job.run(environment={"PYTHONPATH": f"{PACKAGE}:"}).code == 0
    assert job.result() == 5


def test_a_warm_worker_imports_no_stray_file_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dask_batch import SingleNodeExecutor

    def importing(again: int) -> list[str]:
        import colorsys
        import importlib
        import random
        import wave

        import h5py

        nested = importlib.import_module("numpy.polynomial")
        return [str(module.__file__) for module in (colorsys, random, wave, h5py, nested)]

    strays = tmp_path / "strays"
    strays.mkdir()
    for name in ("h5py", "random", "colorsys", "wave", "numpy", "xxhash", "dask_batch"):
        (strays / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    monkeypatch.chdir(strays)
    monkeypatch.setattr(sys, "path", [str(strays), *sys.path])
    monkeypatch.setenv("PYTHONPATH", f"{PACKAGE}:")
    with SingleNodeExecutor(cache_directory=tmp_path / "cache") as exe:
        warm = [exe.submit(importing, number) for number in range(2)]
        cold = exe.submit(importing, 2, resource_dict={"python": sys.executable})
        for future in (*warm, cold):
            assert not [file for file in future.result(120) if str(tmp_path) in file]


# ---- before the wall clock ---------------------------------------------------------------------


def stand(folder: Path, how: str) -> str:
    import ctypes
    import time

    (folder / "standing").touch()
    if how == "compiled":
        ctypes.CDLL(None).poll(None, 0, 600_000)
    while not (folder / "go").exists():
        time.sleep(0.01)
    return "done"


def standing(job: Defined, **how: Any) -> subprocess.Popen[str]:
    process = job.start(**how)
    poll(lambda: (job.folder / "standing").exists(), 60, "the function runs")
    return process


def cut_of(job: Defined) -> dict[str, Any]:
    poll(lambda: attempts.read_cut(job.cache, job.key, 0) is not None, 60, "the cut is recorded")
    cut = attempts.read_cut(job.cache, job.key, 0)
    assert cut is not None
    return cut


def test_a_warned_job_writes_down_where_it_stands_and_goes_on(tmp_path: Path) -> None:
    job = define(tmp_path, stand, tmp_path, "python", run_time_max=3600)
    ignoring = ("bash", "-c", f"trap '' USR1; exec {sys.executable} \"$@\"", "bash")
    process = standing(job, environment={"DASK_BATCH_JOB_ID": "17"}, python=ignoring)
    process.send_signal(signal.SIGUSR1)
    cut = cut_of(job)
    assert cut["signal"] == "SIGUSR1"
    assert "in stand" in cut["traceback"]
    assert cut["job_id"] == "17"
    assert 3000 < cut["left_s"] <= 3600
    process.send_signal(signal.SIGUSR1)
    (tmp_path / "go").touch()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert job.result() == "done"
    assert attempts.read_cut(job.cache, job.key, 0) == cut


@pytest.mark.parametrize("warning", ["SIGUSR1", "clock"])
def test_the_warning_is_heard_in_compiled_code(tmp_path: Path, warning: str) -> None:
    # The clock warns a tenth of the time before the end: here it has come already, or nearly so.
    limit_s = 3600 if warning == "SIGUSR1" else 1
    job = define(tmp_path, stand, tmp_path, "compiled", run_time_max=limit_s)
    process = standing(job)
    if warning == "SIGUSR1":
        process.send_signal(signal.SIGUSR1)
    assert cut_of(job)["signal"] == warning
    process.kill()
    process.communicate()


@pytest.mark.parametrize("how", ["python", "compiled"])
def test_a_job_that_is_told_to_end_writes_down_where_it_stood_and_ends(
    tmp_path: Path, how: str
) -> None:
    job = define(tmp_path, stand, tmp_path, how)
    process = standing(job)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    cut = cut_of(job)
    assert (cut["signal"], cut["left_s"]) == ("SIGTERM", None)
    assert "in stand" in cut["traceback"]
    assert job.end is None, "why it was told to the job does not know"


def test_programs_that_a_function_starts_have_signals_as_usual(tmp_path: Path) -> None:
    def children() -> list[int]:
        import multiprocessing
        import time

        masks = subprocess.run(
            ["grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        child.start()
        child.terminate()
        child.join()
        return [int(mask, 16) for mask in masks[1::2]] + [child.exitcode or 0]

    job = define(tmp_path, children)
    assert job.run().code == 0
    blocked, ignored, caught, ended = job.result()
    ours = 1 << signal.SIGUSR1 - 1 | 1 << signal.SIGTERM - 1
    assert not (blocked | ignored | caught) & ours
    assert ended == -signal.SIGTERM
    assert attempts.read_cut(job.cache, job.key, 0) is None


def test_a_fork_of_the_function_has_one_thread(tmp_path: Path) -> None:
    def threads() -> int:
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, bytes([len(os.listdir("/proc/self/task"))]))
            os._exit(0)
        os.wait()
        return os.read(read, 1)[0]

    job = define(tmp_path, threads)
    assert job.run().code == 0
    assert job.result() == 1


# ---- checkpoints -------------------------------------------------------------------------------


def counted(folder: Path) -> int:
    from dask_batch import checkpoint_directory

    saved = checkpoint_directory() / "state"
    count = int(saved.read_text()) if saved.exists() else 0
    saved.write_text(str(count + 1))
    if not (folder / "go").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return count


def test_checkpoints_last_from_attempt_to_attempt_until_there_is_a_result(tmp_path: Path) -> None:
    job = define(tmp_path, counted, tmp_path)
    kept = checkpoint_path(job.cache, job.key)
    for count in range(1, 3):
        assert job.run().code == -signal.SIGKILL
        assert (kept / "state").read_text() == str(count)
        assert kept.stat().st_mode & 0o777 == 0o700
    (tmp_path / "go").touch()
    again = define(tmp_path, counted, tmp_path)  # another run of the same task
    assert again.key == job.key
    assert again.run().code == 0
    assert again.result() == 2
    assert not kept.exists()


# ---- inputs ------------------------------------------------------------------------------------


def test_an_input_that_is_seen_late_is_waited_for(tmp_path: Path) -> None:
    key = "ab" * 32
    job = define(tmp_path, answer, header={"inputs": [key]})
    job.cache.publish(key, 1, {})
    path = job.cache.path_of(key)
    path.rename(tmp_path / "away")
    process = job.start()
    start = job.cache.path / "attempts" / job.key[:2] / f"{job.key}.0.start"
    poll(start.exists, 60, "the start")
    assert process.poll() is None
    (tmp_path / "away").rename(path)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_an_input_that_never_comes_is_named(tmp_path: Path) -> None:
    key = "ab" * 32
    ran = define(tmp_path, answer, header={"inputs": [key]}, common={"input_grace_s": 0.1}).run()
    assert ran.end is not None
    assert ran.end["outcome"] == "dependency"
    assert (ran.end["root"], ran.end["missing"]) == (key, [key])


def test_the_job_needs_nothing_that_old_interpreters_cannot_read() -> None:
    """What speaks before the version is looked at must parse everywhere."""
    import ast

    early = ("__init__", "__main__", "worker", "threshold", "exit_codes")
    for name in (*(f"job/{module}.py" for module in early), "registration.py"):
        source = (PACKAGE / "dask_batch" / name).read_text()
        ast.parse(source, feature_version=(3, 7))
    assert textwrap.dedent(source)
