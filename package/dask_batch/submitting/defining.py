"""What a hand-over writes down: its run, its task definitions, and the jobs for the backend."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask_batch.backends.base import Job
from dask_batch.backends.reach import ends_with_client
from dask_batch.backends.within.place import this_place
from dask_batch.cache.claims import Owner, Run
from dask_batch.cache.definitions import DefinitionDraft, write_definitions
from dask_batch.cache.files import make_directory
from dask_batch.cache.store import Cache
from dask_batch.evidence.standing import Standing, log_stem
from dask_batch.preparing.packing import PreparedJob

__all__ = ["Plan", "define", "jobs_of", "run_of", "safe_name"]

_NAME_LENGTH = 40


@dataclass(slots=True)
class Plan:
    """What of some jobs has to be submitted, and what stands already."""

    needed: list[PreparedJob]
    under_way: dict[str, Standing]
    generations: dict[str, int]


def run_of(jobs: Sequence[PreparedJob], backend: str) -> Run:
    """Return a new run of jobs: their names are unique, and end with their indices."""
    # Sortable by eye, unique among clients that begin in the same second.
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
    return Run(
        id=run_id,
        owner=Owner.current(),
        backend=backend,
        created=time.time(),
        jobs=tuple(
            (f"{safe_name(_wished(job))}-{run_id}-{index}", job.key)
            for index, job in enumerate(jobs)
        ),
        place=this_place() if ends_with_client(backend) else "",
    )


def define(
    cache: Cache,
    run: Run,
    plan: Plan,
    common: Mapping[str, Any],
    *,
    section: str = "definitions",
) -> Path:
    """Write the definitions of a run's tasks; return where they are.

    Parameters
    ----------
    cache, run, plan
        What is handed over.
    common
        What all jobs of all runs share, as JSON data.
    section
        The part of the cache that they belong to.
    """
    surroundings, resources = _Table(), _Table()
    drafts = []
    for job in plan.needed:
        header = {
            **job.header,
            "key": job.key,
            "generation": plan.generations[job.key],
            "inputs": sorted(job.inputs),
            "input_claims": _input_claims(job, plan),
            "surroundings": surroundings.index(job.surroundings.record()),
            "resources": resources.index(dict(job.resources)),
            "preload": list(job.preload),
            "wanted": job.wanted,
        }
        drafts.append(DefinitionDraft(header, job.payload))
    shared = {
        **common,
        "run": run.id,
        "backend": run.backend,
        "surroundings": surroundings.records,
        "resources": resources.records,
    }
    return write_definitions(cache, run.id, shared, drafts, section=section)


def _input_claims(job: PreparedJob, plan: Plan) -> dict[str, int]:
    """Return the attempts that inputs come from: they tell why one is not there."""
    claims = {key: plan.generations[key] for key in job.inputs & plan.generations.keys()}
    for key in job.inputs & plan.under_way.keys():
        claims[key] = plan.under_way[key].generation
    return claims


def jobs_of(
    cache: Cache,
    run: Run,
    plan: Plan,
    definition: Path,
    *,
    may_be_repeated: Callable[[Standing], bool],
) -> list[Job]:
    """Return what the backend gets.

    Parameters
    ----------
    cache, run, plan, definition
        What is handed over, and where its definitions are.
    may_be_repeated
        Tells whether a job of an earlier hand-over may be run again after a failure.
    """
    logs = log_stem(cache, run.id, 0).parent
    make_directory(logs)
    names = {key: name for name, key in run.jobs}
    jobs = []
    for index, job in enumerate(plan.needed):
        above = [plan.under_way[k] for k in sorted(job.inputs & plan.under_way.keys())]
        after = (standing.job_id for standing in above)
        jobs.append(
            Job(
                name=names[job.key],
                definition=definition,
                index=index,
                resources=job.resources,
                parents=tuple(names[k] for k in sorted(job.inputs & names.keys())),
                after=tuple(job_id for job_id in after if job_id is not None),
                log_directory=logs,
                working_directory=job.surroundings.working_directory,
                environment=job.surroundings.environment,
                preload=job.preload,
                repeatable=job.repeatable,
                patient=any(may_be_repeated(standing) for standing in above),
            )
        )
    return jobs


class _Table:
    """Distinct records: most jobs of a run have the same, which is written once."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self._places: dict[str, int] = {}

    def index(self, record: dict[str, Any]) -> int:
        """Return the place of a record."""
        text = json.dumps(record, sort_keys=True)
        if text not in self._places:
            self._places[text] = len(self.records)
            self.records.append(record)
        return self._places[text]


def _wished(job: PreparedJob) -> str:
    return str(job.resources.get("job_name") or job.function)


def safe_name(wished: str) -> str:
    """Return a name for people in the letters that every batch system keeps as they are."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", wished).strip("_.-")
    return safe[:_NAME_LENGTH] or "task"
