"""One attempt at one task: load what it needs, call it, publish what it returned.

The order of events is what makes an attempt answer for what it ran:

1. the record of the start, created once: a second job of the same attempt waits for the first;
2. the check that interpreter, libraries and input files are those that were hashed;
3. the inputs, from the store, waited for where the file system is late;
4. the call;
5. the input files once more;
6. the result, published once; or the record of how the attempt ended without one.

The exit code is 0 exactly if the result is in the store, so that the batch system's own
dependencies mean success.
"""

from __future__ import annotations

import platform
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dask_batch import __version__
from dask_batch.cache import attempts
from dask_batch.cache.checkpoints import checkpoint_path, remove_checkpoints
from dask_batch.cache.definitions import Definition
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError, SerializationError
from dask_batch.job import checks
from dask_batch.job.body import Body
from dask_batch.job.containment import Contained, dump_crashes
from dask_batch.job.cutoff import Cutoff
from dask_batch.job.endings import EndedError, described, summary
from dask_batch.job.exit_codes import BAD_PYTHON, FAILED, NO_DIRECTORY, NO_MODULE
from dask_batch.job.inputs import Inputs
from dask_batch.job.kept import NOTHING, Kept
from dask_batch.job.opening import RefusedError, open_task
from dask_batch.job.recording import record_end
from dask_batch.job.say import say
from dask_batch.job.surroundings import enter, extend_path, job_id
from dask_batch.job.time_limit import limit_of
from dask_batch.job.turn import Turn

__all__ = ["main"]


def main(definition_path: str, index: int, kept: Kept = NOTHING) -> int:
    """Run one attempt.

    Parameters
    ----------
    definition_path
        The task-definition file of a run, in a cache directory.
    index
        Which of its tasks to run.
    kept
        What this process keeps between tasks, if it runs several.

    Returns
    -------
    int
        The exit code: 0 if the result is in the store, else see :mod:`.exit_codes`.
    """
    dump_crashes()
    try:
        cache, definition = open_task(Path(definition_path), index)
    except RefusedError as refusal:
        say(str(refusal))
        return refusal.exit_code
    return Attempt(cache, definition, kept).run()


