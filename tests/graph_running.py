"""Runs ingested graphs in this process, as jobs would evaluate them."""

from __future__ import annotations

from typing import Any

import dask

from dask_batch.graph.dask_spec import Graph, ingest, values
from dask_batch.graph.keys import Keyed, Keys
from dask_batch.spec import evaluate


def run(graph: Graph) -> dict[Any, Any]:
    """Evaluate every task, in the order of the graph."""
    results: dict[Any, Any] = {}
    for name, task in graph.tasks.items():
        results[name] = evaluate(task.expression, results)
    return results


def get(dsk: Any, keys: Any, **_: Any) -> Any:
    """Compute as a Dask scheduler."""
    graph = ingest(dsk, keys)
    return values(graph, run(graph))


def ingested(*collections: Any, rules: Any = None, **kwargs: Any) -> Graph:
    """Return the graph that a scheduler would be given for collections."""
    caught: list[Graph] = []

    def catch(dsk: Any, keys: Any, **_: Any) -> Any:
        said = dask.get_annotations()
        caught.append(ingest(dsk, keys, annotations=said, resource_rules=rules))
        return [None] * 1000

    dask.compute(*collections, scheduler=catch, **kwargs)
    return caught[0]


def keyed(*collections: Any, nonce: str = "run", **kwargs: Any) -> tuple[Graph, dict[Any, Keyed]]:
    """Return the graph of collections and its keys."""
    graph = ingested(*collections, **kwargs)
    return graph, Keys(nonce=nonce).of(graph.tasks, graph.required)


def wanted_keys(*collections: Any, **kwargs: Any) -> list[str]:
    """Return the keys of the results that are wanted, in the order asked."""
    graph, found = keyed(*collections, **kwargs)
    return [found[name].key for name in graph.required]
