"""The one module that uses ``flux-python``: a real instance behind :class:`.instance.Instance`.

A handle of Flux serves one thread, and none after a fork: each thread opens its own. Whatever
fails because the broker is gone is one error, :class:`BackendUnavailableError`; a refusal is data.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from dask_batch.backends.flux.instance import Event, Machine, Refused, Request, Row
from dask_batch.backends.flux.translation import ATTRIBUTES, NOTE, event_of, jobspec_of, row_of
from dask_batch.errors import BackendUnavailableError

__all__ = ["Bindings", "load"]

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_ANSWER_S = 120.0
"""After so long without an answer a broker counts as not answering."""
_GONE: Final = frozenset(
    {
        *(errno.EPIPE, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN),
        *(errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ESHUTDOWN, errno.ENOSYS, errno.ETIMEDOUT),
    }
)
"""What a broker's calls fail with when it is gone, or going."""
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.EINVAL})
"""Said of a job that has ended, or that nobody knows; of urgency after resources were given."""
_INSTALL: Final = (
    "Install Flux from conda-forge (`conda install -c conda-forge flux-core`), or flux-python of "
    "the version of your site's Flux together with `ply`. (PyPI's `flux-core` is an unrelated "
    "project.)"
)
_START: Final = (
    "Start one with `flux start` and work in it, or set FLUX_URI to one that runs "
    "(`flux uri --remote JOBID` tells it), or use backend='local'."
)


def load() -> Any:
    """Import the bindings.

    Raises
    ------
    BackendUnavailableError
        They, their library or what they need is missing: says what to install.
    """
    try:
        for module in ("idset", "hostlist", "job", "resource"):
            importlib.import_module(f"flux.{module}")
    except ImportError as error:  # also: the library of the wheel, or ply
        raise BackendUnavailableError(
            f"Flux's Python bindings cannot be used here: {error}. {_INSTALL}"
        ) from error
    return importlib.import_module("flux")


