"""Each way in which a job can end badly, at the default pace, in one session for each backend.

The future fails with its own class and cause soon after the job's end, what depends on it fails
naming it, what does not finishes, and a second client runs only what is missing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bodies import gated, noted, open_gate, trace, traces
from clients import poll
from dask_batch import SingleNodeExecutor, SlurmClusterExecutor
from dask_batch.backends.local import LocalBackend
from dask_batch.cache import attempts
from dask_batch.cache.store import Cache
from dask_batch.errors import (
    CancelledTaskError,
    DependencyFailedError,
    DiedTaskError,
    EnvironmentTaskError,
    NoOutputTaskError,
    OutOfMemoryTaskError,
    RemoteError,
    RemoteTraceback,
    ResourceError,
    TaskError,
    TimeoutTaskError,
    UnstorableResultError,
)

WITHIN_S = 15.0
SLACK_S = 15.0
"""For a machine on which everything else runs, too."""
PATIENCE_S = 240.0

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Fault:
    """What a kind of fault is to come to."""

    error: type[BaseException]
    words: tuple[str, ...] = ()
    tail: str = ""


FAULTS = {
    "exception": Fault(LookupError, ("of mine",)),
    "two arguments": Fault(Exception, ("7: bad luck",)),
    "not to be unpickled": Fault(RemoteError, ("only in a job", "FaithlessError")),
    "too slow": Fault(TimeoutTaskError, ("run_time_max",)),
    "too large": Fault(OutOfMemoryTaskError, ("memory_max",)),
    "cancelled pending": Fault(CancelledTaskError),
    "cancelled running": Fault(CancelledTaskError),
    "segmentation fault": Fault(DiedTaskError, ("signal 11",), "in faulty"),
    "killed": Fault(DiedTaskError, ("signal 9",)),
    "left": Fault(NoOutputTaskError, ("os._exit(0)",), "last words"),
    "not to be stored": Fault(UnstorableResultError, ("generator",)),
    "no directory": Fault(EnvironmentTaskError, ("nowhere", "cwd")),
    "no module": Fault(EnvironmentTaskError, ("library_of_faults", sys.executable, "python")),
}


class TwoPartError(Exception):
    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.detail = detail


class FaithlessError(Exception):
    """It comes back only where it was raised."""

    def __reduce__(self) -> Any:
        return _in_a_job, (str(self),)


def _in_a_job(text: str) -> Exception:
    if "DASK_BATCH_JOB_ID" not in os.environ:
        raise RuntimeError("this is no job")
    return FaithlessError(text)


def live_on(alive: Path) -> None:
    """Leave a sign of life again and again, the last one when the process is ended."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        alive.touch()
        time.sleep(0.05)


def faulty(folder: Path, kind: str, *parents: Any) -> Any:
    """Do what the kind says, until that is mended."""
    trace(folder, kind)
    alive = folder / "alive" / kind
    if (folder / "mended").exists():
        return kind
    alive.touch()
    if kind == "exception":
        raise LookupError("of mine", 7)
    if kind == "two arguments":
        raise TwoPartError(7, "bad luck")
    if kind == "not to be unpickled":
        raise FaithlessError("raised only in a job")
    if kind == "segmentation fault":
        import ctypes

        ctypes.string_at(0)
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "left":
        print("last words", file=sys.stderr, flush=True)
        os._exit(0)
    if kind == "not to be stored":
        return (i for i in range(3))
    hoard = bytearray(600 << 20) if kind == "too large" else bytearray()
    for position in range(0, len(hoard), 4096):
        hoard[position] = 1
    live_on(alive)
    return None


def _itself(value: Any) -> Any:
    return value


def called(function: Any, folder: Path, kind: str, *parents: Any) -> Any:
    return function(faulty(folder, kind, *parents))


def after(folder: Path, kind: str, parent: Any) -> str:
    trace(folder, f"after {kind}")
    return f"after {parent}"


