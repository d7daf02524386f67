"""A small Slurm of a test's own: a controller and one node that may be stopped, killed and reset.

It has no accounting, listens on ports of its own, and leaves the shared one alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_CONFIGURATION = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={spool}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
SlurmdParameters=config_overrides
ReturnToService=2
MessageTimeout=3
KillWait=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=50
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=1
EnforcePartLimits=ALL
AccountingStorageType=accounting_storage/none
{settings}
NodeName=p1 NodeHostname=p1 NodeAddr=127.0.0.1 Port={node} CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES DefaultTime=00:10:00 MaxTime=00:30:00 State=UP
"""
_PATIENCE_S = 60.0


class PrivateSlurm:
    """Starts and stops the daemons; commands find them through ``SLURM_CONF``."""

    def __init__(self, folder: Path, settings: str = "") -> None:
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        controller, node = _free_ports(2)
        (folder / "state").mkdir()
        # Other users' jobs read their script there.
        self.spool = Path(tempfile.mkdtemp(prefix="slurmd-"))
        self.spool.chmod(0o755)
        self.configuration.write_text(
            _CONFIGURATION.format(
                host=socket.gethostname().split(".")[0],
                folder=folder,
                spool=self.spool,
                controller=controller,
                node=node,
                settings=settings,
            )
        )

    def start(self) -> None:
        """Start what does not run, and wait until jobs can."""
        self._daemon("slurmctld", "slurmctld", "-f")
        self._daemon("slurmd", "slurmd", "-N", "p1", "-f")
        deadline = time.monotonic() + _PATIENCE_S
        while self._state() not in ("idle", "mix", "alloc"):
            assert time.monotonic() < deadline, (self.folder / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.05)

    def stop(self, *, forget: bool = False) -> None:
        """Stop the controller; or kill it, and let the next one know of no job."""
        self._end("slurmctld", signal.SIGKILL if forget else signal.SIGTERM)
        if forget:
            shutil.rmtree(self.folder / "state")
            (self.folder / "state").mkdir()

    def close(self) -> None:
        """Stop all; jobs first, so that none outlives its node."""
        with contextlib.suppress(subprocess.SubprocessError):
            self._run("scancel", "-u", "root")
        for name in ("slurmd", "slurmctld"):
            self._end(name, signal.SIGKILL)
        shutil.rmtree(self.spool, ignore_errors=True)

    def _daemon(self, name: str, *argv: str) -> None:
        if self._pid(name) is None:
            self._run(*argv, str(self.configuration))

    def _state(self) -> str:
        done = self._run("sinfo", "-h", "-o", "%t", check=False)
        return done.stdout.strip().rstrip("*")

    def _run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "SLURM_CONF": str(self.configuration)}
        return subprocess.run(
            argv, env=environment, check=check, capture_output=True, text=True, timeout=60, cwd="/"
        )

    def _pid(self, name: str) -> int | None:
        """Return the process of a pid file, if it is that daemon's and ours."""
        try:
            pid = int((self.folder / f"{name}.pid").read_text())
            argv = Path(f"/proc/{pid}/cmdline").read_text()
        except (FileNotFoundError, ValueError, ProcessLookupError):
            return None
        return pid if str(self.configuration) in argv else None

    def _end(self, name: str, how: signal.Signals) -> None:
        pid = self._pid(name)
        if pid is None:
            return
        os.kill(pid, how)
        deadline = time.monotonic() + _PATIENCE_S
        while self._pid(name) is not None:
            assert time.monotonic() < deadline, f"{name} does not end"
            time.sleep(0.02)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def private_slurm(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settings: str = ""
) -> Iterator[PrivateSlurm]:
    """Run a Slurm of the test's own, and point this process at it."""
    if os.getuid() != 0 or shutil.which("slurmctld") is None:
        pytest.skip("starts a Slurm controller of its own: needs root and the package slurmctld")
    slurm = PrivateSlurm(folder, settings)
    monkeypatch.setenv("SLURM_CONF", str(slurm.configuration))
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.close()
