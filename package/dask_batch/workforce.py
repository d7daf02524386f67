"""``block_allocation``: a session's own long-lived workers, in the place of a job for each task.

What kind of processes they are follows from the executor: children of the client, steps of an
allocation, jobs of a batch system. All else is the same for all: they meet the client at a socket
(:mod:`.cache.meeting`), begin with the ``init_function``, and take one task after another.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import secrets
import shutil
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dask_batch.backends.base import Job
from dask_batch.backends.command import client_environment
from dask_batch.backends.local.machine import Machine
from dask_batch.backends.reach import WORKERS
from dask_batch.backends.registry import open_backend
from dask_batch.backends.within.launcher import Launcher, Room
from dask_batch.backends.workers.door import Door, local_door, network_door, sweep_sockets
from dask_batch.backends.workers.pool import WorkerPool
from dask_batch.cache.files import make_directory, publish_bytes
from dask_batch.cache.meeting import Meeting, meeting_directory, pool_name
from dask_batch.cache.owner import Owner
from dask_batch.cache.store import Cache
from dask_batch.configuration.options import Options
from dask_batch.errors import CacheError, ConfigurationError
from dask_batch.preparing.packing import PreparedJob, ranks_of
from dask_batch.preparing.preparation import Preparer, call_resources
from dask_batch.preparing.surroundings import Surroundings
from dask_batch.submitting.defining import Plan, define, run_of

__all__ = ["BACKEND", "Workforce", "open_workforce"]

BACKEND: Final = WORKERS
_PROGRAM: Final = "dask_batch.job.worker"
_OF_THE_WORKER: Final = ("run_time_max",)
"""Resources that a worker has as a whole, and a task has no share of."""


@dataclass(frozen=True, slots=True)
class Workforce:
    """The workers of one session.

    Attributes
    ----------
    pool
        Starts them, and gives them jobs.
    options
        The session's, as they are for tasks on workers.
    room
        What there is for all of them together.
    initial
        The key of the ``init_function``; empty: there is none.
    """

    pool: WorkerPool
    options: Options
    room: Room
    initial: str = ""

    def check(self, count: int) -> None:
        """Refuse more workers than there is room for.

        Raises
        ------
        ConfigurationError
            It names the room.
        """
        normal = call_resources(self.options.resource_dict, self.options.queues)
        _check_cap(count, self.options.max_cores, _cpus(normal))
        _check_room(self.room, count, normal)


def open_workforce(cache: Cache, options: Options, common: Mapping[str, Any]) -> Workforce:
    """Prepare the workers that options ask for; they start with the first task.

    Parameters
    ----------
    cache
        Where they meet the client.
    options
        With ``block_allocation``.
    common
        What all jobs of all runs share, as JSON data.

    Raises
    ------
    ConfigurationError
        What is asked for cannot be had; nothing has been started.
    """
    normal = call_resources(options.resource_dict, options.queues)
    count = _count(options, normal)
    starter = _starter(options)
    room = starter.room()
    _check_room(room, count, normal)
    _sweep(cache)
    surroundings = Surroundings.current(client_environment())
    name = pool_name()
    place = meeting_directory(cache.path) / f"{name}.json"
    first = _initial(cache, options, surroundings)
    if first is not None:
        _define(cache, first, common, place)
    logs = cache.path / "logs" / name
    make_directory(logs)
    like = Job(
        name=name,
        definition=place,
        index=0,
        resources=normal,
        log_directory=logs,
        working_directory=surroundings.working_directory,
        environment=surroundings.environment,
        program=_PROGRAM,
    )
    pool = WorkerPool(starter, like, count=count, restart_limit=options.restart_limit)
    meeting = functools.partial(
        Meeting, initial=first is not None, owner=Owner.current(), ranks=ranks_of(normal)
    )
    _open(place, _door(options), pool, meeting)
    return Workforce(pool, _for_tasks(options), room, first.key if first is not None else "")


def _count(options: Options, normal: Mapping[str, Any]) -> int:
    """Return how many workers there are to be."""
    cpus = _cpus(normal)
    if options.max_workers is not None:
        _check_cap(options.max_workers, options.max_cores, cpus)
        return options.max_workers
    if options.max_cores is None and options.backend != "local":
        raise ConfigurationError(
            "block_allocation=True needs the number of workers: max_workers=, or max_cores= for as "
            "many as fit on so many CPUs"
        )
    room = options.max_cores if options.max_cores is not None else Machine.here().cpus
    if room < cpus:
        raise ConfigurationError(
            f"a worker has {cpus} CPUs (cores times threads_per_core), and there are to be {room} "
            f"in all: ask for max_cores={cpus} or more, or for max_workers="
        )
    return room // cpus


def _cpus(normal: Mapping[str, Any]) -> int:
    return int(normal["cores"] * normal["threads_per_core"])


def _check_cap(count: int, max_cores: int | None, cpus: int) -> None:
    if max_cores is not None and count * cpus > max_cores:
        raise ConfigurationError(
            f"max_workers={count} of {cpus} CPUs each are more than max_cores={max_cores}: leave "
            "out one of them"
        )


def _check_room(room: Room, count: int, normal: Mapping[str, Any]) -> None:
    """Refuse workers that would never start, where it is known what there is for all together."""
    for what, there, each in (
        ("CPUs", room.cpus, normal["cores"] * normal["threads_per_core"]),
        ("GPUs", room.gpus, normal["cores"] * (normal["gpus_per_core"] or 0)),
    ):
        if there is not None and count * each > there:
            raise ConfigurationError(
                f"max_workers={count} with {each} {what} each: there are {there} {what} in all; "
                "ask for fewer workers, or for less"
            )


def _for_tasks(options: Options) -> Options:
    """Return the options of tasks on workers.

    They have what their worker has, however often they are repeated. What an ``init_function`` has
    left in a worker cannot be seen in a key, nor can what MPI holds of an earlier task's messages:
    so results are not reused, unless somebody says that they may be.
    """
    asked = {n: v for n, v in options.resource_dict.items() if n not in _OF_THE_WORKER}
    ranks = max(int(asked.get(name) or 1) for name in ("cores", "ranks"))
    stateful = options.init_function is not None or ranks > 1
    kept = {"cache": False} if stateful else {}
    return dataclasses.replace(
        options,
        resource_dict={**kept, **asked},
        retry_memory_factor=1.0,
        retry_time_factor=1.0,
    )


def _starter(options: Options) -> Launcher:
    """Return what starts the workers of an executor."""
    if options.backend == "local":
        from dask_batch.backends.workers.process import WorkerProcesses

        return WorkerProcesses(options.local_gpus)
    if options.backend == "slurm-step":
        from dask_batch.backends.within.steps import StepLauncher

        return StepLauncher.here()
    if options.backend == "flux-step":
        from dask_batch.backends.within.fluxrun import FluxRunLauncher

        return FluxRunLauncher.here()
    from dask_batch.backends.workers.batch import BatchLauncher

    setup = dataclasses.replace(options.setup, max_workers=None, max_cores=None)  # they are ours
    return BatchLauncher(open_backend(options.backend, setup))


def _door(options: Options) -> Door:
    if options.backend == "local":
        return local_door()
    return network_door(localhost=bool(options.hostname_localhost))


# ---- the init_function -----------------------------------------------------------------------


def _initial(cache: Cache, options: Options, surroundings: Surroundings) -> PreparedJob | None:
    """Prepare the ``init_function`` as what it is in a worker: a call without arguments."""
    if options.init_function is None:
        return None
    preparer = Preparer(cache, None, options)  # type: ignore[arg-type]
    reused = bool(options.resource_dict.get("cache"))
    asked = {**options.resource_dict, "cache": reused, "cache_key": None}
    return preparer.call(options.init_function, (), {}, asked, surroundings)


def _define(cache: Cache, job: PreparedJob, common: Mapping[str, Any], place: Path) -> None:
    """Write the definition of the ``init_function`` beside the meeting place."""
    run = dataclasses.replace(run_of([job], BACKEND), id=place.stem)
    define(cache, run, Plan([job], {}, {job.key: 0}), common, section=place.parent.name)


# ---- the meeting place -----------------------------------------------------------------------


def _open(place: Path, door: Door, pool: WorkerPool, meeting: Callable[..., Meeting]) -> None:
    """Let workers in; the way is closed when the pool is, or this process ends."""
    secret = secrets.token_hex(32)
    publish_bytes(place, meeting(addresses=door.addresses, secret=secret).text())
    leave = weakref.finalize(pool, _leave, place, door, os.getpid())
    pool.left = leave
    admit = weakref.WeakMethod(pool.admit)
    door.open(secret, lambda channel, hello: _admit(admit, channel, hello))


def _admit(method: Any, channel: Any, hello: Any) -> None:
    admit = method()
    if admit is None:
        channel.close()
    else:
        admit(channel, hello)


def _leave(place: Path, door: Door, pid: int) -> None:
    """Close the door, and take away what leads to it; in a fork of the client nothing of that."""
    if os.getpid() == pid:
        door.close()
        _remove(place)


def _remove(place: Path) -> None:
    for path in (place, place.with_suffix(".h5")):
        path.unlink(missing_ok=True)
    for folder in place.parent.glob(f"{place.stem}.*.*"):  # of ranks that were killed
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(cache: Cache) -> None:
    """Remove what clients have left that were killed."""
    sweep_sockets()
    for place in meeting_directory(cache.path).glob("*.json"):
        try:
            meeting = Meeting.read(place)
        except (FileNotFoundError, CacheError):
            continue  # another client has been faster, or it is nothing of ours
        if meeting.owner.alive() is False:
            _remove(place)
