"""From the words of an ``sbatch`` call to a request: options, directives, environment. Pure."""

from __future__ import annotations

import getopt
import math
import re
import shlex
from collections.abc import Mapping, Sequence

__all__ = ["Refusal", "memory_mb", "minutes", "options_of"]

_WITH_VALUE = frozenset(
    {
        *("account", "begin", "chdir", "comment", "constraint", "cpus-per-task", "dependency"),
        *("error", "exclude", "export", "gpus", "gpus-per-node", "gpus-per-task", "gres", "input"),
        *("job-name", "kill-on-invalid-dep", "licenses", "mail-type", "mail-user", "mem"),
        *("mem-per-cpu", "nodelist", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output"),
        *("partition", "priority", "qos", "reservation", "signal", "threads-per-core", "time"),
        *("tmp", "wckey", "wrap"),
    }
)
_WITHOUT = ("hold", "no-requeue", "parsable", "quiet", "requeue", "verbose", "version")
_OPTIONAL_VALUE = ("exclusive", "get-user-env", "nice", "propagate")
_NOT_HERE = {
    "array": "job arrays",
    "clusters": "federations",
    "test-only": "--test-only",
    "wait": "--wait",
}
_SHORT = {
    "A": "account", "b": "begin", "c": "cpus-per-task", "C": "constraint", "d": "dependency",
    "D": "chdir", "e": "error", "G": "gpus", "H": "hold", "i": "input", "J": "job-name",
    "L": "licenses", "n": "ntasks", "N": "nodes", "o": "output", "p": "partition", "q": "qos",
    "Q": "quiet", "t": "time", "v": "verbose", "V": "version", "w": "nodelist", "x": "exclude",
    "a": "array", "M": "clusters", "W": "wait",
}  # fmt: skip
_VARIABLES = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_EXPORT": "export",
    "SBATCH_GPUS": "gpus",
    "SBATCH_JOB_NAME": "job-name",
    "SBATCH_MEM_PER_NODE": "mem",
    "SBATCH_MEM_PER_CPU": "mem-per-cpu",
    "SBATCH_OUTPUT": "output",
    "SBATCH_ERROR": "error",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_TIMELIMIT": "time",
}


class Refusal(Exception):
    """A command's own words on stderr, and its exit code.

    Parameters
    ----------
    text
        Without the prefix ``sbatch: error:``; several lines are several messages.
    code
        The exit code.
    prefix
        What each line begins with.
    """

    def __init__(self, text: str, code: int = 1, prefix: str = "sbatch: error: ") -> None:
        super().__init__(text)
        self.code = code
        self.stderr = "".join(f"{prefix}{line}\n" for line in text.splitlines())


def options_of(
    arguments: Sequence[str], script: str, environment: Mapping[str, str]
) -> dict[str, str]:
    """Return the options by their long names: the script's, then the environment's, then these.

    An option without a value is "yes".
    """
    options = {}
    for words in _directives(script):
        options.update(parsed(words)[0])
    named = {name: environment[v] for v, name in _VARIABLES.items() if environment.get(v)}
    return {**options, **named, **parsed(arguments)[0]}


def parsed(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split a command line into options and what follows them: the script and its arguments."""
    valued = {*_WITH_VALUE, "array", "clusters"}
    short = "".join(f"{letter}:" if name in valued else letter for letter, name in _SHORT.items())
    plain = [*_WITHOUT, *_OPTIONAL_VALUE, "test-only", "wait"]
    words = [
        f"{word}=yes" if word[2:] in _OPTIONAL_VALUE else word for word in arguments
    ]  # getopt has no optional values: they become values
    long = [f"{name}=" for name in (*valued, *_OPTIONAL_VALUE)] + [
        name for name in plain if name not in _OPTIONAL_VALUE
    ]
    try:
        found, rest = getopt.getopt(words, short, long)
    except getopt.GetoptError as error:
        word = next((w for w in arguments if w.split("=")[0] == f"--{error.opt}"), error.opt)
        text = (
            f"unrecognized option '{word}'"
            if len(error.opt) > 1
            else (f"invalid option -- '{error.opt}'")
        )
        refusal = Refusal(text, 255, "sbatch: ")
        refusal.stderr += 'Try "sbatch --help" for more information\n'
        raise refusal from None
    options = {}
    for option, value in found:
        name = option[2:] if option.startswith("--") else _SHORT[option[1:]]
        if name in _NOT_HERE:
            raise Refusal(f"this fake of Slurm has no {_NOT_HERE[name]}")
        options[name] = value or "yes"
    return options, rest


def _directives(script: str) -> list[list[str]]:
    """Return the words of each ``#SBATCH`` line; they end where the commands begin."""
    found = []
    for line in script.splitlines():
        if line.startswith("#SBATCH"):
            found.append(shlex.split(line[len("#SBATCH") :], comments=True))
        elif line.strip() and not line.startswith("#"):
            break
    return found


def minutes(text: str) -> float:
    """Read ``--time``: minutes, ``m:s``, ``h:m:s``, ``d-h[:m[:s]]``; rounded up to minutes."""
    if text.lower() in ("infinite", "unlimited", "-1"):
        return math.inf
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise Refusal("Invalid --time specification", 255)
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, mins, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, mins, seconds = numbers
    else:
        hours, (mins, seconds) = 0, (*numbers, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60) + mins + math.ceil(seconds / 60)


def memory_mb(text: str, option: str = "--mem") -> int:
    """Read ``--mem``: whole numbers, in megabytes unless they end in K, M, G or T."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text, re.IGNORECASE)
    if not match:
        raise Refusal(f"Invalid {option} specification", 255)
    size = int(match[1])
    unit = match[2].upper()
    return math.ceil(size / 1024) if unit == "K" else size * {"G": 1024, "T": 1024**2}.get(unit, 1)