@contextlib.contextmanager
def _answering(forget: Callable[[], None]) -> Iterator[None]:
    """Tell that the broker is gone; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _GONE:
            raise
        if error.errno != errno.ETIMEDOUT:  # it may only be slow: a new connection would be, too
            forget()
        raise BackendUnavailableError(f"the Flux instance does not answer: {error}") from error


def _answered(sent: Any) -> Any:
    """Wait for the answer to what was sent, but not for ever.

    Raises
    ------
    OSError
        There is none (``ETIMEDOUT``), or it is an error.
    """
    return sent.wait_for(_ANSWER_S)


def _in_time(connect: Callable[[], Any]) -> None:
    """Try a connection: a broker that is stopped takes it, and never says a word.

    Flux waits for that word without an end, so that somebody else has to; and as a handle is its
    thread's own, this connection is let go of again.

    Raises
    ------
    OSError
        There is no word (``ETIMEDOUT``), or none can be had.
    """
    failures: list[OSError] = []

    def run() -> None:
        try:
            connect()
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="flux-connecting", daemon=True)
    thread.start()
    thread.join(_ANSWER_S)
    if thread.is_alive():
        raise OSError(errno.ETIMEDOUT, f"no word from its broker in {_ANSWER_S:g} s")
    if failures:
        raise failures[0]


class Bindings:
    """A real Flux instance.

    Parameters
    ----------
    uri
        Where it is; None: the enclosing one (``FLUX_URI``).

    Raises
    ------
    BackendUnavailableError
        There are no bindings, or there is no instance.
    """

    def __init__(self, uri: str | None = None) -> None:
        self._flux = load()
        self._uri = uri
        self._local = threading.local()
        with self._handle() as handle:
            # From whichever of its brokers: the first one is the same for all.
            first = {"nodeid": 0, "topic": "attr.get"}
            names = ("local-uri", "hostlist", "security.owner")
            sent = [handle.rpc(payload={"name": name}, **first) for name in names]
            socket, hosts, owner = (_answered(each).get()["value"] for each in sent)
            self.owned = int(owner) == os.getuid()
        host = next(iter(self._flux.hostlist.decode(hosts)))
        self.place = f"{host}{urlsplit(socket).path}"
        self.command = shutil.which("flux") or "flux"

    # ---- handles -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _handle(self) -> Iterator[Any]:
        """Give this thread's handle, and tell when there is nobody behind it."""
        with _answering(self.close):
            yield self._open()

    def _open(self) -> Any:
        known = getattr(self._local, "handle", None)
        if known is None or self._local.pid != os.getpid():
            try:
                _in_time(self._connect)
                known = self._connect()
            except OSError as error:
                raise BackendUnavailableError(
                    f"there is no Flux instance here: {error}. {_START}"
                ) from error
            self._local.handle, self._local.pid = known, os.getpid()
        return known

    def _connect(self) -> Any:
        return self._flux.Flux(self._uri) if self._uri else self._flux.Flux()

    def close(self) -> None:
        """Let go of this thread's handle."""
        self._local.handle = None

    # ---- jobs --------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request]) -> list[str | Refused]:
        """Send all, then collect the ids: one by one each would cost some 35 ms."""
        with self._handle() as handle:
            sent = [self._send(handle, request) for request in requests]
            logger.debug("flux submit: %s", ", ".join(request.name for request in requests))
            return [self._taken(each) for each in sent]

    def _send(self, handle: Any, request: Request) -> Any:
        try:
            jobspec = jobspec_of(self._flux, request)
        except ValueError as error:
            return Refused(str(error))
        return self._flux.job.submit_async(handle, jobspec, urgency=request.urgency)

    def _taken(self, sent: Any) -> str | Refused:
        if isinstance(sent, Refused):
            return sent
        try:
            return str(_answered(sent).get_id().f58plain)
        except OSError as error:
            if error.errno in _GONE:
                raise
            return Refused(error.strerror or str(error))

    def _id(self, text: str) -> Any:
        return self._flux.job.JobID(text)

    def set_urgency(self, urgencies: Mapping[str, int]) -> None:
        """Change urgencies, all at once."""
        payloads = [{"id": int(self._id(i)), "urgency": u} for i, u in urgencies.items()]
        self._tell("job-manager.urgency", payloads)

    def end(self, job_ids: Collection[str], kind: str, note: str) -> None:
        """Raise a fatal exception on jobs, all at once."""
        common = {"severity": 0, "type": kind, "note": note}
        payloads = [{"id": int(self._id(job_id)), **common} for job_id in job_ids]
        self._tell("job-manager.raise", payloads)

    def _tell(self, topic: str, payloads: Iterable[Mapping[str, Any]]) -> None:
        with self._handle() as handle:
            for sent in [handle.rpc(topic, payload) for payload in payloads]:
                try:
                    _answered(sent).get()
                except OSError as error:
                    if error.errno not in _NOT_THERE:
                        raise
                    logger.debug("%s: %s", topic, error.strerror)

    # ---- looking -----------------------------------------------------------------------------

    def rows(self, job_ids: Collection[str]) -> list[Row]:
        """Ask for all ids, then collect the answers."""
        found = []
        with self._handle() as handle:
            ask = self._flux.job.job_list_id
            for sent in [ask(handle, self._id(i), attrs=list(ATTRIBUTES)) for i in job_ids]:
                try:
                    found.append(row_of(self._flux, _answered(sent).get_job()))
                except OSError as error:
                    if error.errno not in _NOT_THERE:
                        raise
        return found

    def named(self, names: Collection[str]) -> list[Row]:
        """Ask once."""
        return self._listed({"name": list(names)}) if names else []

    def active(self) -> list[Row]:
        """Ask once."""
        return self._listed({"states": ["active"]})

    def _listed(self, constraint: Mapping[str, Any]) -> list[Row]:
        with self._handle() as handle:
            answer = self._flux.job.job_list(
                handle, max_entries=0, attrs=list(ATTRIBUTES), constraint=dict(constraint)
            )
            return [row_of(self._flux, job) for job in _answered(answer).get_jobs()]

    def note(self, job_id: str) -> Mapping[str, Any]:
        """Look into the job's own jobspec."""
        with self._handle() as handle:
            try:
                asked = {"id": int(self._id(job_id)), "keys": ["jobspec"], "flags": 0}
                found = _answered(handle.rpc("job-info.lookup", asked)).get()["jobspec"]
            except OSError as error:
                if error.errno not in (*_NOT_THERE, errno.EPERM):
                    raise
                return {}
        attributes = json.loads(found).get("attributes") or {}
        return dict((attributes.get("user") or {}).get(NOTE) or {})

    def machine(self) -> Machine:
        """Ask for the resources; nodes that are down count as well: they may come back."""
        with self._handle() as handle:
            known = self._flux.resource.resource_list(handle)
            known = _answered(known).get().all.to_dict()
        nodes: list[tuple[int, int]] = []
        for kind in known["execution"]["R_lite"]:
            children = kind["children"]
            cpus, gpus = (len(self._set(children.get(name, ""))) for name in ("core", "gpu"))
            nodes += [(cpus, gpus)] * len(self._set(kind["rank"]))
        return Machine(tuple(nodes))

    def _set(self, text: str) -> Any:
        return self._flux.idset.decode(text) if text else ()

    # ---- news --------------------------------------------------------------------------------

    def events(self, stopped: Callable[[], bool]) -> Iterator[Event | None]:
        """Read the journal, from now on, in the calling thread."""
        with self._handle() as handle:
            journal = self._flux.job.JournalConsumer(handle, full=False).start()
            _answered(
                handle.rpc("job-manager.stats-get")
            ).get()  # answered after the journal has begun
            yield None
            while not stopped():
                try:
                    event = journal.poll(timeout=_POLL_S)
                except TimeoutError:
                    yield None
                    continue
                if event is None:
                    raise BackendUnavailableError("the Flux instance has ended its journal")
                yield event_of(self._flux, event)
