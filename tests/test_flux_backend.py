"""The Flux backend where a real instance cannot show it: refusals, limits, instances that end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import dask
import pytest

from bodies import fail, kill_myself
from contract_system import until
from dask_batch import FluxClusterExecutor, cluster_get
from dask_batch.backends.base import JobState, tells_at_once
from dask_batch.backends.flux import bindings
from dask_batch.backends.flux.backend import FluxBackend, open_flux
from dask_batch.backends.flux.instance import Refused
from dask_batch.backends.flux.places import Ended, find_instance
from dask_batch.errors import (
    BackendUnavailableError,
    DependencyFailedError,
    DiedTaskError,
    QueueFullError,
    SubmissionError,
)
from dask_batch.job.surroundings import job_id
from dask_batch.testing import FakeFlux
from flux_systems import System

only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
QUICK = {"failure_grace_s": 0.2, "output_grace_s": 1.0}


@pytest.fixture
def fake(tmp_path):
    with FakeFlux(tmp_path / "fake", cpus=4) as fake:
        yield fake


@pytest.fixture
def system(tmp_path, fake):
    system = System(tmp_path / "logs", fake)
    yield system
    system.backend.close()


# ---- what is not there -------------------------------------------------------------------------


def test_without_the_bindings_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "flux", None)
    for module in ("job", "idset", "hostlist", "resource"):
        monkeypatch.setitem(sys.modules, f"flux.{module}", None)
    words = "conda-forge flux-core.*`ply`.*unrelated"
    with pytest.raises(BackendUnavailableError, match=words):
        FluxClusterExecutor(cache_directory=tmp_path / "cache")
    assert not (tmp_path / "cache" / "runs").exists() or not os.listdir(tmp_path / "cache/runs")


def test_a_library_that_cannot_be_loaded_is_the_same(monkeypatch):
    def missing(name: str) -> None:
        raise ImportError("libflux-core.so.2: cannot open shared object file")

    monkeypatch.setattr(bindings.importlib, "import_module", missing)
    with pytest.raises(BackendUnavailableError, match=r"libflux-core\.so\.2.*conda-forge"):
        bindings.load()


def test_an_instance_that_has_ended_knows_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("FLUX_URI", raising=False)
    name = f"flux@{socket.gethostname()}{tmp_path}/local-0"
    backend = open_flux(name)
    assert isinstance(backend, Ended)
    assert backend.name == name
    assert backend.status(["f1"])["f1"].state is JobState.LOST
    assert backend.find(["a"]) == {}
    backend.cancel(["f1"])
    with pytest.raises(BackendUnavailableError, match="has ended"):
        backend.submit([], lambda name, job_id: None)


def test_a_socket_behind_which_nobody_is(tmp_path, monkeypatch):
    monkeypatch.delenv("FLUX_URI", raising=False)
    path = Path(os.path.relpath(tmp_path / "s"))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))  # a broker that was killed leaves it
    place = f"{socket.gethostname()}{tmp_path}/s"
    if len(str(tmp_path)) < 90:
        assert find_instance(place, lambda uri: pytest.fail(f"asked {uri}")) is None


@pytest.fixture
def place(monkeypatch):
    """Yield the folder of an instance, in a place where anyone may make it, and its socket."""
    monkeypatch.delenv("FLUX_URI", raising=False)
    folder = Path(tempfile.mkdtemp(prefix="flux-"))
    path = folder / "local-0"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        yield path
    shutil.rmtree(folder)


def reached(path):
    return find_instance(f"{socket.gethostname()}{path}", lambda uri: uri)


def test_a_socket_of_ours_is_trusted(place):
    assert reached(place) == f"local://{place}"


def open_to_others(path):
    path.parent.chmod(0o777)


def of_a_stranger(path):
    os.chown(path, 65534, -1)


def in_the_folder_of_a_stranger(path):
    os.chown(path.parent, 65534, -1)


def linked(path):
    path.rename(path.with_name("there"))
    path.symlink_to("there")


@pytest.mark.parametrize(
    "taken",
    [
        open_to_others,
        linked,
        pytest.param(of_a_stranger, marks=only_root),
        pytest.param(in_the_folder_of_a_stranger, marks=only_root),
    ],
)
def test_who_takes_the_place_of_an_instance_is_not_asked(place, taken):
    taken(place)
    with pytest.raises(BackendUnavailableError, match="is not asked"):
        reached(place)


def test_a_folder_that_is_a_link_is_not_asked(place, tmp_path):
    (tmp_path / "run").symlink_to(place.parent)
    with pytest.raises(BackendUnavailableError, match="is not asked"):
        reached(tmp_path / "run" / "local-0")


@only_root
def test_a_stranger_who_listens_behind_our_socket_is_not_asked(monkeypatch):
    monkeypatch.delenv("FLUX_URI", raising=False)
    folder = Path(tempfile.mkdtemp(prefix="flux-"))
    code = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1])\n"
        "os.setuid(65534); s.listen(); print(flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code, str(folder / "local-0")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stranger:
        stranger.stdout.readline()
        with pytest.raises(BackendUnavailableError, match="user 65534 listens"):
            reached(folder / "local-0")
        stranger.stdin.close()
    shutil.rmtree(folder)


@only_root
def test_who_has_a_folder_from_root_is_trusted_there(monkeypatch):
    monkeypatch.delenv("FLUX_URI", raising=False)
    folder = Path(tempfile.mkdtemp(prefix="dask-batch-test-", dir="/run"))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "local"))
        listening.listen()
        folder.chmod(0o755)
        for path in (folder, folder / "local"):
            os.chown(path, 65534, -1)
        assert reached(folder / "local") == f"local://{folder}/local"
    shutil.rmtree(folder)


def test_another_machine_is_asked_through_ssh(monkeypatch):
    monkeypatch.delenv("FLUX_URI", raising=False)
    asked = []

    def connect(uri):
        asked.append(uri)
        raise BackendUnavailableError("no")

    with pytest.raises(BackendUnavailableError):
        find_instance("elsewhere.invalid/run/flux/local-0", connect)
    assert asked == ["ssh://elsewhere.invalid/run/flux/local-0"]


def test_a_name_that_is_no_host_reaches_no_command():
    for name in ("flux@-oProxyCommand=x/run", "flux@a b/run", "flux@/run"):
        with pytest.raises(BackendUnavailableError, match="is not where a Flux instance can be"):
            open_flux(name)


def test_the_enclosing_instance_is_known_by_its_place(monkeypatch, fake):
    monkeypatch.setenv("FLUX_URI", "local:///whatever")
    assert find_instance(fake.place, lambda uri: fake) is fake


# ---- an instance that goes, forgets, or is somebody else's ---------------------------------------


def test_nothing_is_concluded_from_a_broker_that_is_gone(system, fake):
    job = system.job("sleep 1000")
    system.go(job)
    system.wait_for(job, JobState.RUNNING)
    fake.break_down()
    until(lambda: not system.backend._journal._reading)
    for ask in (
        lambda: system.status(job),
        lambda: system.backend.find([job.name]),
        lambda: system.submit(system.job()),
    ):
        with pytest.raises(BackendUnavailableError):
            ask()
    system.backend.wait(0)


def test_what_was_purged_is_not_known(system, fake):
    job = system.job()
    ids = system.go(job)
    system.wait_for(job, JobState.COMPLETED)
    fake.purge()
    other = system.client()
    assert other.status(ids) == {}
    assert other.find([job.name]) == {}
    late = system.job("echo ran", after=ids)
    system.go(late)
    system.wait_for(late, JobState.COMPLETED)
    other.close()


def test_a_purged_job_runs_again(system, fake):
    job = system.job("echo ran", repeatable=True)
    (job_id,) = system.go(job)
    system.wait_for(job, JobState.COMPLETED)
    fake.purge()
    system.ids[job.name] = system.backend.rerun(job, job_id, {})
    assert system.ids[job.name] != job_id
    system.wait_for(job, JobState.COMPLETED)
    assert system.output(job) == "ran\nran\n"


def test_a_guest_is_not_told_at_once(fake, tmp_path):
    fake.owned = False
    guest = FluxBackend(fake)
    assert not tells_at_once(guest)
    assert tells_at_once(FluxBackend(FakeFlux(tmp_path / "own")))


# ---- refusals ----------------------------------------------------------------------------------


def test_a_full_queue_keeps_what_it_took(tmp_path):
    with FakeFlux(tmp_path / "fake", max_jobs=3) as fake:
        system = System(tmp_path / "logs", fake)
        roots = [system.job() for _ in range(5)]
        with pytest.raises(QueueFullError, match="max number of jobs"):
            system.submit(*roots, system.job("true", roots[:1]))
        assert list(system.ids) == [job.name for job in roots[:3]]
        system.backend.release(list(system.ids.values()))
        for job in roots[:3]:
            system.wait_for(job, JobState.COMPLETED)


def test_gates_go_with_a_hand_over_that_fails(system, fake):
    job = system.job(repeatable=True)
    with pytest.raises(SubmissionError):
        system.submit(job, system.job("true", [job], partition="none"))
    assert [row.name for row in fake.active() if row.name.startswith("gate-")] == []
    system.backend.cancel(list(system.ids.values()))
    until(lambda: not fake.active())


def test_a_repetition_whose_opener_is_refused_is_held_and_finished_later(system, fake, monkeypatch):
    job = system.job("test -e now", repeatable=True)
    child = system.job("echo ran", [job])
    job_id, _ = system.go(job, child)
    system.wait_for(job, JobState.FAILED)
    (system.logs / "now").touch()
    submit = fake.submit

    def refusing(requests):
        if any(each.name.startswith("opener-") for each in requests):
            return [Refused("user has max number of jobs submitted") for _ in requests]
        return submit(requests)

    with monkeypatch.context() as refuse:
        refuse.setattr(fake, "submit", refusing)
        for _ in range(2):
            with pytest.raises(QueueFullError):
                system.backend.rerun(job, job_id, {})
    (held,) = (row for row in fake.active() if row.name == job.name)
    assert held.urgency == 0
    assert system.backend.rerun(job, job_id, {}) == held.job_id
    system.wait_for(child, JobState.COMPLETED)
    until(lambda: not fake.active())


@pytest.mark.parametrize("refused", ["gate-", "opener-", "contract"])
def test_who_cannot_wait_for_an_earlier_job_is_not_handed_over(system, fake, monkeypatch, refused):
    job = system.job("sleep 1000", repeatable=True)
    (job_id,) = system.go(job)
    late = system.job("true", after=[job_id], patient=True)
    submit = fake.submit

    def refusing(requests):
        if any(each.name.startswith(refused) for each in requests):
            return [Refused("user has max number of jobs submitted") for _ in requests]
        return submit(requests)

    with monkeypatch.context() as refuse:
        refuse.setattr(fake, "submit", refusing)
        with pytest.raises(QueueFullError) as caught:
            system.submit(late)
    assert caught.value.job_name == late.name
    assert not [row for row in fake.active() if row.name.startswith("gate-")]
    system.go(late)
    assert system.status(late).state is JobState.WAITING
    system.backend.cancel(list(system.ids.values()))
    until(lambda: not fake.active())


def test_a_gate_without_an_opener_is_given_one(system, fake):
    job = system.job("sleep 0.5", repeatable=True)
    (job_id,) = system.go(job)
    gates = system.backend._gates
    fake.submit([gates.gate(job)])  # and then its client has died
    late = system.job("echo ran", after=[job_id], patient=True)
    system.go(late)
    system.wait_for(late, JobState.COMPLETED)
    until(lambda: not fake.active())


def test_more_than_there_is_on_a_repetition_is_a_refusal(system):
    job = system.job(threads_per_core=5)
    with pytest.raises(SubmissionError, match="4 CPU"):
        system.backend.rerun(job, "f1", {})


def test_braces_in_paths_are_refused_before_anything_is_written(fake, tmp_path, monkeypatch):
    monkeypatch.setattr("dask_batch.backends.flux.backend.Bindings", lambda uri: fake)
    with (
        FluxClusterExecutor(cache_directory=tmp_path / "{{id}}") as exe,
        pytest.raises(ValueError, match="replaced by Flux; choose another cache_directory"),
    ):
        exe.submit(max, 1, 2)


def test_looking_at_a_script_writes_nothing(system):
    job = system.job("true", job_script_prologue=["echo a"], exclusive=True, priority=2)
    text = system.backend.script(job, ["f1"])
    assert not system.logs.exists()
    lines = text.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    for line in (
        "# flux: nodes = 1",
        "# flux: exclusive = True",
        "# flux: urgency = 18",
        "# flux: dependency = afterok:f1",
        "echo a",
        "exec bash -c true",
    ):
        assert line in lines


def test_whole_nodes_are_as_few_as_will_do(tmp_path):
    with FakeFlux(tmp_path / "fake", cpus=4, nodes=3) as fake:
        system = System(tmp_path / "logs", fake)
        for cores, nodes in ((1, 1), (4, 1), (5, 2), (9, 3)):
            text = system.backend.script(system.job(cores=cores, exclusive=True))
            assert f"# flux: nodes = {nodes}\n" in text
            assert ("# flux: nested = True" in text) == (cores > 1)


def test_the_id_that_a_job_finds_is_the_one_that_clients_write(monkeypatch):
    monkeypatch.delenv("DASK_BATCH_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for told, written in (("\u01922Dr8WQWT", "f2Dr8WQWT"), ("f2Dr8WQWT", "f2Dr8WQWT")):
        monkeypatch.setenv("FLUX_JOB_ID", told)
        assert job_id() == written


def test_a_fork_begins_a_journal_of_its_own(system):
    job = system.job("true")
    system.submit(job)
    journal = system.backend._journal
    thread = journal._thread
    journal._pid = 0  # as it is seen in a child
    assert system.status(job).state is JobState.HELD
    assert journal._thread is not thread
    system.backend.release([system.ids[job.name]])
    system.wait_for(job, JobState.COMPLETED)


# ---- through the doors -------------------------------------------------------------------------


def add_funct(a: int, b: int) -> int:
    return a + b


@pytest.fixture
def inside(fake, monkeypatch):
    """Let the doors lead to the fake."""
    monkeypatch.setattr("dask_batch.backends.flux.backend.Bindings", lambda uri=None: fake)


def test_dependent_adds(inside, tmp_path):
    with FluxClusterExecutor(cache_directory=tmp_path / "cache") as exe:
        future = 0
        for i in range(4, 8):
            future = exe.submit(add_funct, i, future)
        assert future.result(60) == 22
        assert future.job_id.startswith("f")


def test_a_graph(inside, tmp_path):
    parts = [dask.delayed(add_funct)(i, 1) for i in range(4)]
    total = dask.delayed(sum)(parts)
    options = {"backend": "flux", "cache_directory": tmp_path / "cache"}
    assert dask.compute(total, scheduler=cluster_get, **options) == (10,)


def test_failures_and_what_falls_with_them(inside, tmp_path, fake):
    with FluxClusterExecutor(cache_directory=tmp_path / "cache", steward=False, **QUICK) as exe:
        own = exe.submit(fail, "of mine", resource_dict={"retries": 1, "retry_exceptions": True})
        child = exe.submit(add_funct, own, 1)
        killed = exe.submit(kill_myself, 9)
        assert type(own.exception(60)) is LookupError
        assert isinstance(child.exception(60), DependencyFailedError)
        assert isinstance(killed.exception(60), DiedTaskError)
    until(lambda: not fake.active())


def test_a_queue_that_is_full_is_filled_again(tmp_path, monkeypatch):
    with FakeFlux(tmp_path / "fake", max_jobs=4) as fake:
        monkeypatch.setattr("dask_batch.backends.flux.backend.Bindings", lambda uri=None: fake)
        cache = tmp_path / "cache"
        with FluxClusterExecutor(cache_directory=cache, steward=False) as exe:
            futures = [exe.submit(add_funct, i, i) for i in range(10)]
            assert [future.result(120) for future in futures] == [2 * i for i in range(10)]


def test_repeatable_jobs_and_their_gates_share_a_small_queue(tmp_path, monkeypatch):
    with FakeFlux(tmp_path / "fake", max_jobs=6) as fake:
        monkeypatch.setattr("dask_batch.backends.flux.backend.Bindings", lambda uri=None: fake)
        asked = {"retries": 1, "retry_exceptions": True}
        options = {"cache_directory": tmp_path / "cache", "resource_dict": asked}
        with FluxClusterExecutor(steward=False, **options, **QUICK) as exe:
            firsts = [exe.submit(fails_at_first, tmp_path, i) for i in range(6)]
            seconds = [exe.submit(add_funct, first, 1) for first in firsts]
            thirds = [exe.submit(add_funct, second, 1) for second in seconds]
            assert [third.result(200) for third in thirds] == [i + 2 for i in range(6)]
        until(lambda: not fake.active(), lambda: fake.active())


def fails_at_first(folder, number):
    path = folder / f"{number}.first"
    if not path.exists():
        path.touch()
        raise LookupError("at first")
    return number
