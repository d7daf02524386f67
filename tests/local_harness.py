"""A local queue of a test's own, in a directory of its own, and jobs for it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dask_batch.backends.base import Job, JobStatus
from dask_batch.backends.local import LocalBackend, stop_local_queue
from dask_batch.backends.local.connection import Connection
from dask_batch.errors import BackendUnavailableError

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "package"
PATIENCE_S = 60.0


def eventually(condition: Callable[[], Any], *, what: str = "") -> Any:
    """Poll until a condition holds, and return what it returned."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never came true: {what or condition}"
        time.sleep(0.005)
    return value


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Bench:
    """Jobs, their folder, and a backend to run them on."""

    def __init__(self, folder: Path, *, first_index: int = 0) -> None:
        self.folder = folder
        self.environment = dict(os.environ)
        self.backend = LocalBackend()
        self._count = first_index

    def job(
        self,
        body: str,
        name: str | None = None,
        *,
        index: int | None = None,
        parents: Sequence[str] = (),
        after: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        preload: tuple[str, ...] = (),
        program: str = "dask_batch.job",
        repeatable: bool = False,
        patient: bool = False,
        after_failure: Sequence[str] = (),
        after_end: Sequence[str] = (),
        **resources: Any,
    ) -> Job:
        """Return a job that runs ``local_bodies.body_<body>``."""
        self._count += 1
        return Job(
            name=name or f"{self.folder.name}.{self._count}",
            definition=self.folder / body,
            index=self._count if index is None else index,
            resources=resources,
            parents=tuple(parents),
            after=tuple(after),
            log_directory=self.folder,
            working_directory=self.folder,
            environment=self.environment if environment is None else environment,
            preload=preload,
            program=program,
            repeatable=repeatable,
            patient=patient,
            after_failure=tuple(after_failure),
            after_end=tuple(after_end),
        )

    def submit(
        self, *jobs: Job, backend: LocalBackend | None = None, release: bool = True
    ) -> dict[str, str]:
        """Hand jobs over, let them go, and return their ids by name."""
        ids: dict[str, str] = {}
        backend = backend or self.backend
        backend.check(jobs)
        backend.submit(jobs, ids.__setitem__)
        if release:
            backend.release(list(ids.values()))
        return ids

    def end(self, ids: Mapping[str, str]) -> dict[str, JobStatus]:
        """Wait until all jobs have ended and return their states by name."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = self.backend.status(list(ids.values()))
            if len(found) == len(ids) and all(status.state.ended for status in found.values()):
                return {name: found[job_id] for name, job_id in ids.items()}
            assert time.monotonic() < deadline, f"jobs do not end: {found}"
            self.backend.wait(5.0)

    def run(self, *jobs: Job) -> list[JobStatus]:
        """Run jobs and return how they ended."""
        ended = self.end(self.submit(*jobs))
        return [ended[job.name] for job in jobs]

    def finding(self, job: Job) -> Any:
        """Wait for what a job's body leaves for the test, and return it."""
        path = self.folder / f"{job.index}.json"
        eventually(path.exists, what=f"{job.name} reports")
        return json.loads(path.read_text())

    def runs(self) -> list[int]:
        """Return the indices of the jobs ``count`` that ran, in order."""
        path = self.folder / "runs"
        return [int(line) for line in path.read_text().split()] if path.exists() else []


@contextlib.contextmanager
def bench(monkeypatch: pytest.MonkeyPatch, idle_s: float = 30.0) -> Iterator[Bench]:
    """Give a test a queue that nobody else uses, and end it afterwards."""
    queue_directory = tempfile.mkdtemp(prefix="dbq")
    folder = tempfile.mkdtemp(prefix="dbt")
    monkeypatch.setenv("DASK_BATCH_QUEUE_DIR", queue_directory)
    monkeypatch.setenv("DASK_BATCH_QUEUE_ENTRY", "local_bodies:run")
    monkeypatch.setenv("DASK_BATCH_QUEUE_IDLE_S", str(idle_s))
    monkeypatch.setenv("PYTHONPATH", f"{PACKAGE}{os.pathsep}{TESTS}")
    given = Bench(Path(folder))
    try:
        yield given
    finally:
        given.backend.close()
        stop_local_queue(kill_jobs=True)
        shutil.rmtree(queue_directory)
        shutil.rmtree(folder, ignore_errors=True)


def client(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start another client process that runs ``code`` on a bench of its own."""
    program = f"""
import sys
from pathlib import Path
from local_harness import Bench
bench = Bench(Path(sys.argv[1]))
{code}
"""
    argv = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(argv, text=True, stdout=subprocess.PIPE, **options)


def queue_pid() -> int | None:
    """Return the pid of the queue's process; None if there is none."""
    try:
        connection = Connection(lambda _: None, start=False)
    except BackendUnavailableError:
        return None
    connection.close()
    return connection.pid
