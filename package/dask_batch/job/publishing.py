"""The result of an attempt, published with what is to be known of it."""

from __future__ import annotations

import platform
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dask_batch import __version__
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError, SerializationError
from dask_batch.job.endings import EndedError, described, summary

__all__ = ["Publication", "unstorable"]


@dataclass(frozen=True, slots=True)
class Publication:
    """What an attempt says of its result.

    Attributes
    ----------
    cache, key
        Where it goes.
    attributes
        What the definition says of the task.
    run, generation, job_id
        Who made the attempt.
    started
        When it began, in seconds since the epoch.
    versions
        Of the libraries that its key rests on.
    """

    cache: Cache
    key: str
    attributes: Mapping[str, Any]
    run: str
    generation: int
    job_id: str
    started: float
    versions: Mapping[str, str | None]

    def publish(self, value: Any) -> None:
        """Put a result into the store.

        Raises
        ------
        EndedError
            It cannot be stored.
        """
        ended = time.time()
        attributes = {
            **self.attributes,
            "started": self.started,
            "ended": ended,
            "runtime": ended - self.started,
            "host": socket.gethostname(),
            "job_id": self.job_id,
            "generation": self.generation,
            "run": self.run,
            "environment": self._environment(),
        }
        try:
            self.cache.publish(self.key, value, attributes)
        except CacheError as error:
            message = f"the result could not be written: {error}"
            raise EndedError("unstorable", message, unwritten=True) from error
        except BaseException as error:  # a __reduce__ may raise anything
            raise unstorable(value, error) from error

    def _environment(self) -> dict[str, Any]:
        return {
            "python": platform.python_version(),
            "platform": sys.platform,
            "machine": platform.machine(),
            "packages": {**self.versions, "dask-batch": __version__},
        }


def unstorable(value: Any, error: BaseException) -> EndedError:
    """Return how an attempt ends whose result cannot be pickled."""
    reason = error if isinstance(error, SerializationError) else summary(error)
    return EndedError(
        "unstorable",
        f"the result, of type {type(value).__qualname__}, could not be stored: {reason}",
        **described(error),
    )
