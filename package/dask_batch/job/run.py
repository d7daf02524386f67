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
import traceback
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from dask_batch.cache import attempts
from dask_batch.cache.definitions import Definition, read_definition
from dask_batch.cache.store import Cache
from dask_batch.code import pickling
from dask_batch.errors import CacheError, DamagedEntryError, MissingEntryError
from dask_batch.job import checks
from dask_batch.job.exit_codes import FAILED
from dask_batch.job.surroundings import enter, job_id
from dask_batch.job.turn import Turn
from dask_batch.spec import Step, evaluate

__all__ = ["main"]

_POLL_S = 0.5


def main(definition_path: str, index: int) -> int:
    """Run one attempt.

    Parameters
    ----------
    definition_path
        The task-definition file of a run, in a cache directory.
    index
        Which of its tasks to run.

    Returns
    -------
    int
        The exit code: 0 if the result is in the store.
    """
    path = Path(definition_path)
    cache = Cache(path.parent.parent, create=False)
    return Attempt(cache, read_definition(path, index)).run()


class _Ended(Exception):
    """The attempt is over without a result; carries the fields of its end record."""

    def __init__(self, outcome: str, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.fields = {"outcome": outcome, "message": message, **fields}


class Attempt:
    """One attempt, from its definition to its result or its end record."""

    def __init__(self, cache: Cache, definition: Definition) -> None:
        self.cache = cache
        self.definition = definition
        self.common: Mapping[str, Any] = definition.common
        self.header: Mapping[str, Any] = definition.header
        self.key: str = definition.header["key"]
        self.generation: int = definition.header["generation"]
        self.started = time.time()
        self._referenced: dict[str, Any] = {}

    def run(self) -> int:
        """Make the attempt and return the exit code."""
        if self.cache.check(self.key):
            return 0
        turn = Turn(self.cache, self.key, self.common["run"], self.header["generation"])
        generation = turn.generation()
        if generation is None:
            print("dask-batch: a later attempt has taken the place of this job", file=sys.stderr)
            return FAILED
        self.generation = generation
        if not turn.take(generation, job_id(), self.started):
            return 0 if self.cache.check(self.key) else FAILED
        try:
            self._make()
        except _Ended as ended:
            self._record_end(ended.fields)
            print(f"dask-batch: {ended}", file=sys.stderr)
            return FAILED
        except Exception as error:
            # Not the function's doing: the surroundings, the cache, or this program.
            message = f"the job failed before or after its function: {_summary(error)}"
            trace = "".join(traceback.format_exception(error))
            self._record_end({"outcome": "died", "message": message, "traceback": trace})
            raise
        return 0

    def _make(self) -> None:
        """Make the attempt, up to its result."""
        self._check()
        self._await_inputs()
        surroundings = self.common["surroundings"][self.header["surroundings"]]
        enter(surroundings, cpus=self.header["cpus"])
        value = self._call()
        self._check_files()
        self._publish(value)

    # ---- what it needs ---------------------------------------------------------------------

    def _check(self) -> None:
        """End the attempt if this interpreter or its libraries are not those that were hashed."""
        changed = checks.interpreter_changes(self.common) or checks.library_changes(
            self.header["libraries"], self.common["key_versions"]
        )
        if changed:
            raise _Ended("changed", changed)
        self._check_files()

    def _check_files(self) -> None:
        changed = checks.file_changes(self.header["files"])
        if changed:
            raise _Ended("changed", changed)

    def _await_inputs(self) -> None:
        """Wait until every input is in the store; end the attempt if one never will be."""
        missing = set(self.header["inputs"])
        deadline = time.monotonic() + float(self.common["input_grace_s"])
        while True:
            missing -= self.cache.present(missing)
            if not missing:
                return
            for key in sorted(missing):
                root = checks.failed_input(self.cache, key, self.header["input_claims"].get(key))
                if root is not None:
                    raise _Ended("dependency", root.message, root=root.key)
            if time.monotonic() >= deadline:
                key = min(missing)
                raise _Ended(
                    "dependency",
                    f"the input {key[:12]} is not in the cache, "
                    f"{self.common['input_grace_s']:g} s after this job started",
                    root=key,
                )
            time.sleep(_POLL_S)

    def _load(self, key: str) -> Any:
        try:
            return self.cache.load(key, mode="map")
        except (MissingEntryError, DamagedEntryError) as error:
            raise _Ended("dependency", f"an input cannot be read: {error}", root=key) from error

    # ---- the call --------------------------------------------------------------------------

    def _call(self) -> Any:
        """Unpickle the task and compute it, a chain step by step."""
        try:
            steps: tuple[Step, ...] = pickling.loads(
                self.definition.data,
                self.definition.buffers,
                persistent_load=self._persistent_load,
                install=True,
            )
            value: Any = None
            values: dict[Hashable, Any] = {}
            for step in steps:
                # Only the step before is kept: a long chain holds two values, not all.
                values.update((name, self._load(key)) for name, key in step.inputs.items())
                value = evaluate(step.expression, values)
                values = {step.name: value}
            return value
        except _Ended:
            raise
        except BaseException as error:
            raise _Ended("exception", _summary(error), **_describe(error)) from error

    def _persistent_load(self, reference: Any) -> Any:
        """Resolve what a definition does not hold itself: results, and large arguments."""
        kind, key = reference
        if kind != "result":
            raise CacheError(f"an unknown reference in a task definition: {kind!r}")
        if key not in self._referenced:
            self._referenced[key] = self._load(key)
        return self._referenced[key]

    # ---- what comes of it ------------------------------------------------------------------

    def _publish(self, value: Any) -> None:
        ended = time.time()
        attributes = {
            **self.header["attributes"],
            "started": self.started,
            "ended": ended,
            "runtime": ended - self.started,
            "host": socket.gethostname(),
            "job_id": job_id(),
            "generation": self.generation,
            "run": self.common["run"],
            "environment": {"python": platform.python_version(), "platform": sys.platform},
        }
        try:
            self.cache.publish(self.key, value, attributes)
        except CacheError as error:
            raise _Ended("unstorable", f"the result could not be written: {error}") from error
        except Exception as error:
            raise _Ended(
                "unstorable",
                f"the result, of type {type(value).__qualname__}, could not be stored: {error}",
                **_describe(error),
            ) from error

    def _record_end(self, fields: Mapping[str, Any]) -> None:
        record = {
            "function": self.header["attributes"].get("function", ""),
            "job_id": job_id(),
            "host": socket.gethostname(),
            "started": self.started,
            "ended": time.time(),
            **fields,
        }
        attempts.end(self.cache, self.key, self.generation, record)
        if self.header["error_log_file"]:
            self._log_error(Path(self.header["error_log_file"]), record)

    def _log_error(self, path: Path, record: Mapping[str, Any]) -> None:
        """Append to the file that the user wants errors to be collected in."""
        text = (
            f"function: {record['function']}\nkey: {self.key}\njob: {record['job_id']}\n"
            f"{record['message']}\n{record.get('traceback', '')}\n"
        )
        try:
            with open(path, "a", encoding="utf-8") as log:
                log.write(text)
        except OSError as error:
            print(f"dask-batch: {path} cannot be written: {error.strerror}", file=sys.stderr)


def _summary(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def _describe(error: BaseException) -> dict[str, Any]:
    """Return the fields of an end record that let a client raise this exception again."""
    import base64

    kind = type(error)
    fields: dict[str, Any] = {
        "exception_type": f"{kind.__module__}.{kind.__qualname__}",
        "traceback": "".join(traceback.format_exception(error)),
    }
    try:
        pickled = pickling.dumps(error)
        if not pickled.buffers:
            fields["exception"] = base64.b64encode(pickled.data).decode("ascii")
    except Exception as unpicklable:
        fields["exception_lost"] = _summary(unpicklable)
    return fields