class Attempt:
    """One attempt, from its definition to its result or its end record."""

    def __init__(self, cache: Cache, definition: Definition, kept: Kept = NOTHING) -> None:
        self.cache = cache
        self.definition = definition
        self.kept = kept
        self.common: Mapping[str, Any] = definition.common
        self.header: Mapping[str, Any] = definition.header
        self.key: str = definition.header["key"]
        self.generation: int = definition.header["generation"]
        """Until the claims have told which it is by now."""
        self.surroundings = self.common["surroundings"][self.header["surroundings"]]
        self.job_id = job_id()
        self.started = time.time()
        self.inputs = Inputs(
            cache, self.header["input_claims"], float(self.common["input_grace_s"])
        )
        self.body = Body(definition, self.inputs, checkpoint_path(cache, self.key), kept)
        self.versions: Mapping[str, str | None] = {}

    def run(self) -> int:
        """Make the attempt and return the exit code."""
        if self.cache.check(self.key):
            return self._done()
        turn = Turn(self.cache, self.key, self.common["run"], self.header["generation"])
        generation = turn.generation()
        if generation is None:
            say("a later attempt has taken the place of this job")
            return FAILED
        self.generation = generation
        if not turn.take(generation, self.job_id, self.started):
            return self._done() if self.cache.check(self.key) else FAILED
        cutoff = self._cutoff()
        cutoff.start()
        try:
            self._make()
        except EndedError as ended:
            say(ended.log_text)
            return record_end(self, ended.fields, ended.exit_code)
        except Exception as error:
            # Not the function's doing: the surroundings, the cache, or this program.
            message = f"the job failed before or after its function: {summary(error)}"
            say(message)
            trace = described(error)["traceback"]
            return record_end(
                self, {"outcome": "died", "message": message, "traceback": trace}, FAILED
            )
        finally:
            cutoff.stop()
        return self._done()

    def _make(self) -> None:
        """Make the attempt, up to its result."""
        self.kept.check()
        value = self.value()
        self._check_files()
        self._publish(value)

    def value(self) -> Any:
        """Return what the function returns, called as it is to be.

        Raises
        ------
        EndedError
            It could not be called, or has raised.
        """
        self._check()
        self.inputs.wait(self.header["inputs"])
        self._enter()
        with Contained(self._left):
            return self.body.value()

    def _done(self) -> int:
        remove_checkpoints(self.cache, self.key)
        return 0

    def _cutoff(self) -> Cutoff:
        """Return what writes down where this attempt stands when its time is nearly over."""

        def record(cut: Mapping[str, Any]) -> None:
            who = {"job_id": self.job_id, "host": socket.gethostname(), "started": self.started}
            try:
                attempts.record_cut(self.cache, self.key, self.generation, {**cut, **who})
            except CacheError as error:
                say(f"it cannot be recorded where the task stood: {error}")

        limit = limit_of(self.cache, (self.common, self.header), self.generation)
        if limit is None:
            return Cutoff(record)
        return Cutoff(record, ends_at=limit.ends_at, warn_at=limit.warn_at)

    # ---- what it needs ---------------------------------------------------------------------

    def _check(self) -> None:
        """End the attempt if this interpreter or its libraries are not those that were hashed."""
        other = checks.interpreter_changes(self.common)
        if other:
            raise EndedError("environment", other, exit_code=BAD_PYTHON)
        extend_path(self.surroundings)
        libraries = self.header["libraries"]
        self.versions = checks.library_versions(libraries)
        missing = checks.missing_library(libraries, self.versions, self.header.get("preload", ()))
        if missing:
            raise EndedError("environment", missing, exit_code=NO_MODULE)
        changed = checks.library_changes(libraries, self.versions, self.common["key_versions"])
        if changed:
            raise EndedError("changed", changed)
        self._check_files()

    def _check_files(self) -> None:
        changed = checks.file_changes(self.header["files"])
        if changed:
            raise EndedError("changed", changed)

    def _enter(self) -> None:
        try:
            enter(self.surroundings, cpus=self.header["cpus"])
        except OSError as error:
            raise EndedError(
                "environment",
                f"the working directory {self.surroundings['working_directory']} cannot be entered "
                f"on {socket.gethostname()}: {error.strerror}; resource_dict={{'cwd': ...}} names "
                "another one, on a file system that the nodes share",
                exit_code=NO_DIRECTORY,
            ) from error

    # ---- what comes of it ------------------------------------------------------------------

    def _left(self, code: int) -> None:
        """Record that the function ends the process by itself."""
        outcome = "died" if code else "no output"
        message = f"the function ended its process by os._exit({code}): exit code {code}, no result"
        say(message)
        record_end(self, {"outcome": outcome, "message": message, "exit_code": code}, FAILED)

    def _publish(self, value: Any) -> None:
        ended = time.time()
        attributes = {
            **self.header["attributes"],
            "started": self.started,
            "ended": ended,
            "runtime": ended - self.started,
            "host": socket.gethostname(),
            "job_id": self.job_id,
            "generation": self.generation,
            "run": self.common["run"],
            "environment": self._environment(),
        }
        try:
            self.cache.publish(self.key, value, attributes)
        except CacheError as error:
            raise EndedError("unstorable", f"the result could not be written: {error}") from error
        except BaseException as error:  # a __reduce__ may raise anything
            reason = error if isinstance(error, SerializationError) else summary(error)
            raise EndedError(
                "unstorable",
                f"the result, of type {type(value).__qualname__}, could not be stored: {reason}",
                **described(error),
            ) from error

    def _environment(self) -> dict[str, Any]:
        return {
            "python": platform.python_version(),
            "platform": sys.platform,
            "machine": platform.machine(),
            "packages": {**self.versions, "dask-batch": __version__},
        }
