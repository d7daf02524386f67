"""Between our records and the objects and dictionaries of ``flux-python``.

The package ``flux`` is an argument: only :mod:`.bindings` imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dask_batch.backends.flux.instance import NORMAL, Dependency, Event, Phase, Request, Row

__all__ = ["ATTRIBUTES", "NOTE", "event_of", "jobspec_of", "row_of"]

NOTE: Final = "dask_batch"
"""Under this name in the jobspec's ``attributes.user`` is what we keep with a job."""
ATTRIBUTES: Final = (
    *("name", "state", "urgency", "t_submit", "waitstatus", "dependencies"),
    *("exception_occurred", "exception_severity", "exception_type", "exception_note"),
)
"""What is asked about a job."""


def jobspec_of(flux: Any, request: Request) -> Any:
    """Return the jobspec of a request.

    Raises
    ------
    ValueError
        The bindings refuse it.
    """
    of = "slot" if request.nested else "task"
    jobspecs = flux.job.JobspecV1
    make = jobspecs.from_nest_command if request.nested else jobspecs.from_command
    sizes = {
        f"num_{of}s": request.slots,
        f"cores_per_{of}": request.cpus,
        f"gpus_per_{of}": request.gpus or None,
    }
    jobspec = make(
        list(request.command),
        **sizes,
        num_nodes=request.nodes,
        exclusive=request.exclusive,
        duration=request.run_time_s,
        environment=dict(request.environment),
        env_expand=dict(request.expanded) or None,
        cwd=request.directory,
        name=request.name,
        queue=request.queue,
        bank=request.bank,
    )
    _add_options(jobspec, request)
    if request.dependencies:
        waits = [{"scheme": d.kind, "value": _decimal(flux, d)} for d in request.dependencies]
        jobspec.setattr("system.dependencies", waits)
    if request.note:
        jobspec.setattr(f"user.{NOTE}", dict(request.note))
    return jobspec


def _add_options(jobspec: Any, request: Request) -> None:
    """Say what Flux's shell is to do."""
    if request.stdout is not None:
        jobspec.stdout, jobspec.stderr = request.stdout, request.stderr
        # A repetition must not begin by erasing why there is one.
        jobspec.setattr_shell_option("output.mode", "append")
    if request.gpus and not request.nested:
        # Without it every task sees the GPUs of all.
        jobspec.setattr_shell_option("gpu-affinity", "per-task")


def _decimal(flux: Any, dependency: Dependency) -> str:
    return str(int(flux.job.JobID(dependency.job_id)))  # a number would be refused


def row_of(flux: Any, job: Mapping[str, Any]) -> Row:
    """Return what an instance says of a job."""
    ended_by = job.get("exception_occurred") and job.get("exception_severity") == 0
    status = job.get("waitstatus")
    told = (_dependency(flux, text) for text in job.get("dependencies") or ())
    return Row(
        job_id=str(flux.job.JobID(job["id"]).f58plain),
        name=str(job.get("name", "")),
        phase=Phase(job["state"]),
        urgency=int(job.get("urgency", NORMAL)),
        submitted=float(job.get("t_submit", 0.0)),
        wait_status=status if isinstance(status, int) else None,
        exception=str(job.get("exception_type", "")) if ended_by else "",
        note=str(job.get("exception_note", "")) if ended_by else "",
        waits_for=frozenset(each for each in told if each is not None),
    )


def _dependency(flux: Any, text: str) -> Dependency | None:
    """Read what Flux writes of a dependency, such as ``after-success=408340660224``."""
    kind, _, job_id = text.partition("=")
    try:
        return Dependency(kind, str(flux.job.JobID(job_id).f58plain))
    except ValueError:  # of another kind than ours
        return None


def event_of(flux: Any, event: Any) -> Event:
    """Return a line of the journal."""
    context = event.context or {}
    system = ((event.jobspec or {}).get("attributes") or {}).get("system") or {}
    about = str(context.get("description", "")) if event.name.startswith("dependency-") else ""
    return Event(
        job_id=str(event.jobid.f58plain),
        name=event.name,
        context=context,
        job_name=str((system.get("job") or {}).get("name", "")),
        timestamp=event.timestamp,
        dependency=_dependency(flux, about) if about else None,
    )
