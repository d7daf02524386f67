"""Which command starts ranks, for which library, where."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from dask_batch.job.endings import EndedError
from dask_batch.job.ranks import launch as launching
from dask_batch.job.ranks.launch import MPIEXEC, launch, recommended
from dask_batch.job.ranks.library import Library

OPEN_MPI = Library("Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4")
MPICH = Library("MPICH Version:\t5.0.2\nMPICH Release date:\tunreleased")
DEBIAN_SLURM = ["pmix", "none", "cray_shasta", "pmi2", "pmix_v4"]
ONE = {
    "count": 2,
    "cpus": 3,
    "gpus": 0,
    "gpu_option": None,
    "nodes": None,
    "exclusive": False,
    "pmi_mode": None,
    "oversubscribe": False,
}
SLURM = {"DASK_BATCH_BACKEND": "slurm", "SLURM_JOB_ID": "7"}


def asked(**more: Any) -> dict[str, Any]:
    return {**ONE, **more}


@pytest.mark.parametrize(
    ("library", "modes", "mode"),
    [
        (OPEN_MPI, DEBIAN_SLURM, "pmix"),
        (OPEN_MPI, ["none", "pmix_v5", "pmi2"], "pmix_v5"),
        (OPEN_MPI, ["pmix_v4", "none", "pmix_v10", "pmix_v9"], "pmix_v10"),
        (OPEN_MPI, ["pmix_v4", "pmix"], "pmix"),
        (OPEN_MPI, ["none", "pmi2"], MPIEXEC),
        (MPICH, DEBIAN_SLURM, "pmi2"),
        (MPICH, ["none", "cray_shasta"], "cray_shasta"),
        (MPICH, ["none", "pmix"], MPIEXEC),
        (Library("Intel(R) MPI Library 2021.10 for Linux* OS"), DEBIAN_SLURM, "pmi2"),
    ],
)
def test_the_mode_that_a_library_understands(library: Library, modes: list[str], mode: str) -> None:
    assert recommended(library, modes) == mode


def test_srun_is_told_what_a_step_does_not_inherit() -> None:
    gpus = {"gpus": 1, "gpu_option": "--gpus-per-task=1"}
    how = launch(asked(pmi_mode="pmix", nodes=2, **gpus), OPEN_MPI, SLURM)
    assert how.argv[:4] == ("srun", "--mpi=pmix", "--ntasks=2", "--cpus-per-task=3")
    assert {"--gpus-per-task=1", "--nodes=2", "--kill-on-bad-exit=1"} <= set(how.argv)
    assert how.words == "srun --mpi=pmix"
    shared = launch(asked(pmi_mode="pmix", oversubscribe=True), OPEN_MPI, SLURM)
    assert "--overcommit" in shared.argv
    assert "--exact" not in how.argv
    beside = launch(asked(pmi_mode="pmix"), OPEN_MPI, {**SLURM, "DASK_BATCH_BACKEND": "slurm-step"})
    assert "--exact" in beside.argv


def test_flux_starts_ranks_of_its_own_instance() -> None:
    there = {"DASK_BATCH_BACKEND": "flux", "FLUX_URI": "local:///run"}
    how = launch(asked(gpus=1, pmi_mode="pmix"), OPEN_MPI, there)
    assert how.argv[:4] == ("flux", "run", "--ntasks=2", "--cores-per-task=3")
    assert "pmi=pmix" in how.argv
    assert "gpu-affinity=per-task" in how.argv
    assert how.words == "flux run pmi=pmix"
    assert "pmi=" not in " ".join(launch(asked(), MPICH, there).argv)


def program(folder: Path, name: str, says: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_mpiexec_beside_the_library_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = program(tmp_path / "path", "mpiexec", "mpiexec (OpenRTE) 4.1.4")
    monkeypatch.setenv("PATH", str(other.parent))
    own = program(tmp_path / "mpich" / "bin", "mpiexec", "HYDRA build details:")
    mpich = Library(MPICH.version, (str(tmp_path / "mpich" / "lib" / "libmpi.so.12"),))
    assert launch(asked(), mpich, {}).argv == (str(own), "-n", "2")
    assert launch(asked(), OPEN_MPI, {}).argv[:3] == (str(other), "-n", "2")


def test_an_mpiexec_that_others_may_have_put_there_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_to_all = tmp_path / "scratch"
    theirs = program(open_to_all / "bin", "mpiexec", "HYDRA build details:")
    (open_to_all / "bin").chmod(0o1777)
    monkeypatch.setenv("PATH", str(tmp_path))
    library = Library(MPICH.version, (str(open_to_all / "lib" / "libmpi.so.12"),))
    assert theirs.exists()
    with pytest.raises(EndedError, match="no mpiexec of MPICH"):
        launch(asked(), library, {})


def test_programs_are_looked_for_near_the_library_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", "mpiexec", "HYDRA build details:")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    far = tmp_path / "a" / "b" / "c" / "lib" / "libmpi.so.12"
    with pytest.raises(EndedError, match="no mpiexec of MPICH"):
        launch(asked(), Library(MPICH.version, (str(far),)), {})


def test_an_mpiexec_of_another_library_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "mpiexec", "mpiexec (OpenRTE) 4.1.4")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EndedError, match="no mpiexec of MPICH"):
        launch(asked(), MPICH, {})


def test_several_tasks_side_by_side_are_not_bound_to_the_same_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "mpiexec", "mpiexec (OpenRTE) 4.1.4")
    monkeypatch.setenv("PATH", str(tmp_path))
    argv = " ".join(launch(asked(), OPEN_MPI, {}).argv)
    assert "--bind-to none" in argv
    assert "--oversubscribe" in argv
    inside = {**SLURM, "DASK_BATCH_BACKEND": "slurm"}
    assert "--oversubscribe" not in launch(asked(pmi_mode=MPIEXEC), OPEN_MPI, inside).argv
    more = launch(asked(pmi_mode=MPIEXEC, oversubscribe=True), OPEN_MPI, inside)
    assert "--oversubscribe" in more.argv


def test_root_is_not_asked_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "mpiexec", "mpiexec (OpenRTE) 4.1.4")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(launching.os, "geteuid", lambda: 0)
    assert launch(asked(), OPEN_MPI, {}).variables["OMPI_ALLOW_RUN_AS_ROOT"] == "1"
    monkeypatch.setattr(launching.os, "geteuid", lambda: 1000)
    assert not launch(asked(), OPEN_MPI, {}).variables
