"""One hand-over of jobs, as a record: who handed over what, under which names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dask_batch.cache.owner import Owner

__all__ = ["Run"]


@dataclass(frozen=True, slots=True)
class Run:
    """One hand-over of jobs to a batch system."""

    id: str
    owner: Owner
    backend: str
    created: float
    jobs: tuple[tuple[str, str], ...]
    """Of each job its unique name and its task's key; the position is the job's index."""
    place: str = ""
    """Of a run whose jobs end with their client: the job of a batch system that it is in."""

    def as_record(self) -> dict[str, Any]:
        """Return it as a record."""
        record = asdict(self)
        if not self.place:
            del record["place"]
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Run:
        """Return the run that a record tells of."""
        return cls(
            id=record["id"],
            owner=Owner(**record["owner"]),
            backend=record["backend"],
            created=record["created"],
            jobs=tuple((name, key) for name, key in record["jobs"]),
            place=record.get("place", ""),
        )
