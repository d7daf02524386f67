"""How a job's interpreter gets from its command line to the module that does the work.

Whatever interpreter this is started with must be able to read this file, so as to say what is
wrong with it. There is no place for a record before the cache can be read: the log and the exit
code tell.
"""

from __future__ import annotations

import os
import signal
import sys

from dask_batch.job import exit_codes

__all__ = ["hear_of_children", "leave", "run"]

_OLDEST = (3, 11)


def run(module, *arguments) -> int:  # type: ignore[no-untyped-def]
    """Import a module, and return the exit code that its ``main`` returns."""
    if sys.version_info < _OLDEST:
        return _refuse(exit_codes.BAD_PYTHON, "is too old: dask_batch needs Python 3.11")
    hear_of_children()
    try:
        _keep_off_working_directory()
        from importlib import import_module

        main = import_module(module).main
    except ModuleNotFoundError as error:
        return _refuse(exit_codes.NO_MODULE, f"does not have the module {error.name}")
    except ImportError as error:
        return _refuse(exit_codes.NO_MODULE, f"cannot import what a job needs: {error}")
    code: int = main(*arguments)
    return code


def hear_of_children() -> None:
    """Let the ends of child processes be signalled.

    What starts us may have blocked that: so does slurmstepd, in the steps of 25.05.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def leave(code: int) -> None:
    """End this process at once.

    The result is published: threads and exit handlers that the function left behind must not be
    able to hang or fail a job that has succeeded.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # full disk; closed or replaced
            continue
    os._exit(code)


def _refuse(code: int, problem: str) -> int:
    here = f"{sys.executable} (Python {sys.version.split()[0]}) on {os.uname().nodename}"
    sys.stderr.write(
        f"dask-batch: {here} {problem}; resource_dict={{'python': ...}} names another interpreter, "
        "'job_script_prologue' prepares an environment\n"
    )
    return code


def _keep_off_working_directory() -> None:
    """Take away what an empty entry of PYTHONPATH stands for: the directory that we are in.

    A file there that is called like a library would be imported in its place. What the client
    imported from there is found all the same: its path is taken over, behind everything else.
    """
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if {"", os.curdir} & set(named):
        here = os.getcwd()
        sys.path[:] = [entry for entry in sys.path if entry in named or entry not in ("", here)]
