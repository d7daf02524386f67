"""How a job is started as a fresh process: the command, and the shell script around it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

__all__ = ["DEFAULT_PROGRAM", "command", "shell_script"]

DEFAULT_PROGRAM = "dask_batch.job"


def command(
    python: str, definition: str, index: int, program: str = DEFAULT_PROGRAM
) -> tuple[str, ...]:
    """Return the command that runs one task of a definition file."""
    return (python, "-P", "-m", program, definition, str(index))


def shell_script(
    argv: tuple[str, ...],
    *,
    prologue: str = "",
    working_directory: str = "",
    variables: Mapping[str, str] | None = None,
) -> str:
    """Return a bash script that runs the prologue, then the command in the same process.

    Parameters
    ----------
    argv
        The command; quoted here.
    prologue
        The user's own lines, as they are.
    working_directory, variables
        Where and with what to run it; left out where whoever runs the script sees to that.
    """
    lines = ["#!/usr/bin/env bash"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in (variables or {}).items()]
    if working_directory:
        lines.append(f"cd {shlex.quote(working_directory)}")
    if prologue:
        lines.append(prologue.rstrip("\n"))
    lines.append(f"exec {shlex.join(argv)}")
    return "\n".join(lines) + "\n"
