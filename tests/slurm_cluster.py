"""A Slurm backend whose jobs run shell lines in place of tasks, and what tests ask of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from contract_system import PATIENCE_S, ContractSystem, until
from dask_batch.backends.base import Job
from dask_batch.backends.slurm.backend import SlurmBackend

__all__ = ["OWN_TEMPLATE", "PATIENCE_S", "Cluster", "until"]

OWN_TEMPLATE = """\
#!/bin/bash
#SBATCH --output=time.out
#SBATCH --job-name={{job_name}}
#SBATCH --chdir={{working_directory}}
#SBATCH --get-user-env=L
#SBATCH --partition={{partition}}
{%- if run_time_max %}
#SBATCH --time={{ [1, run_time_max // 60]|max }}
{%- endif %}
{%- if dependency %}
#SBATCH --dependency=afterok:{{ dependency | join(',') }}
{%- endif %}
{%- if memory_max %}
#SBATCH --mem={{memory_max}}G
{%- endif %}
#SBATCH --ntasks={{cores}}

{{command}}
"""
"""A template as users of executorlib have it."""


class Cluster(ContractSystem):
    """A backend on the real Slurm."""

    function = "test.job"

    def __init__(self, logs: Path) -> None:
        super().__init__(logs)
        self.backend = SlurmBackend(command=self.argv_of)

    def described(self, job: Job) -> dict[str, str]:
        """Return what slurmctld knows of a job."""
        argv = ["scontrol", "-o", "show", "job", self.ids[job.name]]
        out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        return dict(word.split("=", 1) for word in out.split() if "=" in word)
