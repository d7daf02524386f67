"""The course of one key, from evidence to its one verdict: pure.

An attempt's evidence leads to a provisional verdict; if that is a failure which the run repeats,
the next attempt begins and only evidence about *it* counts from then on. The first verdict that
is not repeated is final: nothing that comes later changes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dask_batch.backends.base import JobState
from dask_batch.verdicts.follow import Evidence, Outcome, Verdict, judge
from dask_batch.verdicts.retry import Ending, Repeat, RetryPolicy, decide

__all__ = ["Course"]

_QUEUED_AGAIN = JobState.WAITING
"""What the end of the attempt before cannot be mistaken for; *running* may be its last moments.
(One that is *held* is being repeated, and has not been given all that it is to have.)"""


class Course:
    """The attempts at one key.

    Parameters
    ----------
    generation
        That of the attempt under way.

    Attributes
    ----------
    sure
        Whether the batch system's word on the job is about this attempt. After a repetition it
        may, for a while, still tell of the end of the attempt before.
    verdict
        The final one.
    """

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.sure = True
        self.verdict: Verdict | None = None

    def consider(self, generation: int, evidence: Evidence) -> Verdict | None:
        """Return what evidence leads to, as far as it is about the attempt under way.

        Parameters
        ----------
        generation
            The attempt that end record and status are about.
        evidence
            What is known.

        Returns
        -------
        Verdict or None
            The final one if there is one, success included. Else a provisional one, to be
            settled (:meth:`settle`).
        """
        if self.verdict is not None:
            return self.verdict
        if generation != self.generation:
            evidence = dataclasses.replace(evidence, end=None, status=None)
        elif not self.sure and evidence.status is not None:
            if evidence.status.state is _QUEUED_AGAIN:
                self.sure = True
            else:
                evidence = dataclasses.replace(evidence, status=None)
        verdict = judge(evidence)
        if verdict is not None and verdict.outcome is Outcome.DONE:
            self.verdict = verdict
        return verdict

    def settle(
        self,
        verdict: Verdict,
        ending: Ending,
        policy: RetryPolicy,
        past: Sequence[Outcome],
        *,
        inputs_failed: bool = False,
    ) -> Repeat | None:
        """Decide what follows from a failure: one more attempt, or nothing any more.

        Parameters
        ----------
        verdict
            The provisional verdict.
        ending
            What is on record about it.
        policy, past
            As in :func:`dask_batch.verdicts.retry.decide`.
        inputs_failed
            Whether an input of the task will never be there.

        Returns
        -------
        Repeat or None
            None: the verdict is final.
        """
        if self.verdict is not None:
            return None
        fell = ending.outcome is Outcome.DEPENDENCY and inputs_failed
        repeat = None if fell else decide(ending, policy, past)
        if repeat is None:
            self.verdict = verdict
        return repeat

    def advance(self, generation: int, *, sure: bool) -> None:
        """Follow a later attempt."""
        if self.verdict is None and generation > self.generation:
            self.generation = generation
            self.sure = sure
