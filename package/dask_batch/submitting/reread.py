"""Jobs as they were handed over, read back from the definitions of their run.

Nothing here unpickles anything: a task's bytes pass through as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dask_batch.backends.base import Job
from dask_batch.backends.command import client_environment
from dask_batch.cache.claims import Claims, Run
from dask_batch.cache.definitions import Definition, read_definition
from dask_batch.cache.store import Cache
from dask_batch.code.pickling import Pickled
from dask_batch.errors import MissingEntryError
from dask_batch.evidence.standing import log_stem
from dask_batch.preparing.preparation import PreparedJob
from dask_batch.preparing.surroundings import Surroundings

__all__ = ["definition_path", "job_of", "reread_jobs"]

_OF_THE_HAND_OVER: Final = frozenset(
    {
        "generation", "input_claims", "inputs", "key", "preload", "resources", "surroundings",
        "wanted",
    }
)  # fmt: skip
"""What a hand-over adds to the header of a prepared job."""


def definition_path(cache: Cache, run_id: str) -> Path:
    """Return where the definitions of a run are."""
    return cache.path / "definitions" / f"{run_id}.h5"


def reread_jobs(
    cache: Cache, run: Run, *, environment: Mapping[str, str] | None = None
) -> tuple[PreparedJob, ...]:
    """Return all jobs of a run as they were prepared, ready to be handed over again.

    Parameters
    ----------
    cache, run
        Whose definitions to read.
    environment
        Of the jobs; by default that of this process, made fit for jobs.

    Returns
    -------
    tuple of PreparedJob
        In the order of their indices: parents come first. ``names`` are empty.

    Raises
    ------
    MissingEntryError, DamagedEntryError
        The definitions are not there, or not as they were written.
    """
    path = definition_path(cache, run.id)
    environment = _environment() if environment is None else environment
    return tuple(
        _prepared(read_definition(path, index), environment) for index in range(len(run.jobs))
    )


def job_of(
    cache: Cache,
    claims: Claims,
    run: Run | str,
    name: str,
    *,
    resources: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Job:
    """Return one job of a run as it was handed over, to be run once more.

    Parameters
    ----------
    cache, claims, run
        Whose definitions to read: a run, or its id.
    name
        The job's.
    resources
        What it is to have this time, in normal form; by default what it had at first.
    environment
        As in :func:`reread_jobs`.

    Returns
    -------
    Job
        Without parents: its inputs are there, or whoever waits for them says so.

    Raises
    ------
    KeyError
        The run has no job of that name.
    MissingEntryError, DamagedEntryError
        As :func:`reread_jobs`.
    """
    run = claims.run(run) if isinstance(run, str) else run
    index = {job: number for number, (job, _) in enumerate(run.jobs)}[name]
    path = definition_path(cache, run.id)
    environment = _environment() if environment is None else environment
    prepared = _prepared(read_definition(path, index), environment)
    return Job(
        name=name,
        definition=path,
        index=index,
        resources=prepared.resources if resources is None else resources,
        log_directory=log_stem(cache, run.id, index).parent,
        working_directory=prepared.surroundings.working_directory,
        environment=prepared.surroundings.environment,
        preload=prepared.preload,
        repeatable=prepared.repeatable,
    )


def _prepared(definition: Definition, environment: Mapping[str, str]) -> PreparedJob:
    common, header = definition.common, definition.header
    if "resources" not in common:
        raise MissingEntryError(
            f"run {common['run']} was handed over by a version that did not keep what its jobs "
            "had asked for: compute again"
        )
    taken = common["surroundings"][header["surroundings"]]
    return PreparedJob(
        key=header["key"],
        function=header["attributes"]["function"],
        names=(),
        payload=Pickled(definition.data, definition.buffers),
        inputs=frozenset(header["inputs"]),
        resources=common["resources"][header["resources"]],
        header={name: value for name, value in header.items() if name not in _OF_THE_HAND_OVER},
        surroundings=Surroundings(
            Path(taken["working_directory"]),
            taken["umask"],
            tuple(taken["module_path"]),
            environment,
        ),
        preload=tuple(header["preload"]),
        wanted=header["wanted"],
    )


def _environment() -> Mapping[str, str]:
    """Return this process's environment, made fit for jobs."""
    return Surroundings.current(client_environment()).environment
