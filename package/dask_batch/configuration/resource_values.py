"""Checks of single resource values: each returns the value in Python's own types.

A check raises ValueError with what it expects ("must be ..."); the caller adds the name and what
it got. Whatever may be printed into a job script is one line of printable text: a newline in a
partition's name would otherwise be a directive, or a command, of its own.
"""

from __future__ import annotations

import math
import operator
import os
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeAlias

__all__ = [
    "Check",
    "arguments",
    "command",
    "count",
    "directives",
    "directory",
    "entry_name",
    "exceptions",
    "flag",
    "gigabytes",
    "gpu_request",
    "integer",
    "line",
    "lines",
    "natural",
    "path",
    "printable",
    "seconds",
    "text",
    "version",
    "word",
]

Check: TypeAlias = Callable[[Any], Any]


def integer(value: Any) -> int:
    """Accept whole numbers, NumPy's included."""
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError("must be a whole number") from None


def count(value: Any) -> int:
    """Accept whole numbers from 1."""
    number = integer(value)
    if number < 1:
        raise ValueError("must be at least 1")
    return number


def natural(value: Any) -> int:
    """Accept whole numbers from 0."""
    number = integer(value)
    if number < 0:
        raise ValueError("must not be negative")
    return number


def _positive(value: Any, unit: str) -> float:
    if isinstance(value, (bool, str, bytes)):
        raise ValueError(f"must be a number of {unit}")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"must be a number of {unit}") from None
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"must be a positive, finite number of {unit}")
    return number


def gigabytes(value: Any) -> float | int:
    """Accept positive numbers of gigabytes; whole ones become int."""
    number = _positive(value, "gigabytes")
    return int(number) if number.is_integer() else number


def seconds(value: Any) -> int:
    """Accept positive numbers of seconds, rounded up."""
    return math.ceil(_positive(value, "seconds"))


def flag(value: Any) -> bool:
    """Accept booleans, NumPy's included; a string is no answer to a yes-or-no question."""
    if isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise ValueError("must be True or False")


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return str(value)


def line(value: Any) -> str:
    """Accept one line of printable text that is not empty."""
    string = _string(value)
    if not string.strip():
        raise ValueError("must not be empty")
    if not string.isprintable():
        raise ValueError("must be one line without control characters")
    return string


def word(value: Any) -> str:
    """Accept one word, as names of partitions and accounts are: nothing that a shell would read."""
    string = line(value)
    if not _WORD.fullmatch(string):
        raise ValueError("must be one word of letters, digits and any of '_.,:@%+=/-'")
    return string


_WORD = re.compile(r"(?!-)[\w@%+=:,./-]+")


def features(value: Any) -> str:
    """Accept features of nodes with the operators between them, such as ``(a|b)&c*2``."""
    string = line(value)
    if not _FEATURES.fullmatch(string):
        raise ValueError("must be names of features, with any of '&|,*+!()[]' between them")
    return string


_FEATURES = re.compile(r"(?!-)[\w@%=:./\-&|,*+!()\[\] ]+")


def command(value: Any) -> str:
    """Accept a program, or a program with arguments in the shell's syntax."""
    string = line(value)
    words = (string,) if shutil.which(string) else _words(string)
    if not words or words[0].startswith("-"):
        raise ValueError("must begin with a program")
    return string


def version(value: Any) -> str:
    """Accept a string or a whole number."""
    return line(value) if isinstance(value, str) else str(integer(value))


def text(value: Any) -> str:
    """Accept text of several lines."""
    string = _string(value)
    if not string.strip():
        raise ValueError("must not be empty")
    if "\0" in string:
        raise ValueError("must not contain a NUL character")
    return string


def lines(value: Any) -> tuple[str, ...]:
    """Accept shell lines, as one text or as a sequence."""
    parts = [value] if isinstance(value, str) else _sequence(value)
    split = [single for part in parts for single in _string(part).split("\n")]
    if any(character in single for single in split for character in "\0\r"):
        raise ValueError("must be shell lines without control characters")
    return tuple(split)


def directives(value: Any) -> tuple[str, ...]:
    """Accept options such as ``--mail-type=END``, with or without ``#SBATCH`` before them."""
    parts = value.split("\n") if isinstance(value, str) else _sequence(value)
    stripped = (_DIRECTIVE.sub("", line(part).strip()).strip() for part in parts)
    options = tuple(option for option in stripped if option)
    for option in options:
        if not option.startswith("-"):
            raise ValueError("must be options that start with a dash")
        _words(option)
    return options


def gpu_request(value: Any) -> str:
    """Accept an option in which ``{gpus_per_core}`` and ``{gpus}`` stand for numbers."""
    option = line(value).strip()
    if not _GPU_REQUEST.fullmatch(_GPU_NUMBERS.sub("1", option)):
        raise ValueError(
            "must be one option of sbatch, with {gpus} for the GPUs on a node or {gpus_per_core} "
            "for those of a rank, such as '--gres=gpu:a100:{gpus}'"
        )
    return option


_GPU_NUMBERS = re.compile(r"\{gpus(?:_per_core)?\}")
_GPU_REQUEST = re.compile(r"--[a-z-]+=[\w@%+=:,./-]+")
_DIRECTIVE = re.compile(r"#(SBATCH|PBS|BSUB|MSUB|\$)")
"""What lines for a batch system begin with: Slurm, PBS and Torque, LSF, Moab, Grid Engine."""


def arguments(value: Any) -> tuple[str, ...]:
    """Accept arguments as a sequence, or as one string in the shell's syntax."""
    if isinstance(value, str):
        return _words(line(value))
    return tuple(line(part) for part in _sequence(value))


def _words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"must be words in the shell's syntax ({str(error).lower()})") from None


def _sequence(value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise ValueError("must be a string or a list of strings")
    return value


def path(value: Any) -> str:
    """Accept a path, made absolute: the job runs in another directory."""
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError("must be a path")
    name = os.fspath(value)
    return os.path.abspath(os.path.expanduser(line(name)))


directory = path


def entry_name(value: Any) -> str:
    """Accept a relative name that cannot leave the cache."""
    string = line(value)
    parts = string.split("/")
    if PurePosixPath(string).is_absolute() or any(part in ("", ".", "..") for part in parts):
        raise ValueError("must be a relative name without '.', '..' or empty parts")
    return string


def exceptions(value: Any) -> bool | tuple[str, ...]:
    """Accept True or False, or exceptions: their classes, or the names of these.

    A class becomes its name with its module: what is kept must be readable without it.
    """
    if isinstance(value, (type, str)):
        value = (value,)
    if not isinstance(value, (list, tuple, set, frozenset)):
        try:
            return flag(value)
        except ValueError:
            raise ValueError("must be True, False, or a list of exception classes") from None
    return tuple(sorted({_exception_name(one) for one in value}))


def _exception_name(value: Any) -> str:
    if isinstance(value, type) and issubclass(value, BaseException):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, str) and all(part.isidentifier() for part in value.split(".")):
        return str(value)
    raise ValueError("must be True, False, or a list of exception classes")


def printable(value: Any) -> Any:
    """Accept what a template of the user's may print: scalars, and lists of them."""
    if isinstance(value, (list, tuple)):
        return [printable(item) for item in value]
    if isinstance(value, (bool, type(None))):
        return value
    if isinstance(value, str):
        if value and not value.isprintable():
            raise ValueError("must be one line without control characters")
        return str(value)
    if hasattr(value, "item") and type(value).__module__ == "numpy" and not value.shape:
        return printable(value.item())
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, os.PathLike):
        return printable(os.fspath(value))
    raise ValueError("must be a string, a number, True, False, or a list of these")
