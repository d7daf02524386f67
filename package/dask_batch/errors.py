"""Every error of dask-batch, one hierarchy.

::

    BatchError
    ├── ConfigurationError (ValueError)   an option, a resource, a template: the user's to mend
    │   ├── ResourceError
    │   └── TemplateError
    ├── GraphError (ValueError)           the graph cannot be handed over as it is
    │   ├── SerializationError            something in it cannot be pickled
    │   └── TooManyJobsError
    ├── CacheError (OSError)              the cache directory cannot be used
    │   ├── MissingEntryError
    │   ├── DamagedEntryError
    │   └── FullError                     no space left, or a quota is used up
    ├── BackendError (RuntimeError)       the batch system
    │   ├── BackendUnavailableError       it is not there
    │   ├── CommandError                  one of its commands failed
    │   ├── JobEndingError                a job cannot be run again before it has ended
    │   ├── NoWorkerError                 no long-lived worker is left to begin a job
    │   └── SubmissionError               it refused a job (also a CalledProcessError)
    │       └── QueueFullError            for now: too many jobs
    └── TaskError (RuntimeError)          a job ended without a result
        ├── TimeoutTaskError              ... at its time limit
        ├── OutOfMemoryTaskError
        ├── NodeFailureTaskError
        ├── PreemptedTaskError
        ├── CancelledTaskError            cancelled from outside
        ├── DiedTaskError                 killed, crashed, or exited by itself
        │   └── ExitedTaskError           ... by sys.exit() or the like (also a RemoteError)
        ├── LostTaskError                 the batch system lost every trace of it
        ├── EnvironmentTaskError          the node, its Python or its files are not fit for it
        ├── GivenUpTaskError              not run: the jobs before it all died of one cause
        ├── NoOutputTaskError             ended well, yet there is no result
        ├── UnstorableResultError         its result cannot be pickled or written
        ├── UnreadableResultError         there is one, and it cannot be unpickled here
        ├── DependencyFailedError
        └── ChangedSinceSubmissionError   code, a library or an input is not what was hashed

An exception that the user's function raised is none of these: it is raised again as it was, with
its remote traceback as ``__cause__`` (:class:`RemoteTraceback`) and notes that say where it ran.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from types import FrameType

__all__ = [
    "BackendError",
    "BackendUnavailableError",
    "BatchError",
    "CacheError",
    "CancelledTaskError",
    "ChangedSinceSubmissionError",
    "CommandError",
    "ConfigurationError",
    "DamagedEntryError",
    "DependencyFailedError",
    "DiedTaskError",
    "EnvironmentTaskError",
    "ExitedTaskError",
    "FullError",
    "GivenUpTaskError",
    "GraphError",
    "JobEndingError",
    "LostTaskError",
    "MissingEntryError",
    "NoOutputTaskError",
    "NoWorkerError",
    "NodeFailureTaskError",
    "OutOfMemoryTaskError",
    "OutdatedInputWarning",
    "PreemptedTaskError",
    "QueueFullError",
    "RemoteError",
    "RemoteTraceback",
    "ResourceError",
    "SerializationError",
    "SubmissionError",
    "TaskError",
    "TemplateError",
    "TimeoutTaskError",
    "TooManyJobsError",
    "UncacheableWarning",
    "UnreadableResultError",
    "UnstorableResultError",
    "warn",
]


class BatchError(Exception):
    """Base of all errors that dask-batch raises for itself."""


class ConfigurationError(BatchError, ValueError):
    """An option is unknown or has a value that makes no sense."""


class ResourceError(ConfigurationError):
    """A resource key is unknown, or its value cannot be met."""


class TemplateError(ConfigurationError):
    """A submission template does not parse or lacks a variable."""


class GraphError(BatchError, ValueError):
    """The graph cannot be handed over as it is."""


class SerializationError(GraphError, TypeError):
    """A function, an argument or a global of a task cannot be pickled.

    The exception that says why (the user's own, where a ``__reduce__`` raised) is ``__cause__``.
    """


class TooManyJobsError(GraphError):
    """The graph would become more jobs than ``max_jobs`` allows."""


class CacheError(BatchError, OSError):
    """The cache directory cannot be used."""


class MissingEntryError(CacheError, KeyError):
    """The cache has no such entry."""

    __str__ = Exception.__str__  # KeyError would show the message's repr


class DamagedEntryError(CacheError):
    """An entry of the cache is truncated or altered; it has been set aside."""


class FullError(CacheError):
    """The file system of the cache has no space left, or the user's quota is used up."""


class BackendError(BatchError, RuntimeError):
    """The batch system cannot do what it was asked to."""


class BackendUnavailableError(BackendError):
    """The batch system is not there: no command, no daemon, no instance."""


class JobEndingError(BackendError):
    """A job cannot be run again yet, because it has not ended altogether."""


class CommandError(BackendError):
    """A command of the batch system failed.

    Attributes
    ----------
    argv : tuple of str
        The command.
    returncode : int or None
        Its exit code; None if it did not end in time.
    stdout, stderr : str
        What it printed.
    """

    def __init__(
        self, argv: tuple[str, ...], returncode: int | None, stdout: str, stderr: str
    ) -> None:
        self.argv, self.returncode, self.stdout, self.stderr = argv, returncode, stdout, stderr
        how = "did not end in time" if returncode is None else f"ended with exit code {returncode}"
        said = (stderr.strip() or stdout.strip()) or "it printed nothing"
        super().__init__(f"{argv[0]} {how}: {said}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.argv, self.returncode, self.stdout, self.stderr)


class SubmissionError(BackendError, subprocess.CalledProcessError):
    """The batch system refused a job.

    Attributes
    ----------
    cmd, returncode, output, stderr
        As in :class:`subprocess.CalledProcessError`; ``output`` holds the command's own words.
    script : Path or None
        The job script that was refused, kept for a look.
    job_name : str
        The name of the refused job.
    key : str
        The key of its task.
    """

    job_name: str = ""
    key: str = ""

    def __init__(
        self,
        returncode: int,
        cmd: list[str],
        output: str,
        *,
        script: Path | None = None,
        advice: str = "",
    ) -> None:
        subprocess.CalledProcessError.__init__(self, returncode, cmd, output, output)
        self.script = script
        self.advice = advice

    def __str__(self) -> str:
        text = f"the batch system refused the job: {str(self.output).strip()}"
        if self.script is not None:
            text += f"\nThe script: {self.script}"
        return f"{text}\n{self.advice}" if self.advice else text

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.returncode, self.cmd, self.output), dict(self.__dict__)


class NoWorkerError(BackendError):
    """No long-lived worker is left, and none is to come.

    Attributes
    ----------
    advice : str
        What to try.
    """

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


class QueueFullError(SubmissionError):
    """The batch system takes no more jobs for now: a limit on the number of queued jobs is met."""


class TaskError(BatchError, RuntimeError):
    """A job ended without publishing a result.

    Attributes
    ----------
    message : str
        What happened.
    key : str
        The task's key.
    function : str
        The name of its function.
    job_id : str or None
        The job's id at the batch system.
    state : str
        The state that the batch system reported, in its own word; *ended* where the job's own
        record has come first, *not run* of a task whose inputs have failed.
    evidence : str
        What the verdict rests on.
    log : Path or None
        The file with the job's stderr.
    tail : str
        The last lines of that file.
    advice : str
        What to try.
    """

    default_advice = "Look into the log for what the job printed before it ended."

    def __init__(
        self,
        message: str,
        *,
        key: str = "",
        function: str = "",
        job_id: str | None = None,
        state: str = "",
        evidence: str = "",
        log: Path | None = None,
        tail: str = "",
        advice: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.key = key
        self.function = function
        self.job_id = job_id
        self.state = state
        self.evidence = evidence
        self.log = log
        self.tail = tail
        self.advice = advice or self.default_advice

    def __str__(self) -> str:
        lines = [self.message]
        about = [
            f"function {self.function}" if self.function else "",
            f"key {self.key[:12]}" if self.key else "",
            f"job {self.job_id}" if self.job_id else "",
            f"state {self.state}" if self.state else "",
        ]
        if any(about):
            lines.append("  " + ", ".join(filter(None, about)))
        if self.evidence:
            lines.append(f"  evidence: {self.evidence}")
        if self.tail:
            lines.append("  the end of its stderr:")
            lines += [f"    {line}" for line in self.tail.splitlines()]
        if self.log is not None:
            lines.append(f"  log: {self.log}")
        lines.append(f"  try: {self.advice}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message,), dict(self.__dict__)


class TimeoutTaskError(TaskError, TimeoutError):
    """The job was killed at its time limit."""

    default_advice = "Give it more time: resource_dict={'run_time_max': seconds}."
    __str__ = TaskError.__str__


class OutOfMemoryTaskError(TaskError, MemoryError):
    """The job was killed because it used more memory than it asked for."""

    default_advice = "Give it more memory: resource_dict={'memory_max': gigabytes}."


class NodeFailureTaskError(TaskError):
    """The node on which the job ran failed."""

    default_advice = "Compute again: what has finished is not repeated."


class PreemptedTaskError(TaskError):
    """The job was preempted by another one."""

    default_advice = "Compute again, or use a partition or QOS that is not preempted."


class CancelledTaskError(TaskError):
    """The job was cancelled from outside."""

    default_advice = "Compute again if that was not meant: what has finished is not repeated."


class DiedTaskError(TaskError):
    """The job's process was killed, crashed, or left by itself."""


class LostTaskError(TaskError):
    """The batch system has lost every trace of the job, again and again."""

    default_advice = "Compute again: what has finished is not repeated."


class EnvironmentTaskError(TaskError):
    """The job could not begin: its node, its interpreter or its files are not as they must be."""

    default_advice = (
        "See that the node has the same Python environment and file systems as this machine; "
        "resource_dict={'python': ..., 'job_script_prologue': [...]} chooses an environment."
    )


class GivenUpTaskError(TaskError):
    """The task was not run, because the first jobs of its graph all died of the same cause.

    That cause is ``__cause__``.
    """

    default_advice = "Mend the cause and compute again: what has finished is not repeated."


class NoOutputTaskError(TaskError):
    """The job ended well as far as the batch system knows, yet there is no result."""

    default_advice = (
        "See whether the node shares the cache directory with this machine, and look into the log. "
        "Where the file system shows new files later than this was waited for, raise "
        "output_grace_s."
    )


class UnstorableResultError(TaskError):
    """The function returned, but its result could not be pickled or written."""

    default_advice = (
        "Return plain data: arrays, dataframes, dictionaries, dataclasses; not files, sockets, "
        "generators, nor what holds them."
    )


class UnreadableResultError(TaskError):
    """There is a result, but it cannot be unpickled where it is asked for.

    ``__cause__`` is what was raised: a library that is missing here, or is of another version, or
    a ``__setstate__`` of a class of the user's.
    """

    default_advice = (
        "Install here what the job had, in the same version, or let the function return plain data."
    )


class DependencyFailedError(TaskError):
    """The task did not run because one that it depends on failed.

    ``root`` is the key of the task that failed first.
    """

    root: str = ""
    default_advice = "Mend the task named above and compute again."


class ChangedSinceSubmissionError(TaskError):
    """Code, a library or an input file is no longer what it was when the task was hashed."""

    default_advice = "Compute again: the task is hashed anew, and runs on what is there now."


class UncacheableWarning(UserWarning):
    """A task has no stable content: it runs, and will run again next time."""


class OutdatedInputWarning(UserWarning):
    """A result was found whose argument names a file that is newer than it."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn, and point at the line of the user's that led here."""
    level = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in ("dask_batch", "dask"):
            break
        level += 1
        frame = frame.f_back
    warnings.warn(message, category, stacklevel=level + 1)


class RemoteTraceback(Exception):
    """The traceback of an exception in a job, as text; the ``__cause__`` of what is raised here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class RemoteError(BatchError):
    """Stands in for an exception of a job that cannot be unpickled here, or not be raised here.

    The latter are those that are no :class:`Exception`, as ``SystemExit`` and
    ``KeyboardInterrupt``: raised in a client they would end it. They are the ``__cause__``.

    Attributes
    ----------
    type_name : str
        The qualified name of the exception's class.
    """

    type_name: str

    def __init__(self, message: str, type_name: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name


class ExitedTaskError(DiedTaskError, RemoteError):
    """The function gave an order to its interpreter, such as ``SystemExit``: the ``__cause__``.

    Raised as it is, it would end the client, or pass for an order to it.
    """

    default_advice = "Raise an exception of another class where the call has failed."
