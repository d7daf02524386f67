"""A batch system's commands, asked once or until there is an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dask_batch.backends.command import Completed, run
from dask_batch.backends.commands.system import Argv, Words
from dask_batch.backends.patience import PATIENCE_S, Patience, Waiting
from dask_batch.errors import CommandError

__all__ = ["QUERY_TIMEOUT_S", "Asking", "is_harmless", "is_temporary"]

QUERY_TIMEOUT_S = 60.0


def _said(failure: CommandError) -> list[str]:
    """Return the lines that a command complained with: some do it on stdout."""
    text = failure.stderr if failure.stderr.strip() else failure.stdout
    return [line for line in text.splitlines() if line.strip()]


def is_temporary(words: Words, failure: CommandError) -> bool:
    """Whether a command failed for a reason that passes."""
    return failure.returncode is None or any(map(words.temporary.search, _said(failure)))


def is_harmless(words: Words, failure: CommandError) -> bool:
    """Whether a command for many jobs failed only for those that are gone, or need it no more."""
    said = _said(failure)
    return failure.returncode is not None and bool(said) and all(map(words.unknown.search, said))


class Asking:
    """Runs commands; safe to use from several threads.

    Parameters
    ----------
    words
        What their failures mean.
    waiting
        How to wait between the repetitions of a command.
    """

    def __init__(self, words: Words, waiting: Waiting) -> None:
        self.words = words
        self.waiting = waiting

    def ask(self, argv: Sequence[str]) -> str:
        """Run a question once; jobs that are not known are an answer.

        Raises
        ------
        CommandError, BackendUnavailableError
            It failed.
        """
        try:
            return self._run(argv).stdout
        except CommandError as error:
            if is_harmless(self.words, error):
                return error.stdout if error.stderr.strip() else ""
            raise

    def _run(self, argv: Sequence[str]) -> Completed:
        return run(argv, timeout_s=QUERY_TIMEOUT_S)

    def insist(
        self,
        command: Callable[[Sequence[str]], Argv],
        ids: Sequence[str],
        at_a_time: int,
        *,
        total_s: float = PATIENCE_S,
    ) -> None:
        """Run a command about jobs, until the system has done what it says.

        Raises
        ------
        CommandError
            It refuses, or has not answered for ``total_s``.
        """
        for start in range(0, len(ids), at_a_time):
            self.insist_on(command(ids[start : start + at_a_time]), total_s=total_s)

    def insist_on(self, argv: Argv, *, total_s: float = PATIENCE_S) -> None:
        """Run one command, until the system has done what it says; raises as :meth:`insist`."""
        patience = Patience(self.waiting, " ".join(argv)[:60], total_s=total_s)
        while True:
            try:
                self._run(argv)
                return
            except CommandError as error:
                if is_harmless(self.words, error):
                    return
                if not is_temporary(self.words, error) or not patience.pause(error.stderr):
                    raise
