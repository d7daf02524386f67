"""A real Flux and a stand-in, behind one face: what the contract suite runs against."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract_system import ContractSystem, until
from dask_batch.backends.base import Job
from dask_batch.backends.flux.backend import FluxBackend
from dask_batch.backends.flux.bindings import Bindings, load
from dask_batch.backends.flux.instance import Instance, Row
from dask_batch.configuration.resources import for_executor_call
from dask_batch.errors import BackendUnavailableError
from dask_batch.testing.fake_flux import FakeFlux


class System(ContractSystem):
    """A backend whose jobs run given shell lines.

    Parameters
    ----------
    logs
        The folder of the jobs' logs.
    instance
        The instance, real or not.
    """

    shell = "bash"
    normal = staticmethod(for_executor_call)

    def __init__(self, logs: Path, instance: Instance) -> None:
        super().__init__(logs)
        self.instance = instance
        self.backend = self.client()

    def client(self) -> FluxBackend:
        """Return one more client of the instance."""
        return FluxBackend(self.instance, command=self.argv_of)

    def go(self, *jobs: Job) -> list[str]:
        """Hand jobs over and release them, whatever there is to be said of them."""
        ids = self.submit(*jobs)
        held = (job for job in jobs if not (job.parents or job.after_failure or job.after_end))
        self.backend.release([self.ids[job.name] for job in held])
        return ids

    def active(self) -> list[Row]:
        """Return the jobs of this test that have not ended."""
        return [row for row in self.instance.active() if self.run in row.name]

    def close(self) -> None:
        """End what the test has left behind."""
        self.instance.end([row.job_id for row in self.active()], "cancel", "the test is over")
        self.backend.close()


def why_no_flux() -> str:
    """Return why tests marked ``flux`` cannot run here; empty if they can."""
    if not os.environ.get("FLUX_URI") and shutil.which("flux") is None:
        return "there is no Flux here: FLUX_URI is not set, and no flux is on PATH"
    try:
        load()
    except BackendUnavailableError as error:
        return str(error)
    return ""


@pytest.fixture(scope="session")
def flux_uri(tmp_path_factory):
    """Yield the URI of the instance that there is, or of one that is started."""
    why = why_no_flux()
    if why:
        pytest.skip(why)
    if os.environ.get("FLUX_URI"):
        yield os.environ["FLUX_URI"]
        return
    with own_instance(cpus=8, gpus=2) as uri:
        yield uri


@contextlib.contextmanager
def own_instance(*, cpus: int, gpus: int = 0) -> Iterator[str]:
    """Start an instance with so many CPUs and GPUs, whatever the machine has; yield its URI."""
    folder = Path(tempfile.mkdtemp(prefix="flux-"))
    run = folder / "run"
    run.mkdir(mode=0o700)
    argv = ["flux", "R", "encode", "-r", "0", "-c", f"0-{cpus - 1}", "-H", socket.gethostname()]
    argv += ["-g", f"0-{gpus - 1}"] if gpus else []
    resources = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    (folder / "R").write_text(resources)
    config = f'[resource]\nnoverify = true\npath = "{folder}/R"\n'
    (folder / "flux.toml").write_text(config)
    environment = {n: v for n, v in os.environ.items() if n != "FLUX_URI"}
    options = [f"-Srundir={run}", "-Sbroker.rc2_none=1", f"--config-path={folder}/flux.toml"]
    broker = subprocess.Popen(
        ["flux", "start", *options],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    uri = f"local://{run}/local-0"
    asking = {**environment, "FLUX_URI": uri}
    ask = ["flux", "resource", "list", "-s", "up", "-no", "{ncores}"]

    def up() -> bool:
        done = subprocess.run(ask, env=asking, capture_output=True, text=True)
        return done.stdout.strip() == str(cpus)

    try:
        until(up)
        yield uri
    finally:
        if broker.poll() is None:
            subprocess.run(["flux", "shutdown", "--quiet", uri], env=environment, timeout=60)
        broker.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def flux(flux_uri, monkeypatch) -> str:
    """Let a test run in an instance; return its URI."""
    monkeypatch.setenv("FLUX_URI", flux_uri)
    return flux_uri


REAL = pytest.param("real", marks=pytest.mark.flux)


@pytest.fixture(params=["fake", REAL])
def system(request, tmp_path, monkeypatch):
    """Yield the fake and the real one in turn."""
    if request.param == "real":
        request.getfixturevalue("flux")
        system = System(tmp_path / "logs", Bindings())
        yield system
        system.close()
        return
    with FakeFlux(tmp_path / "fake", cpus=8, gpus=2) as fake:
        system = System(tmp_path / "logs", fake)
        yield system
        system.close()
