"""Which instance is meant: a user may have many, one after the other and within each other.

Jobs must be asked about where they were handed in. So a backend's name, which is kept with each
run, says where its instance is: ``flux@HOST/PATH``, by the socket of its first broker. It is the
same seen from the login node, from a job, or through ``ssh``.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from dask_batch.backends.base import Job, JobState, JobStatus
from dask_batch.backends.flux.instance import Instance
from dask_batch.errors import BackendUnavailableError

__all__ = ["Ended", "find_instance", "name_of", "place_of"]

_MARK: Final = "flux@"
_HOST: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def name_of(place: str) -> str:
    """Return the name of the backend of an instance."""
    return _MARK + place


def place_of(name: str) -> str | None:
    """Return where the instance is that a backend's name tells of; None: it tells of none."""
    return name.removeprefix(_MARK) if name.startswith(_MARK) else None


def find_instance(place: str, connect: Callable[[str | None], Instance]) -> Instance | None:
    """Return the instance at a place; None if it has ended for certain.

    Raises
    ------
    BackendUnavailableError
        It cannot be reached from here, which says nothing.
    """
    host, slash, path = place.partition("/")
    if not _HOST.fullmatch(host):  # it becomes an argument of ssh
        raise BackendUnavailableError(f"{place!r} is not where a Flux instance can be")
    if os.environ.get("FLUX_URI"):
        try:
            enclosing = connect(None)
        except BackendUnavailableError:
            pass  # it is not the one that is meant, or the other ways fail as well
        else:
            if enclosing.place == place:
                return enclosing
    if host != socket.gethostname():
        return connect(f"ssh://{host}{slash}{path}")
    if _has_ended(Path(slash + path)):
        return None
    return connect(f"local://{slash}{path}")


def _has_ended(path: Path) -> bool:
    """Whether nobody listens at a socket of this machine any more.

    Raises
    ------
    BackendUnavailableError
        Somebody listens there of whom it is not certain that it is a broker to be trusted.
    """
    try:
        trusted = _trusted(path.parent)
        found = path.lstat()
        if found.st_uid not in trusted or stat.S_ISLNK(found.st_mode):
            raise _untrusted(path, f"the socket is a link, or of user {found.st_uid}")
        if not stat.S_ISSOCK(found.st_mode):
            return True
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.connect(str(path))
            listener = _listener(asking)
    except (FileNotFoundError, ConnectionRefusedError):
        return True
    except OSError as error:
        raise BackendUnavailableError(f"the Flux instance at {path}: {error}") from error
    if listener is not None and listener not in trusted:
        raise _untrusted(path, f"user {listener} listens there")
    return False


def _trusted(folder: Path) -> set[int]:
    """Return the users whose sockets in a folder may be a broker's: ours, root, and Flux's own.

    After an instance has ended, its path is for whoever comes first, if it was in ``/tmp``. A
    folder above which root alone can write was given to its owner by root.
    """
    found = folder.lstat()
    trusted = {os.getuid(), 0}
    if all(_is_roots(parent) for parent in folder.parents):
        trusted.add(found.st_uid)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in trusted:
        raise _untrusted(folder, f"it is a link, or of user {found.st_uid}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _untrusted(folder, "others may write in it")
    return trusted


def _is_roots(folder: Path) -> bool:
    found = folder.lstat()
    writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not writable


def _listener(asking: socket.socket) -> int | None:
    """Return the user at the other end, where the kernel tells it."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    told = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", told)[1])


def _untrusted(path: Path, why: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"the Flux instance at {path} is not asked: {why}. If it is yours, set FLUX_URI to it; if "
        "yours has ended, somebody else has taken its place"
    )


class Ended:
    """An instance that has ended: all its jobs are over, and it remembers none of them.

    Parameters
    ----------
    name
        The backend's name.
    """

    shared = True
    prompt = False
    default_max_jobs: int | None = None

    def __init__(self, name: str) -> None:
        self.name = name

    def _gone(self) -> BackendUnavailableError:
        return BackendUnavailableError(f"the Flux instance {self.name} has ended")

    def check(self, jobs: Sequence[Job]) -> None:
        """Refuse: nothing can be handed in."""
        raise self._gone()

    def script(self, job: Job, dependency: Sequence[str] = ()) -> str:
        """Refuse: nothing can be handed in."""
        raise self._gone()

    def submit(self, jobs: Sequence[Job], accepted: Callable[[str, str], None]) -> None:
        """Refuse: nothing can be handed in."""
        raise self._gone()

    def rerun(self, job: Job, job_id: str, dependents: Mapping[str, Sequence[str]]) -> str:
        """Refuse: nothing can be handed in."""
        raise self._gone()

    def release(self, job_ids: Sequence[str]) -> None:
        """Do nothing: they are over."""

    def cancel(self, job_ids: Collection[str]) -> None:
        """Do nothing: they are over."""

    def status(self, job_ids: Collection[str]) -> dict[str, JobStatus]:
        """Tell that nothing is known of any job."""
        reason = "the instance has ended"
        lost = JobState.LOST
        return {i: JobStatus(i, lost, reason=reason, source="flux") for i in job_ids}

    def find(self, names: Collection[str]) -> dict[str, str]:
        """Find none."""
        return {}

    def wait(self, timeout_s: float) -> None:
        """Return at once: there will be no news."""

    def wake(self) -> None:
        """Do nothing: nobody waits."""

    def close(self) -> None:
        """Do nothing: there is no connection."""
