"""Requests are handed over, and what comes of that is followed."""

from __future__ import annotations

from dask_batch.engine.backlog import Backlog
from dask_batch.engine.fallen import without_fallen
from dask_batch.engine.request import Request, refused, still_wanted
from dask_batch.errors import BackendError, SubmissionError
from dask_batch.following.watch import Watch
from dask_batch.preparing.packing import PreparedJob
from dask_batch.submitting.handover import Handed, HandOver, Interrupted
from dask_batch.submitting.planning import VanishedError
from dask_batch.verdicts.failures import Fallen

__all__ = ["Intake"]


class Intake:
    """Takes in requests; belongs to the engine's thread.

    Parameters
    ----------
    hand_over
        Hands their jobs over.
    watch, backlog
        What is followed then, and what waits for room.

    Attributes
    ----------
    stewards
        The ids of all stewards that were handed over.
    """

    def __init__(self, hand_over: HandOver, watch: Watch, backlog: Backlog) -> None:
        self.stewards: list[str] = []
        self._hand_over = hand_over
        self._watch = watch
        self._backlog = backlog

    def __call__(self, requests: list[Request], *, again: bool) -> list[Request]:
        """Hand over the jobs of some requests; a refused one does not take the others along.

        Parameters
        ----------
        requests
            Whose jobs to hand over.
        again
            Whether some of their jobs are under way: then a batch system that gives no answer just
            now must not end the rest.

        Returns
        -------
        list of Request
            Those that were interrupted while others were waited for: nothing of them is handed
            over.
        """
        requests = still_wanted(requests)
        while requests:
            jobs = list({job.key: job for request in requests for job in request.jobs}.values())
            pending = {key: entry.standing for key, entry in self._watch.entries.items()}
            try:
                handed = self._hand_over(jobs, pending)
            except Interrupted:
                return requests
            except SubmissionError as error:
                requests = refused(requests, error)
            except VanishedError as error:
                fallen = {key: self._watch.fallen(key) or Fallen(error) for key in error.keys}
                requests = without_fallen(requests, fallen)
            except Exception as error:
                if again and isinstance(error, BackendError):
                    self._backlog.put_back(requests, error)
                    return []
                for request in requests:
                    request.fail(error)
                requests = []
            else:
                self._begin(requests, jobs, handed)
                return []
        self._backlog.forget()
        return []

    def _begin(self, requests: list[Request], jobs: list[PreparedJob], handed: Handed) -> None:
        """Follow what is under way, resolve what is there."""
        functions = {job.key: job.function for job in jobs}
        submitted = set(handed.submitted)
        joined: dict[str, list[str]] = {}
        for key, standing in handed.under_way.items():
            ours = standing.job_id in submitted
            if not ours and key not in self._watch.entries:
                joined.setdefault(standing.run_id, []).append(key)
            self._watch.add(standing, functions.get(key, ""), ours=ours)
        for run_id, keys in joined.items():
            self._watch.followers.follow(run_id, keys)
        for job in jobs:
            self._watch.link(job.key, job.inputs)
        self.stewards += handed.stewards
        for request in requests:
            if request.told is not None:
                request.told(handed)
            begun = request.part(request.keys - set(handed.left))
            if begun.observe is not None:
                for job in begun.jobs:
                    self._watch.observe(job.key, begun.observe)
            for future in begun.futures:
                self._watch.attach(future)
        self._backlog.put(requests, handed)
