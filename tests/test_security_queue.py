"""What is made is for its owner alone, and the local queue talks to nobody else."""

from __future__ import annotations

import os
import pwd
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dask_batch import SingleNodeExecutor, SlurmClusterExecutor
from dask_batch.backends.local import runtime
from dask_batch.errors import BackendUnavailableError

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
KINDS = [
    pytest.param(SingleNodeExecutor, id="local"),
    pytest.param(SlurmClusterExecutor, id="slurm", marks=pytest.mark.slurm),
]


@pytest.fixture
def stranger() -> pwd.struct_passwd:
    """Return another user of this machine."""
    return pwd.getpwnam("nobody")


# ---- modes -------------------------------------------------------------------------------------


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the directory of a queue of the test's own, which is stopped afterwards."""
    from dask_batch import stop_local_queue

    with tempfile.TemporaryDirectory() as name:
        monkeypatch.setenv(runtime.DIRECTORY_VARIABLE, f"{name}/queue")
        yield Path(name) / "queue"
        if runtime.Runtime(Path(name) / "queue").path("sock").exists():
            stop_local_queue(kill_jobs=True)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_made_is_for_its_owner_alone(
    kind: type, umask: int, tmp_path: Path, queue: Path
) -> None:
    before = os.umask(umask)
    try:
        with kind(cache_directory=tmp_path / "cache") as exe:
            asked = {"cache_key": "mine", "job_script_prologue": ["true"]}
            assert exe.submit(print, "shown", resource_dict=asked).result(120) is None
            assert exe.submit(int, "x").exception(120)
    finally:
        os.umask(before)
    cache = tmp_path / "cache"
    made = [cache, *cache.rglob("*"), *([queue, *queue.rglob("*")] if queue.exists() else ())]
    modes = {str(path): stat.S_IMODE(path.lstat().st_mode) for path in made}
    assert len(modes) > 12
    assert {path: oct(mode) for path, mode in modes.items() if mode & 0o077} == {}


UNDER_A_UMASK = """
import encodings.ascii, os, sys
import dask_batch, h5py, numpy  # while the files can be read
from dask_batch.backends.local.runtime import Runtime
from dask_batch.cache import attempts
from dask_batch.cache.store import Cache
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[1]))
os.umask(0o777)
cache = Cache(sys.argv[3] + "/cache")
cache.publish("ab" * 32, [1], {})
attempts.end(cache, "ab" * 32, 0, {"outcome": "died"})
assert cache.load("ab" * 32) == [1]
assert attempts.read_end(cache, "ab" * 32, 0)["outcome"] == "died"
for _ in range(2):
    runtime = Runtime.prepare()
    os.close(runtime.open_private("life", os.O_RDWR))
print("done")
"""


@needs_root
def test_a_umask_that_takes_everything_from_oneself(stranger: pwd.struct_passwd) -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, stranger.pw_uid, stranger.pw_gid)
        argv = [sys.executable, "-c", UNDER_A_UMASK, str(stranger.pw_uid), str(stranger.pw_gid)]
        environment = {**os.environ, runtime.DIRECTORY_VARIABLE: f"{name}/queue"}
        done = subprocess.run(
            [*argv, name], capture_output=True, text=True, timeout=60, check=False, env=environment
        )
        assert done.stdout == "done\n", done.stderr


def test_a_fifo_for_errors_does_not_hold_a_job(tmp_path: Path, queue: Path) -> None:
    os.mkfifo(tmp_path / "errors")
    with SingleNodeExecutor(cache_directory=tmp_path / "cache") as exe:
        asked = {"error_log_file": tmp_path / "errors"}
        assert isinstance(exe.submit(int, "x", resource_dict=asked).exception(60), ValueError)


# ---- the local queue ---------------------------------------------------------------------------


@needs_root
def test_a_queue_directory_of_a_stranger_is_refused(
    queue: Path, tmp_path: Path, stranger: pwd.struct_passwd
) -> None:
    queue.mkdir(mode=0o700)
    os.chown(queue, stranger.pw_uid, stranger.pw_gid)
    with (
        pytest.raises(BackendUnavailableError, match=f"belongs to user {stranger.pw_uid}"),
        SingleNodeExecutor(cache_directory=tmp_path / "cache") as exe,
    ):
        exe.submit(abs, -1).result(60)
    assert list(queue.iterdir()) == []


IMPOSTOR = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.setgroups([])
os.setgid(int(sys.argv[3]))
os.setuid(int(sys.argv[2]))
listener.listen()  # the kernel notes who does this
print("listening", flush=True)
stream, _ = listener.accept()
stream.settimeout(60)
print(len(stream.recv(1 << 16)), flush=True)
"""


@needs_root
def test_a_queue_that_a_stranger_runs_is_told_nothing(
    queue: Path, tmp_path: Path, stranger: pwd.struct_passwd
) -> None:
    place = runtime.Runtime.prepare()
    address = str(place.path("sock"))
    argv = [sys.executable, "-c", IMPOSTOR, address, str(stranger.pw_uid), str(stranger.pw_gid)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as impostor:
        assert impostor.stdout is not None
        assert impostor.stdout.readline() == "listening\n"
        with (
            pytest.raises(BackendUnavailableError, match="another user's"),
            SingleNodeExecutor(cache_directory=tmp_path / "cache") as exe,
        ):
            exe.submit(abs, -1).result(60)
        assert impostor.stdout.readline() == "0\n"
    place.path("sock").unlink()


AS_A_STRANGER = """
import os, socket, sys
os.setgroups([])
os.setgid(int(sys.argv[3]))
os.setuid(int(sys.argv[2]))
stream = socket.socket(socket.AF_UNIX)
try:
    stream.connect(sys.argv[1])
    stream.settimeout(30)
    print(stream.recv(1 << 16))
except OSError as error:
    print("refused", type(error).__name__)
"""


@needs_root
@pytest.mark.parametrize("opened", [False, True])
def test_a_stranger_cannot_talk_to_the_queue(
    opened: bool, queue: Path, tmp_path: Path, stranger: pwd.struct_passwd
) -> None:
    with SingleNodeExecutor(cache_directory=tmp_path / "cache") as exe:
        assert exe.submit(abs, -1).result(60) == 1
    place = runtime.Runtime(queue)
    if opened:  # even where somebody has opened the directory
        queue.parent.chmod(0o755)
        queue.chmod(0o755)
        place.path("sock").chmod(0o777)
    argv = [sys.executable, "-c", AS_A_STRANGER, str(place.path("sock"))]
    argv += [str(stranger.pw_uid), str(stranger.pw_gid)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() in ("refused PermissionError", "b''", "refused ConnectionResetError")
    assert opened == (done.stdout.strip() != "refused PermissionError")
    queue.chmod(0o700)


def test_the_kernel_tells_who_is_at_the_other_end() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert runtime.peer_uid(one) == os.getuid()
