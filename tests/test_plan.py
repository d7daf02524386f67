"""What has to run, and as which jobs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from dask_batch.errors import TooManyJobsError
from dask_batch.graph.keys import Keyed
from dask_batch.graph.plan import check_count, plan, prune
from dask_batch.spec import Call, Ref, Task


class Case:
    """A graph given as ``{name: names it needs}``; the key of a task is its name."""

    def __init__(self, needs: dict[str, str], wanted: str, **tasks: dict[str, Any]) -> None:
        self.tasks = {
            name: Task(name, Call(max, tuple(Ref(n) for n in used)), **tasks.get(name, {}))
            for name, used in needs.items()
        }
        self.keyed = {name: Keyed(name, ephemeral=t.writes) for name, t in self.tasks.items()}
        self.wanted = list(wanted)
        self.asked: list[list[str]] = []

    def present(self, held: str) -> Any:
        def ask(keys: Collection[str]) -> set[str]:
            self.asked.append(sorted(keys))
            return set(keys) & set(held)

        return ask

    def jobs(self, held: str = "", **options: Any) -> list[str]:
        jobs = plan(self.tasks, self.keyed, self.wanted, self.present(held), **options)
        return ["".join(map(str, job.names)) for job in jobs]

    def to_run(self, held: str = "") -> list[Any]:
        return prune(self.tasks, self.keyed, self.wanted, self.present(held))


CHAIN = {"a": "", "b": "a", "c": "b", "d": "c"}
DIAMOND = {"a": "", "b": "a", "c": "a", "d": "bc", "x": ""}


def test_pruning_goes_down_from_what_is_wanted() -> None:
    case = Case(DIAMOND, "d")
    assert case.to_run("b") == ["a", "c", "d"]
    assert case.asked == [["d"], ["b", "c"], ["a"]]
    assert Case(DIAMOND, "d").to_run("bc") == ["d"]
    assert Case(DIAMOND, "d").to_run("d") == []


def test_what_only_something_cached_needs_does_not_run() -> None:
    assert Case(CHAIN, "d").to_run("c") == ["d"]


def test_what_is_wanted_twice_runs_once() -> None:
    assert Case(CHAIN, "aab").to_run() == ["a", "b"]


def test_a_chain_is_one_job() -> None:
    assert Case(CHAIN, "d").jobs() == ["abcd"]
    assert Case(CHAIN, "d").jobs(fuse="none") == ["a", "b", "c", "d"]


def test_a_cached_result_is_where_a_chain_begins() -> None:
    case = Case(CHAIN, "d")
    (job,) = plan(case.tasks, case.keyed, case.wanted, case.present("b"))
    assert (job.names, job.key, job.inputs, job.parents) == (("c", "d"), "d", ("b",), ())


def test_what_is_wanted_is_published() -> None:
    assert Case(CHAIN, "db").jobs() == ["ab", "cd"]


def test_forks_and_joins() -> None:
    case = Case({**DIAMOND, "e": "d"}, "e")
    assert case.jobs() == ["a", "b", "c", "de"]
    jobs = plan(case.tasks, case.keyed, case.wanted, case.present(""))
    assert [(job.inputs, job.parents) for job in jobs] == [
        ((), ()),
        (("a",), ("a",)),
        (("a",), ("a",)),
        (("b", "c"), ("b", "c")),
    ]


def test_a_join_with_something_cached_is_a_join() -> None:
    assert Case({"a": "", "b": "ax", "x": ""}, "b").jobs("x") == ["a", "b"]


def test_needed_twice_by_one_is_still_a_chain() -> None:
    assert Case({"a": "", "b": "aa"}, "b").jobs() == ["ab"]


def test_delayed_calls_stay_single_unless_asked() -> None:
    case = Case(CHAIN, "d", b={"fusable": False})
    assert case.jobs() == ["a", "b", "cd"]
    assert case.jobs(fuse="linear") == ["abcd"]


def test_other_annotations_are_another_job() -> None:
    case = Case(
        CHAIN,
        "d",
        c={"annotations": {"resources": {"cores": 4}}},
        d={"annotations": {"version": 2}},
    )
    assert case.jobs() == ["ab", "c", "d"]
    assert case.jobs(equal=lambda one, other: True) == ["abcd"]


def test_writers_are_alone() -> None:
    assert Case(CHAIN, "d", c={"writes": True}).jobs() == ["ab", "c", "d"]


def test_equal_keys_are_one_job() -> None:
    case = Case({"a": "", "b": "", "c": "ab"}, "c")
    case.keyed["b"] = case.keyed["a"]
    jobs = plan(case.tasks, case.keyed, case.wanted, case.present(""))
    assert [job.key for job in jobs] == ["a", "c"]
    assert jobs[1].inputs == ("a",)


def test_parents_come_first_whatever_the_order_of_the_graph() -> None:
    needs = {"d": "bc", "c": "a", "b": "a", "a": ""}
    published: set[str] = set()
    case = Case(needs, "d")
    for job in plan(case.tasks, case.keyed, case.wanted, case.present("")):
        assert set(job.inputs) <= published
        published.add(job.key)


def test_long_chains() -> None:
    names = [f"t{i}" for i in range(20_000)]
    tasks = {
        name: Task(name, Call(max, (Ref(before),) if before else ()))
        for name, before in zip(names, [None, *names], strict=False)
    }
    keyed = {name: Keyed(name) for name in names}
    (job,) = plan(tasks, keyed, [names[-1]], lambda keys: set())
    assert len(job.names) == 20_000


def test_too_many_jobs() -> None:
    tasks = {f"load-{i:032x}": Task(f"load-{i:032x}", Call(max)) for i in range(5)}
    tasks["sum-1234"] = Task("sum-1234", Call(max, tuple(Ref(name) for name in tasks)))
    keyed = {name: Keyed(name) for name in tasks}
    jobs = plan(tasks, keyed, ["sum-1234"], lambda keys: set())
    check_count(jobs, 6)
    check_count(jobs, None)
    with pytest.raises(TooManyJobsError, match=r"6 jobs.*max_jobs=5 .*5 load, 1 sum.*larger"):
        check_count(jobs, 5)
