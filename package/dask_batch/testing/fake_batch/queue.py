"""The queue: jobs, what they wait for, what runs; its state is a file, opened by one at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Queue", "Refused", "opened"]

ENDED = "ended"
_STEP = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parent.parent)!r}); "
    "from fake_batch.step import main; main(*sys.argv[1:])"
)


class Refused(Exception):
    """The queue does not take a job, or knows none of that id."""


class Queue:
    """The jobs, and what happens to them.

    Parameters
    ----------
    folder
        Where the state is.
    config
        ``system``, ``cpus``, ``queues``, ``max_jobs``.
    state
        What the file holds: ``next``, ``jobs``.
    """

    def __init__(self, folder: str, config: dict[str, Any], state: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config
        self.state = state

    @property
    def jobs(self) -> dict[str, dict[str, Any]]:
        """All jobs, by id."""
        jobs: dict[str, dict[str, Any]] = self.state["jobs"]
        return jobs

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job.

        Raises
        ------
        Refused
            There is none of that id.
        """
        if job_id not in self.jobs:
            raise Refused(job_id)
        return self.jobs[job_id]

    # ---- what commands do ------------------------------------------------------------------

    def submit(self, asked: dict[str, Any]) -> str:
        """Take a job, or refuse it."""
        limit = self.config["max_jobs"]
        if limit is not None and sum(not over(job) for job in self.jobs.values()) >= limit:
            raise Refused("full")
        if asked["queue"] not in (None, *self.config["queues"]):
            raise Refused("queue")
        job_id = str(self.state["next"])
        self.state["next"] += 1
        script = Path(self.folder) / f"{job_id}.sh"
        script.write_text(asked.pop("script"))
        self.jobs[job_id] = {
            **asked,
            "id": job_id,
            "queue": asked["queue"] or self.config["queues"][0],
            "state": "waiting",
            "status": None,
            "cause": "",
            "submitted": time.time(),
            "started": None,
            "ended": None,
        }
        return job_id

    def release(self, job_id: str) -> None:
        """Let a held job go."""
        self.job(job_id)["held"] = False

    def cancel(self, job_id: str) -> bool:
        """End a job; returns whether there was something to end."""
        job = self.job(job_id)
        if over(job):
            return False
        if job["state"] == "running":
            job["cause"] = "deleted"
            Path(self.folder, f"{job_id}.deleted").touch()
            return True
        self._end(job, None, "deleted")
        return True

    # ---- what happens by itself ------------------------------------------------------------

    def advance(self) -> None:
        """Let jobs fall whose conditions cannot be met, and start those that may start."""
        while any(self._falls(job) for job in self.jobs.values()):
            continue
        free = self.config["cpus"] - sum(
            job["cpus"] for job in self.jobs.values() if job["state"] == "running"
        )
        for job in self.jobs.values():
            ready = job["state"] == "waiting" and not job["held"] and job["cpus"] <= free
            if ready and self._may_start(job):
                free -= job["cpus"]
                self._start(job)

    def _falls(self, job: dict[str, Any]) -> bool:
        if job["state"] != "waiting" or not job["falls"]:
            return False
        bad = any(self._ended(i) and not self._succeeded(i) for i in job["after_ok"])
        failures = job["after_failure"]
        bad = bad or (bool(failures) and all(self._succeeded(i) for i in failures))
        if bad:
            self._end(job, None, "fell")
        return bad

    def _may_start(self, job: dict[str, Any]) -> bool:
        failures = job["after_failure"]
        return (
            all(self._ended(i) for i in job["after_any"])
            and all(self._succeeded(i) for i in job["after_ok"])
            and (not failures or any(self._ended(i) and not self._succeeded(i) for i in failures))
        )

    def _ended(self, job_id: str) -> bool:
        return job_id not in self.jobs or over(self.jobs[job_id])

    def _succeeded(self, job_id: str) -> bool:
        return job_id in self.jobs and self.jobs[job_id]["status"] == 0

    def _start(self, job: dict[str, Any]) -> None:
        job["state"], job["started"] = "running", time.time()
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _STEP, self.folder, job["id"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )

    def ran(self, job_id: str, status: int, cause: str) -> None:
        """Note the end of a job that ran: a wait status, and what ended it."""
        job = self.job(job_id)
        self._end(job, status, job["cause"] or cause)

    def _end(self, job: dict[str, Any], status: int | None, cause: str) -> None:
        job.update(state=ENDED, status=status, cause=cause, ended=time.time())


def over(job: dict[str, Any]) -> bool:
    """Whether a job has ended."""
    return bool(job["state"] == ENDED)


def code_and_signal(job: dict[str, Any]) -> tuple[int, int]:
    """Return the exit code and the signal of a job that ran."""
    status = job["status"] or 0
    return os.waitstatus_to_exitcode(status) if status & 0x7F == 0 else 0, status & 0x7F


@contextlib.contextmanager
def opened(folder: str) -> Iterator[Queue]:
    """Open the queue, alone; what was changed is saved, and what may start is started."""
    lock = os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(f"{folder}/config.json", encoding="utf-8") as file:
            config = json.load(file)
        try:
            with open(f"{folder}/state.json", encoding="utf-8") as file:
                state = json.load(file)
        except FileNotFoundError:
            state = {"next": 1, "jobs": {}}
        queue = Queue(folder, config, state)
        yield queue
        queue.advance()
        with open(f"{folder}/state.tmp", "w", encoding="utf-8") as file:
            json.dump(state, file)
        os.replace(f"{folder}/state.tmp", f"{folder}/state.json")
    finally:
        os.close(lock)


def kill(leader: int, number: signal.Signals) -> None:
    """Signal the processes of a job."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)
