"""Slurm's commands, asked once or until there is an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dask_batch.backends.command import Completed, run
from dask_batch.backends.patience import PATIENCE_S, Patience, Waiting
from dask_batch.backends.slurm.refusals import is_harmless, is_temporary
from dask_batch.errors import CommandError

__all__ = ["IDS_PER_CALL", "QUERY_TIMEOUT_S", "Commands", "chunks"]

QUERY_TIMEOUT_S = 60.0
"""Longer than the time for which Slurm's commands try to reach their controller."""
IDS_PER_CALL = 500


class Commands:
    """Runs commands; safe to use from several threads.

    Parameters
    ----------
    waiting
        How to wait between the repetitions of a command.
    """

    def __init__(self, waiting: Waiting) -> None:
        self.waiting = waiting

    def ask(self, argv: Sequence[str]) -> Completed:
        """Run a command once.

        Raises
        ------
        CommandError, BackendUnavailableError
            It failed.
        """
        return run(argv, timeout_s=QUERY_TIMEOUT_S)

    def insist(self, argv: Sequence[str], *, total_s: float = PATIENCE_S) -> None:
        """Run a command that may be repeated until Slurm has done what it says.

        Jobs that are gone, or that no longer wait, are no error: the command is for many jobs, and
        an earlier repetition, or another client, may have been at them.

        Raises
        ------
        CommandError
            Slurm refuses, or has not answered for ``total_s``.
        """
        patience = Patience(self.waiting, " ".join(argv)[:60], total_s=total_s)
        while True:
            try:
                self.ask(argv)
                return
            except CommandError as error:
                if is_harmless(error):
                    return
                if not is_temporary(error) or not patience.pause(error.stderr):
                    raise


def chunks(items: Sequence[str], size: int = IDS_PER_CALL) -> Iterator[Sequence[str]]:
    """Cut a sequence into pieces that fit on a command line."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