def _cancel_in_slurm(job_id: str) -> None:
    subprocess.run(["scancel", job_id], check=True, timeout=60)


def _cancel_locally(job_id: str) -> None:
    backend = LocalBackend()
    backend.cancel([job_id])
    backend.close()


@dataclass
class Session:
    """One client's session: what it asked for, what came of it, and when."""

    folder: Path
    make: Callable[..., Any]
    cancel: Callable[[str], None]
    resources: dict[str, dict[str, Any]]
    futures: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, BaseException | None] = field(default_factory=dict)
    resolved: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        """Hand everything over, cancel what is to be cancelled, and wait for all that comes."""
        for name in ("alive", "nowhere"):
            (self.folder / name).mkdir(exist_ok=True)
        exe = self.make(cache_directory=self.folder / "cache")
        try:
            for name, future in self._submitted(exe):
                self.futures[name] = future
                future.add_done_callback(lambda _, name=name: self._note(name))
            if not (self.folder / "mended").exists():
                (self.folder / "nowhere").rmdir()
                self._cancel()
            self._gather()
        finally:
            exe.shutdown(wait=False, cancel_futures=True)

    def _submitted(self, exe: Any) -> Iterator[tuple[str, Any]]:
        gate = exe.submit(gated, self.folder, "gate")
        yield "gate", gate
        for number in range(3):
            yield f"fine{number}", exe.submit(noted, self.folder, f"fine{number}", number)
        for kind in FAULTS:
            how = self.resources.get(kind, {})
            parents = (gate,) if kind in ("cancelled pending", "no directory") else ()
            function = sys.modules["library_of_faults"].lend if kind == "no module" else _itself
            future = exe.submit(
                *(called, function, self.folder, kind, *parents), resource_dict=dict(how)
            )
            yield kind, future
            child = exe.submit(after, self.folder, kind, future)
            yield f"after {kind}", child
            yield f"long after {kind}", exe.submit(after, self.folder, f"after {kind}", child)

    def _note(self, name: str) -> None:
        self.resolved[name] = time.time()

    def _cancel(self) -> None:
        running, pending = self.futures["cancelled running"], self.futures["cancelled pending"]
        alive = self.folder / "alive" / "cancelled running"
        poll(alive.exists, PATIENCE_S, "it runs")
        poll(lambda: pending.job_id is not None, PATIENCE_S, "it is handed over")
        self.cancel(str(running.job_id))
        self.ended["cancelled pending"] = time.time()
        self.cancel(str(pending.job_id))
        assert isinstance(pending.exception(PATIENCE_S), BaseException)
        open_gate(self.folder)

    def _gather(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        for name, future in self.futures.items():
            self.errors[name] = future.exception(max(1.0, deadline - time.monotonic()))

    def ended_at(self, kind: str) -> float:
        """Return when a job ended: by its own record, or by its last sign of life."""
        if kind in self.ended:
            return self.ended[kind]
        end = attempts.read_end(Cache(self.folder / "cache"), self.futures[kind].key, 0)
        if end is not None and "ended" in end:
            return float(end["ended"])
        return (self.folder / "alive" / kind).stat().st_mtime


LIBRARY = """
__version__ = "1.2.3"

def lend(value):
    return value
"""


@pytest.fixture(
    scope="module",
    params=["local", pytest.param("slurm", marks=pytest.mark.slurm)],
)
def session(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("faults")
    site = folder / "site-packages"
    site.mkdir()
    (site / "library_of_faults.py").write_text(LIBRARY)
    sys.path.append(str(site))
    import library_of_faults

    (site / "library_of_faults.py").unlink()  # this client has it, no job will
    slurm = request.param == "slurm"
    nowhere = folder / "nowhere"
    resources = {
        "too slow": {"run_time_max": 2},
        "too large": {"memory_max": 0.3},
        "no directory": {"cwd": str(nowhere)},
    }
    made = Session(
        folder,
        SlurmClusterExecutor if slurm else SingleNodeExecutor,
        _cancel_in_slurm if slurm else _cancel_locally,
        resources,
    )
    yield made
    sys.path.remove(str(site))
    del sys.modules["library_of_faults"]
    del library_of_faults


@pytest.fixture(scope="module")
def faults(session: Session) -> Session:
    """Return a session in which everything that can went wrong."""
    session.run()
    return session


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_has_its_own_class_and_cause(faults: Session, kind: str) -> None:
    expected, error = FAULTS[kind], faults.errors[kind]
    assert isinstance(error, expected.error), repr(error)
    said = f"{error} {getattr(error, 'type_name', '')}"
    assert all(word in said for word in expected.words), said
    if isinstance(error, TaskError):
        assert error.key == faults.futures[kind].key
        assert error.job_id == faults.futures[kind].job_id
        assert error.advice
        assert error.evidence
        assert expected.tail in error.tail
    else:
        assert isinstance(error.__cause__, RemoteTraceback)
        assert "in faulty" in str(error.__cause__)
    if kind == "exception":
        assert error.args == ("of mine", 7)
    if kind == "two arguments":
        assert type(error) is TwoPartError
        assert error.detail == "bad luck"


@pytest.mark.parametrize("kind", FAULTS)
def test_it_is_told_soon_after_the_jobs_end(faults: Session, kind: str) -> None:
    assert faults.resolved[kind] - faults.ended_at(kind) < WITHIN_S + SLACK_S


def test_what_ran_out_of_time_has_written_down_where_it_stood(faults: Session) -> None:
    cut = attempts.read_cut(
        Cache(faults.folder / "cache"), faults.futures["too slow"].key, generation=0
    )
    assert cut is not None
    assert cut["job_id"] == faults.futures["too slow"].job_id
    assert "in live_on" in cut["traceback"]
    assert "live_on" in str(faults.errors["too slow"].__cause__)


@pytest.mark.parametrize("kind", FAULTS)
def test_what_depends_on_it_names_it(faults: Session, kind: str) -> None:
    for name in (f"after {kind}", f"long after {kind}"):
        error = faults.errors[name]
        assert isinstance(error, DependencyFailedError), repr(error)
        assert error.root == faults.futures[kind].key
        assert "called" in str(error)
        assert traces(faults.folder)[name] == 0


def test_what_does_not_depend_on_it_finishes(faults: Session) -> None:
    for number in range(3):
        assert faults.futures[f"fine{number}"].result() == number
    assert faults.futures["gate"].result() == "gate"


def test_a_second_client_runs_only_what_is_missing(faults: Session) -> None:
    before = traces(faults.folder)
    (faults.folder / "mended").touch()
    (faults.folder / "site-packages" / "library_of_faults.py").write_text(LIBRARY)
    second = Session(faults.folder, faults.make, faults.cancel, {})
    second.run()
    assert not any(second.errors.values()), second.errors
    for kind in FAULTS:
        assert second.futures[kind].result() == kind
        assert second.futures[f"after {kind}"].result() == f"after {kind}"
    ran = traces(faults.folder) - before
    expected = Counter(
        {
            **dict.fromkeys(FAULTS, 1),
            **{f"after {kind}": 1 for kind in FAULTS},
            **{f"after after {kind}": 1 for kind in FAULTS},
        }
    )
    assert {name: n for name, n in ran.items() if not name.startswith("gate")} == expected


@pytest.mark.slurm
@pytest.mark.parametrize("where", ["slurm_cmd_args", "job_extra_directives"])
def test_a_directory_of_slurms_own_is_refused_with_the_remedy(tmp_path: Path, where: str) -> None:
    options = {where: ["--chdir=/nowhere"]}
    with (
        SlurmClusterExecutor(cache_directory=tmp_path / "cache") as exe,
        pytest.raises(ResourceError, match="cwd"),
    ):
        exe.submit(noted, tmp_path, "x", resource_dict=options).result(60)
