"""A Dask graph becomes tasks: aliases resolved, plain data apart, cycles found.

The graph is walked once, from the keys that were asked for, without recursion: it may be as deep
as it likes. A node is translated when it is first met and settled when everything it refers to
is, so an alias or plain data can be put in the place of a reference to it at once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dask._task_spec import Alias, DataNode, GraphNode, convert_legacy_task

from dask_batch.errors import GraphError
from dask_batch.graph.annotations import Annotations
from dask_batch.graph.dask_spec.delivery import Delivery, deliver
from dask_batch.graph.dask_spec.inlining import runs_where_read, takes_a_share
from dask_batch.graph.dask_spec.layers import annotated_keys
from dask_batch.graph.dask_spec.nodes import Block, expression, substitute
from dask_batch.graph.dask_spec.separation import separate_writers
from dask_batch.graph.dask_spec.shuffles import mend_tasks
from dask_batch.graph.writers import check_writers, writes
from dask_batch.spec import Build, Call, Expression, Let, Ref, Task, evaluate, references

__all__ = ["Graph", "ingest", "values"]


@dataclass(slots=True)
class Graph:
    """A Dask graph as tasks.

    Attributes
    ----------
    tasks
        What has to be computed, by Dask's key, each task after those it refers to.
    wanted
        The keys that were asked for, in the (nested) structure in which they were asked for, under
        the names that they have here: of a task, of a finalizer, or of plain data.
    finalizers
        Expressions over results that put a collection's chunks together: Dask added them, nothing
        else depends on them, and they are to be evaluated in the client.
    literals
        Wanted keys whose value is plain data.
    original
        Dask's own graph, for callbacks.
    required
        The tasks whose results are wanted, or needed by a finalizer, in the order asked.
    """

    tasks: dict[Hashable, Task]
    wanted: Any
    finalizers: dict[Hashable, Expression]
    literals: dict[Hashable, Any]
    original: dict[Hashable, Any]
    required: tuple[Hashable, ...] = ()


def ingest(
    dsk: Any,
    keys: Any,
    *,
    annotations: Mapping[str, Any] | None = None,
    resource_rules: Mapping[str, Mapping[str, Any]] | None = None,
) -> Graph:
    """Translate what Dask hands a scheduler.

    Parameters
    ----------
    dsk
        An expression, a high-level graph, or a mapping of any format that Dask accepts.
    keys
        One key, or a (nested) list of them.
    annotations
        Annotations for every task (``dask.get_annotations()`` where compute is called); those of
        a task and of a rule go before them.
    resource_rules
        Resources by pattern of key prefix, as in ``{"read-parquet*": {"cores": 2}}``.

    Raises
    ------
    KeyError
        A wanted key is not in the graph.
    GraphError
        The graph has a cycle, lacks a task that another one refers to, or holds something that
        cannot run as a job.
    """
    delivery = deliver(dsk)
    walk = _Walk(delivery)
    walk.want(keys)
    wanted = walk.names(keys)
    said = Annotations(
        annotated_keys(delivery.layers), defaults=annotations or {}, rules=resource_rules or {}
    )
    tasks = separate_writers(
        _task(name, body, said=said, fusable=name not in delivery.delayed)
        for name, body in mend_tasks(walk.bodies).items()
    )
    check_writers(tasks.values())
    required = dict.fromkeys(
        name
        for leaf in _leaves(wanted)
        for name in (references(walk.finalizers[leaf]) if leaf in walk.finalizers else (leaf,))
        if name in tasks
    )
    return Graph(tasks, wanted, walk.finalizers, walk.literals, walk.met(), tuple(required))


def values(graph: Graph, results: Mapping[Hashable, Any]) -> Any:
    """Give the wanted values in the structure that Dask expects: lists become tuples.

    Parameters
    ----------
    graph
        An ingested graph.
    results
        The results of its ``required`` tasks, by name.
    """

    def value(wanted: Any) -> Any:
        if isinstance(wanted, list):
            return tuple(value(item) for item in wanted)
        if wanted in graph.finalizers:
            return evaluate(graph.finalizers[wanted], results)
        if wanted in graph.literals:
            return graph.literals[wanted]
        return results[wanted]

    return value(graph.wanted)


def _task(name: Hashable, body: Expression, *, said: Annotations, fusable: bool) -> Task:
    body, annotations = said.apply(name, body)
    return Task(name, body, annotations, fusable, writes(body))


def _leaves(wanted: Any) -> Iterator[Hashable]:
    if isinstance(wanted, list):
        for item in wanted:
            yield from _leaves(item)
    else:
        yield wanted


class _Walk:
    """The walk over a delivered graph, and what it has found."""

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.bodies: dict[Hashable, Expression] = {}
        self.finalizers: dict[Hashable, Expression] = {}
        self.literals: dict[Hashable, Any] = {}
        self._settled: dict[Hashable, Expression] = {}  # what a reference to a key stands for
        self._wanted: set[Hashable] = set()

    def want(self, keys: Any) -> None:
        """Note which keys have to be results, whatever they are."""
        for leaf in _leaves(keys):
            key = self.delivery.renamed.get(leaf, leaf)
            self._wanted.add(key)
            finalizer = self.delivery.finalizers.get(key)
            if finalizer is not None:
                block = Block(key, self.delivery.layers)
                self._wanted.update(references(expression(finalizer, block)))

    def names(self, keys: Any) -> Any:
        """Translate the structure of wanted keys, walking to each of them."""
        if isinstance(keys, list):
            return [self.names(key) for key in keys]
        key = self.delivery.renamed.get(keys, keys)
        if key in self.delivery.finalizers:
            self._finalize(key)
            return key
        if key not in self.delivery.graph:
            raise KeyError(keys)
        self._visit(key)
        settled = self._settled[key]
        if isinstance(settled, Ref):
            return settled.name
        self.literals[key] = settled
        return key

    def met(self) -> dict[Hashable, Any]:
        """Return that part of Dask's graph that is needed."""
        finalizers = {key: self.delivery.finalizers[key] for key in self.finalizers}
        return {**{key: self.delivery.graph[key] for key in self._settled}, **finalizers}

    def _finalize(self, key: Hashable) -> None:
        body = expression(self.delivery.finalizers[key], Block(key, self.delivery.layers))
        for name in references(body):
            self._visit(name)
        self.finalizers[key] = substitute(body, self._settled_among(body))

    def _visit(self, root: Hashable) -> None:
        if root in self._settled:
            return
        # The way down: of each key its body, and what is still to be looked at.
        way = [(root, *self._open(root))]
        on_way = {root}
        while way:
            key, body, todo = way[-1]
            for name in todo:
                if name in on_way:
                    raise _cycle([*_since([step[0] for step in way], name), name])
                if name not in self._settled:
                    way.append((name, *self._open(name, key)))
                    on_way.add(name)
                    break
            else:
                way.pop()
                on_way.remove(key)
                self._settle(key, body)

    def _open(
        self, key: Hashable, parent: Hashable = None
    ) -> tuple[Expression, Iterator[Hashable]]:
        graph = self.delivery.graph
        if key not in graph:
            raise GraphError(
                f"the task {parent!r} refers to {key!r}, which is not in the graph: compute what "
                f"it belongs to first, or pass its value"
            )
        node = graph[key]
        if not isinstance(node, GraphNode):
            node = _from_legacy(key, node, graph)
        body = expression(node, Block(key, self.delivery.layers))
        return body, iter(tuple(references(body)))

    def _settle(self, key: Hashable, body: Expression) -> None:
        body = substitute(body, self._settled_among(body))
        if isinstance(body, (Call, Build, Let)) and not self._is_part_of_others(key, body):
            self.bodies[key] = body
            self._settled[key] = Ref(key)
        else:
            self._settled[key] = body  # an alias, plain data, or what is to run where it is used

    def _is_part_of_others(self, key: Hashable, body: Expression) -> bool:
        """Whether a task is to run in those that need it."""
        if key in self._wanted:
            return False
        shared = takes_a_share(body) and key not in self.delivery.delayed
        return shared or runs_where_read(body)

    def _settled_among(self, body: Expression) -> dict[Hashable, Expression]:
        """Find the references that stand for something else than a task of the same name."""
        found = {name: self._settled[name] for name in references(body)}
        return {n: e for n, e in found.items() if not (isinstance(e, Ref) and e.name == n)}


def _from_legacy(key: Hashable, value: Any, graph: Mapping[Hashable, Any]) -> Any:
    """Bring a value of an old graph (tuples, lists, keys as plain strings) into nodes."""
    if getattr(value, "__dask_future__", False):
        return DataNode(key, value)  # the caller knows its own futures
    node = convert_legacy_task(key, value, graph)
    if isinstance(node, Alias) and node.target == key:
        return DataNode(key, value)  # {0: 0}: data that happens to equal its key
    return node if isinstance(node, (GraphNode, Alias)) else DataNode(key, node)


def _since(way: list[Hashable], name: Hashable) -> list[Hashable]:
    return way[way.index(name) :]


def _cycle(keys: list[Hashable]) -> GraphError:
    shown = [repr(key) for key in keys]
    if len(shown) > 12:
        shown = [*shown[:6], f"... ({len(shown) - 12} more)", *shown[-6:]]
    return GraphError(f"the graph has a cycle: {' needs '.join(shown)}")
