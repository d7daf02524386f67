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

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dask_batch.cache import attempts
from dask_batch.cache.checkpoints import checkpoint_path, remove_checkpoints
from dask_batch.cache.definitions import Definition
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError
from dask_batch.job.body import Body
from dask_batch.job.containment import Contained, dump_crashes
from dask_batch.job.cutoff import Cutoff
from dask_batch.job.endings import (
    EndedError,
    NoRecordError,
    described,
    left_by_itself,
    summary,
)
from dask_batch.job.exit_codes import FAILED
from dask_batch.job.fitness import check_files, check_libraries, enter_surroundings
from dask_batch.job.inputs import Inputs
from dask_batch.job.kept import NOTHING, Kept
from dask_batch.job.lifeline import Lifeline
from dask_batch.job.opening import RefusedError, open_task
from dask_batch.job.publishing import Publication
from dask_batch.job.recording import record_end
from dask_batch.job.say import say
from dask_batch.job.surroundings import job_id
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
            with Lifeline(self.cache.path):
                self._make()
        except NoRecordError as ended:
            say(str(ended))
            return ended.exit_code
        except EndedError as ended:
            say(ended.log_text)
            return self._ended(ended.fields, ended.exit_code)
        except Exception as error:
            # Not the function's doing: the surroundings, the cache, or this program.
            message = f"the job failed before or after its function: {summary(error)}"
            say(message)
            trace = described(error)["traceback"]
            return self._ended({"outcome": "died", "message": message, "traceback": trace}, FAILED)
        finally:
            cutoff.stop()
        return self._done()

    def _make(self) -> None:
        """Make the attempt, up to its result."""
        self.kept.check()
        self._prepare()
        if self.header.get("ranks"):
            self._lead()
            return
        value = self._value()
        check_files(self.header)
        self._publication().publish(value)

    def _lead(self) -> None:
        """Let MPI ranks make it; the first of them publishes."""
        from dask_batch.job.ranks.leader import Leader

        if self.kept.crew is not None:
            self.kept.crew.lead(self._publication(), self.definition)
            return
        Leader(self._publication(), self.definition).run()

    def _ended(self, fields: Mapping[str, Any], exit_code: int) -> int:
        """Record that the attempt has ended without a result, and return the exit code.

        A cache may be removed as soon as its results are there, and another one made in its place:
        that is not to be told of an attempt of the first.
        """
        if not self.definition.path.exists():
            say("its cache has been removed: nobody asks how it has ended")
            return exit_code
        return record_end(self, fields, exit_code)

    def _done(self) -> int:
        remove_checkpoints(self.cache, self.key)
        return 0

    def _cutoff(self) -> Cutoff:
        """Return what writes down where this attempt stands when its time is nearly over."""

        def record(cut: Mapping[str, Any]) -> None:
            if self.header.get("ranks"):  # the leader waits for them, and that is all it tells
                cut = {**cut, "traceback": ""}
            who = {"job_id": self.job_id, "host": socket.gethostname(), "started": self.started}
            try:
                attempts.record_cut(self.cache, self.key, self.generation, {**cut, **who})
            except CacheError as error:
                say(f"it cannot be recorded where the task stood: {error}")

        limit = limit_of(self.cache, (self.common, self.header), self.generation)
        if limit is None:
            return Cutoff(record)
        return Cutoff(record, ends_at=limit.ends_at, warn_at=limit.warn_at)

    # ---- its parts -------------------------------------------------------------------------

    def _prepare(self) -> None:
        """See that all is as it must be, and be where the client was."""
        self._check()
        self.inputs.wait(self.header["inputs"])
        enter_surroundings(self.surroundings, cpus=self.header["cpus"])

    def _check(self) -> None:
        """End the attempt if this interpreter or its libraries are not those that were hashed."""
        self.versions = check_libraries(self.common, self.header, self.surroundings)
        check_files(self.header)

    def _value(self) -> Any:
        with Contained(self._left):
            return self.body.value()

    def _left(self, code: int) -> None:
        """Record that the function ends the process by itself."""
        ended = left_by_itself(code)
        say(ended.message)
        self._ended(ended.fields, FAILED)

    def _publication(self) -> Publication:
        return Publication(
            cache=self.cache,
            key=self.key,
            attributes=self.header["attributes"],
            run=self.common["run"],
            generation=self.generation,
            job_id=self.job_id,
            started=self.started,
            versions=self.versions,
        )
