"""What ``srun`` has said in the job's log about ranks that died: its exit code tells less.

That is the highest of all ranks', and the others are ended by SIGTERM, which outranks what the
first one died of.
"""

from __future__ import annotations

import os
import re
import signal
from typing import Final

__all__ = ["OWN_LOG", "first_end", "out_of_memory"]

OWN_LOG: Final = "/proc/self/fd/2"
"""This process's stderr, which it shares with what it starts."""
_TAIL_BYTES = 65536
_OOM: Final = re.compile(
    rb"^(?:(?:slurmstepd|srun)\b.*(?:oom.kill|out.of.memory)"
    rb"|\[[^]\n]+\] error: Detected \d+ oom_kill)",  # from Slurm 25.05 on, without a name
    re.M | re.I,
)
_END: Final = re.compile(rb"^srun: error: \S+: tasks? [\d,-]+: ([^(\n]+)", re.M)
_EXITED: Final = re.compile(r"Exited with exit code (\d+)")


def out_of_memory(log: str) -> bool:
    """Whether the kernel has killed a rank for memory."""
    return bool(_OOM.search(_tail(log)))


def first_end(log: str) -> int | None:
    """Return how the first rank ended that was not ended by SIGTERM: as an exit code.

    Parameters
    ----------
    log
        The file that is the stderr of ``srun``.

    Returns
    -------
    int or None
        128 and the signal's number where a signal killed it; None if nothing is said of any.
    """
    ends = (
        _exit_code(words.decode(errors="replace").strip()) for words in _END.findall(_tail(log))
    )
    return next((code for code in ends if code not in (None, 128 + signal.SIGTERM)), None)


def _exit_code(words: str) -> int | None:
    if exited := _EXITED.fullmatch(words):
        return int(exited[1])
    for number in signal.valid_signals():
        if signal.strsignal(number) == words:
            return 128 + number
    return None


def _tail(log: str) -> bytes:
    try:
        with open(log, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read()
    except OSError:  # not a file that can be read
        return b""
