"""What has to run, and as which jobs. Pure: the cache is asked through a function.

1. **Prune**, from the wanted results downwards: what the cache has needs not run, and neither
   does what only that needs.
2. **Chain**: where a task's result is used by one task alone, which in turn needs nothing else,
   the two become one job, and the result between them is never stored. A task that joins results
   begins a chain even if all but one of them are in the cache: else the result of the one branch
   that ran again would be lost, and the branch run once more when another one changes.
3. **Jobs**, parents first, each with the keys of the results that it loads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import networkx as nx
from dask.utils import key_split

from dask_batch.errors import TooManyJobsError
from dask_batch.graph.keys import Keyed
from dask_batch.spec import Task, references

__all__ = ["Fuse", "PlannedJob", "chains", "check_count", "equal_annotations", "plan", "prune"]

Fuse: TypeAlias = Literal["auto", "linear", "none"]

# They enter keys, and say nothing about how a job is to run.
_OF_KEYS: Final = frozenset({"version", "cache"})
_MOST_NAMED: Final = 8


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """One job to be.

    Attributes
    ----------
    names
        The tasks that it runs, in order; the result of the last is published.
    key
        The key of that result.
    inputs
        Keys of the results that it loads, in the order of their first use.
    parents
        Those of them that are results of jobs of the same plan.
    """

    names: tuple[Hashable, ...]
    key: str
    inputs: tuple[str, ...]
    parents: tuple[str, ...]


def plan(
    tasks: Mapping[Hashable, Task],
    keyed: Mapping[Hashable, Keyed],
    wanted: Sequence[Hashable],
    present: Callable[[Collection[str]], Collection[str]],
    *,
    fuse: Fuse = "auto",
    equal: Callable[[Task, Task], bool] | None = None,
) -> list[PlannedJob]:
    """Plan the jobs of a graph, parents first.

    Parameters
    ----------
    tasks, keyed
        The graph and its keys.
    wanted
        The tasks whose results are wanted.
    present
        Says which of some keys the cache has; asked once for each level of the graph.
    fuse
        ``"auto"`` leaves tasks that are not fusable alone, ``"linear"`` fuses those too.
    equal
        Whether two tasks may share a job as far as resources go; by default, if their annotations
        are equal.
    """
    to_run = prune(tasks, keyed, wanted, present)
    together = chains(tasks, keyed, wanted, to_run, fuse=fuse, equal=equal or equal_annotations)
    return _jobs(tasks, keyed, together)


def prune(
    tasks: Mapping[Hashable, Task],
    keyed: Mapping[Hashable, Keyed],
    wanted: Iterable[Hashable],
    present: Callable[[Collection[str]], Collection[str]],
) -> list[Hashable]:
    """List the tasks that have to run, parents first; of tasks with equal keys the first met."""
    seen: dict[str, Hashable] = {}
    graph: nx.DiGraph[Hashable] = nx.DiGraph()
    level = _new(wanted, keyed, seen)
    while level:
        held = present([keyed[name].key for name in level])
        missing = [name for name in level if keyed[name].key not in held]
        needed: dict[Hashable, None] = {}
        for name in missing:
            graph.add_node(name)
            needed.update(dict.fromkeys(references(tasks[name].expression)))
        level = _new(needed, keyed, seen)
    for name in list(graph):
        for parent in references(tasks[name].expression):
            first = seen[keyed[parent].key]
            if first in graph:
                graph.add_edge(first, name)
    return list(nx.topological_sort(graph))


def _new(
    names: Iterable[Hashable], keyed: Mapping[Hashable, Keyed], seen: dict[str, Hashable]
) -> list[Hashable]:
    new = []
    for name in names:
        key = keyed[name].key
        if key not in seen:
            seen[key] = name
            new.append(name)
    return new


def equal_annotations(one: Task, other: Task) -> bool:
    """Whether the same was said about how two tasks are to run."""

    def said(task: Task) -> dict[str, Any]:
        return {name: v for name, v in task.annotations.items() if name not in _OF_KEYS}

    return said(one) == said(other)


def chains(
    tasks: Mapping[Hashable, Task],
    keyed: Mapping[Hashable, Keyed],
    wanted: Iterable[Hashable],
    to_run: Sequence[Hashable],
    *,
    fuse: Fuse,
    equal: Callable[[Task, Task], bool],
) -> list[tuple[Hashable, ...]]:
    """Group the tasks that have to run into chains, each to become one job; parents first."""
    running = {keyed[name].key for name in to_run}
    uses: dict[str, list[Hashable]] = {}
    needs: dict[Hashable, list[str]] = {}
    for name in to_run:
        keys = dict.fromkeys(keyed[parent].key for parent in references(tasks[name].expression))
        needs[name] = list(keys)
        for key in keys.keys() & running:
            uses.setdefault(key, []).append(name)
    kept = {keyed[name].key for name in wanted}
    heads: dict[str, list[Hashable]] = {}  # by the key of its last task
    found: list[list[Hashable]] = []
    for name in to_run:
        before = needs[name]
        chain = heads.get(before[0]) if len(before) == 1 else None
        if (
            chain is not None
            and fuse != "none"
            and before[0] not in kept
            and len(uses[before[0]]) == 1
            and _uses_only(chain[-1], name, tasks, keyed)
            and _may_share(chain[-1], name, tasks, keyed, fuse)
            and equal(tasks[chain[-1]], tasks[name])
        ):
            del heads[before[0]]
            chain.append(name)
        else:
            chain = [name]
            found.append(chain)
        heads[keyed[name].key] = chain
    position = {name: i for i, name in enumerate(to_run)}
    # A chain is ready when its last task's parents are; a parent's last task comes before.
    found.sort(key=lambda chain: position[chain[-1]])
    return [tuple(chain) for chain in found]


def _uses_only(
    first: Hashable,
    second: Hashable,
    tasks: Mapping[Hashable, Task],
    keyed: Mapping[Hashable, Keyed],
) -> bool:
    """Whether a task refers to the result of another by no second name of the same key."""
    key = keyed[first].key
    names = references(tasks[second].expression)
    return all(name == first for name in names if keyed[name].key == key)


def _may_share(
    first: Hashable,
    second: Hashable,
    tasks: Mapping[Hashable, Task],
    keyed: Mapping[Hashable, Keyed],
    fuse: Fuse,
) -> bool:
    one, other = tasks[first], tasks[second]
    if one.writes or other.writes or keyed[first].ephemeral != keyed[second].ephemeral:
        return False  # what is upstream of a task that always runs stays cached
    return fuse == "linear" or (one.fusable and other.fusable)


def _jobs(
    tasks: Mapping[Hashable, Task],
    keyed: Mapping[Hashable, Keyed],
    together: Iterable[tuple[Hashable, ...]],
) -> list[PlannedJob]:
    jobs: list[PlannedJob] = []
    published: set[str] = set()
    for chain in together:
        inside = {keyed[name].key for name in chain}
        inputs = dict.fromkeys(
            key
            for name in chain
            for parent in references(tasks[name].expression)
            if (key := keyed[parent].key) not in inside
        )
        key = keyed[chain[-1]].key
        parents = tuple(k for k in inputs if k in published)
        jobs.append(PlannedJob(chain, key, tuple(inputs), parents))
        published.add(key)
    return jobs


def check_count(jobs: Sequence[PlannedJob], max_jobs: int | None) -> None:
    """Refuse a plan of too many jobs.

    Raises
    ------
    TooManyJobsError
        It says how many jobs there would be, of which functions, and what can be done.
    """
    if max_jobs is None or len(jobs) <= max_jobs:
        return
    counts = Counter(key_split(job.names[-1]) for job in jobs)
    named = [f"{count:,} {name}" for name, count in counts.most_common(_MOST_NAMED)]
    if len(counts) > _MOST_NAMED:
        rest = sum(counts.values()) - sum(count for _, count in counts.most_common(_MOST_NAMED))
        named.append(f"{rest:,} others")
    raise TooManyJobsError(
        f"the graph would become {len(jobs):,} jobs, more than max_jobs={max_jobs:,} allows: "
        f"{', '.join(named)}. Nothing has been submitted. Make larger chunks or partitions, let "
        f"chains be one job (fuse='linear'), or raise max_jobs if the site allows as many."
    )
