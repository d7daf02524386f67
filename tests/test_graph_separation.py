"""Writers that were fused with what they write are taken apart."""

from __future__ import annotations

import operator

from numpy import save

from dask_batch.graph.dask_spec.separation import separate_writers
from dask_batch.graph.writers import after_writing, writes
from dask_batch.spec import Call, Expression, Let, Origin, Ref, Task


def made(expression: Expression) -> Task:
    return Task("writer", expression, writes=writes(expression))


def fused(*bindings: tuple[str, Expression], origins: str) -> Let:
    """Fuse bindings; those named in ``origins`` were tasks, called as they are in capitals."""
    named = tuple(Origin(name.upper()) if name in origins else None for name, _ in bindings)
    return Let(bindings, Ref(bindings[-1][0]), named)


def test_what_is_upstream_becomes_tasks() -> None:
    let = fused(
        ("a", Call(operator.neg, (Ref("outside"),))),
        ("b", Call(operator.add, (Ref("a"), 1))),
        ("w", Call(save, ("file", Ref("b")))),
        origins="abw",
    )
    tasks = separate_writers([made(let)])
    assert list(tasks) == ["A", "B", "writer"]
    assert tasks["A"].expression == Call(operator.neg, (Ref("outside"),))
    assert tasks["B"].expression == Call(operator.add, (Ref("A"), 1))
    kept = (("w", Call(save, ("file", Ref("B")))),)
    assert tasks["writer"].expression == Let(kept, Ref("w"), (Origin("W"),))
    assert [task.writes for task in tasks.values()] == [False, False, True]
    assert after_writing(tasks) == {"writer"}


def test_however_deep_it_is_fused() -> None:
    inner = fused(
        ("a", Call(abs, (1,))),
        ("w", Call(save, ("file", Ref("a")))),
        origins="aw",
    )
    tasks = separate_writers([made(Call(list, (fused(("x", inner), origins="x"),)))])
    assert list(tasks) == ["A", "writer"]


def test_what_needs_something_that_was_no_task_stays() -> None:
    let = fused(
        ("part", Call(abs, (1,))),
        ("a", Call(abs, (Ref("part"),))),
        ("w", Call(save, ("file", Ref("a")))),
        origins="aw",
    )
    tasks = separate_writers([made(let)])
    assert list(tasks) == ["writer"]
    assert tasks["writer"].expression == let


def test_two_writers_of_the_same_share_it() -> None:
    def writer(name: str) -> Task:
        let = fused(("a", Call(abs, (1,))), ("w", Call(save, (name, Ref("a")))), origins="aw")
        return Task(name, let, writes=True)

    assert list(separate_writers([writer("one"), writer("two")])) == ["A", "one", "two"]


def test_others_are_left_alone() -> None:
    let = fused(("a", Call(abs, (1,))), ("b", Call(abs, (Ref("a"),))), origins="ab")
    task = made(let)
    assert separate_writers([task]) == {"writer": task}
    assert task.expression is let
    later = Task("later", Call(abs, (Ref("writer"),)))
    task.writes = True
    assert after_writing({"writer": task, "later": later, "x": Task("x", 1)}) == {"writer", "later"}
