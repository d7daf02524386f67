"""Putting a run's record together again from what else is known of the run.

A run's record and its claims are one file with many names, so damage strikes all of them. What the
jobs are is also told by the definitions (which keys, in the order of the jobs) and by the log (the
jobs' names and ids). Who handed the run over is lost: its owner is nobody, of whom it cannot be
told whether he lives, and who counts as dead once nothing more is heard of the hand-over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dask_batch.cache.definitions import read_headers
from dask_batch.cache.entries import listed
from dask_batch.cache.files import fsync_directory, private_path, publish_bytes
from dask_batch.cache.records import seal
from dask_batch.cache.run import Run
from dask_batch.cache.runlog import NOBODY, read_log
from dask_batch.cache.store import Cache
from dask_batch.errors import DamagedEntryError, MissingEntryError

__all__ = ["mend_run", "recovered_run", "run_of_file"]

_NAME_LENGTH = 40  # of the part of a job's name that is for people


def recovered_run(cache: Cache, run_id: str) -> Run:
    """Return a run whose record is damaged, as far as it can be told.

    Raises
    ------
    DamagedEntryError
        Its definitions are damaged, too, or they are gone and jobs were submitted.

    Notes
    -----
    Without definitions nothing was submitted: a run without jobs is returned.
    """
    path = _record_path(cache, run_id)
    try:
        common, headers = read_headers(cache.path / "definitions" / f"{run_id}.h5")
    except MissingEntryError:
        common, headers = {}, []
    ids = read_log(path).ids
    if ids and not headers:
        raise DamagedEntryError(f"{path} is damaged, and the definitions of its jobs are not there")
    told = _by_index(ids)
    jobs = tuple(
        (told.get(index) or _job_name(header, common, run_id, index), str(header["key"]))
        for index, header in enumerate(headers)
    )
    # Not every hand-over has told its definitions where it went; ids of the local queue do.
    local = any(job_id.startswith("local-") for job_id in ids.values())
    backend = common.get("backend") or ("local" if local else "slurm")
    return Run(run_id, NOBODY, backend, path.stat().st_mtime, jobs)


def _by_index(names: Iterable[str]) -> dict[int, str]:
    """Return the names of jobs by the index that each ends with."""
    found = (re.fullmatch(r".*-([0-9]+)", name) for name in names)
    return {int(match[1]): match[0] for match in found if match is not None}


def _job_name(header: Mapping[str, Any], common: Mapping[str, Any], run_id: str, index: int) -> str:
    """Return the name that a hand-over gives to a job."""
    asked = common.get("resources", ())
    at = header.get("resources")
    resources = asked[at] if isinstance(at, int) and at < len(asked) else {}
    wished = resources.get("job_name") or header.get("attributes", {}).get("function", "")
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", str(wished)).strip("_.-")
    return f"{safe[:_NAME_LENGTH] or 'task'}-{run_id}-{index}"


def mend_run(cache: Cache, run_id: str) -> Run:
    """Replace the damaged record of a run, and the claims that are links to it, by a recovered one.

    Raises
    ------
    DamagedEntryError
        It cannot be recovered.
    CacheError
        It cannot be written.
    """
    run = recovered_run(cache, run_id)
    path = _record_path(cache, run_id)
    damaged = path.stat()
    mended = private_path(path.parent)
    publish_bytes(mended, seal(run.as_record()))
    try:
        for claim in _links(cache, damaged):
            _replace(mended, claim)
        _replace(mended, path)
        # Claims that its owner has made of the damaged record meanwhile.
        for claim in _links(cache, damaged):
            _replace(mended, claim)
    finally:
        mended.unlink(missing_ok=True)
    return run


def _replace(source: Path, target: Path) -> None:
    """Give a file another name, in the place of the file that has it, in one step."""
    link = private_path(target.parent)
    os.link(source, link, follow_symlinks=False)
    try:
        os.replace(link, target)
        fsync_directory(target.parent)
    finally:
        link.unlink(missing_ok=True)


def run_of_file(cache: Cache, claim: Path) -> str:
    """Return the run whose record a claim is a link to.

    Raises
    ------
    DamagedEntryError
        It is a link to none: a damaged claim on a file system where links are refused.
    """
    wanted = claim.lstat()
    runs = cache.path / "runs"
    for name in listed(runs):
        if name.endswith(".json") and _same(runs / name, wanted):
            return name.removesuffix(".json")
    raise DamagedEntryError(f"{claim} is damaged, and nothing tells whose claim it is")


def _links(cache: Cache, record: os.stat_result) -> Iterator[Path]:
    """Yield the claims that are links to a record."""
    claims = cache.path / "claims"
    for shard in listed(claims):
        for name in listed(claims / shard):
            if _same(claims / shard / name, record):
                yield claims / shard / name


def _same(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.lstat(), status)
    except FileNotFoundError:
        return False


def _record_path(cache: Cache, run_id: str) -> Path:
    return cache.path / "runs" / f"{run_id}.json"
