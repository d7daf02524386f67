"""Jobs without a batch system: a call becomes a task definition, and a process that runs it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask_batch.cache import attempts
from dask_batch.cache.definitions import DefinitionDraft, write_definitions
from dask_batch.cache.store import Cache
from dask_batch.configuration.options import Options
from dask_batch.preparing.preparation import Preparer
from dask_batch.preparing.surroundings import Surroundings

PACKAGE = Path(__file__).parent.parent / "package"


class _Backend:
    """The one thing about a backend that preparation asks for."""

    default_max_jobs = None


@dataclass(frozen=True)
class Defined:
    """A call as a job finds it."""

    cache: Cache
    key: str
    definition: Path
    folder: Path

    def start(
        self,
        *,
        python: tuple[str, ...] = (sys.executable,),
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start the job."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("DASK_BATCH")}
        return subprocess.Popen(
            [*python, "-P", "-m", "dask_batch.job", str(self.definition), "0"],
            **{
                "cwd": self.folder,
                "env": {**inherited, "PYTHONPATH": str(PACKAGE), **(environment or {})},
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                "errors": "replace",
                **options,
            },
        )

    def run(self, **how: Any) -> Ran:
        """Run the job to its end."""
        process = self.start(**how)
        out, err = process.communicate(timeout=120)
        return Ran(process.returncode, out, err, self.end)

    @property
    def end(self) -> dict[str, Any] | None:
        return attempts.read_end(self.cache, self.key, 0)

    def result(self) -> Any:
        return self.cache.load(self.key)


@dataclass(frozen=True)
class Ran:
    """How a job ended."""

    code: int
    out: str
    err: str
    end: dict[str, Any] | None


def define(
    folder: Path,
    function: Any,
    *args: Any,
    common: Mapping[str, Any] | None = None,
    header: Mapping[str, Any] | None = None,
    **resources: Any,
) -> Defined:
    """Define a call in the cache ``folder/cache``."""
    cache = Cache(folder / "cache")
    preparer = Preparer(cache, _Backend(), Options("local", cache.path))  # type: ignore[arg-type]
    surroundings = Surroundings.current(dict(os.environ))
    job = preparer.call(function, args, {}, resources, surroundings)
    run_id = f"run-{secrets.token_hex(4)}"
    ours = {
        "run": run_id,
        "surroundings": [job.surroundings.record()],
        "python": list(sys.version_info[:2]),
        "key_versions": "minor",
        "input_grace_s": 60.0,
    }
    own = {
        **job.header,
        "key": job.key,
        "generation": 0,
        "inputs": sorted(job.inputs),
        "input_claims": {},
        "surroundings": 0,
    }
    draft = DefinitionDraft({**own, **(header or {})}, job.payload)
    path = write_definitions(cache, run_id, {**ours, **(common or {})}, [draft])
    return Defined(cache, job.key, path, folder)
