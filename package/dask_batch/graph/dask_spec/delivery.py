"""What Dask hands a scheduler becomes one low-level graph.

Dask's own way to materialise an expression fuses arrays linearly and forgets their annotations,
merges the finalize task into the last chunk, leaves DataFrames unfused and their shuffles on a
local disk. So each operand is materialised here, with the same optimisers but on our terms.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import dask
from dask._expr import Expr, HLGExpr, _ExprSequence, _HLGExprSequence
from dask.blockwise import Blockwise
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph
from dask.utils import ensure_dict

from dask_batch.errors import GraphError
from dask_batch.graph.dask_spec.layers import delayed_keys
from dask_batch.graph.dask_spec.nodes import Block, expression
from dask_batch.graph.dask_spec.shuffles import mend_expression
from dask_batch.graph.writers import is_writer
from dask_batch.spec import references

__all__ = ["Delivery", "deliver"]

# Dask's configuration is shared by all threads: two that set and restore the same value at the
# same time could leave each other's behind. One thread may come here again: some expressions
# compute what they know of their result while they are materialised.
_configuration_lock = threading.RLock()


@dataclass(slots=True)
class Delivery:
    """A low-level graph and what is known about it.

    Attributes
    ----------
    graph
        Key to node: a ``GraphNode``, or a task, list or value of the old format.
    layers
        The high-level layers before optimisation, by name.
    finalizers
        Tasks that Dask added to put the chunks of a result together, by key; not in ``graph``.
    renamed
        Keys that were asked for under a name that they no longer have.
    delayed
        Tasks that are delayed calls, but for those that a bag takes its partitions from: they may
        be iterators, which Dask, too, only hands on within a task.
    """

    graph: dict[Hashable, Any] = field(default_factory=dict)
    layers: dict[Hashable, Any] = field(default_factory=dict)
    finalizers: dict[Hashable, Any] = field(default_factory=dict)
    renamed: dict[Hashable, Hashable] = field(default_factory=dict)
    delayed: set[Hashable] = field(default_factory=set)


def deliver(dsk: Any) -> Delivery:
    """Materialise whatever Dask handed over."""
    delivery = Delivery()
    with _configuration_lock, dask.config.set({"optimization.fuse.active": False}):
        for part in _parts(dsk):
            _add(delivery, part)
    return delivery


def _parts(dsk: Any) -> Iterator[Any]:
    if isinstance(dsk, (_HLGExprSequence, _ExprSequence)):
        yield from dsk.operands
    else:
        yield dsk


def _add(delivery: Delivery, part: Any) -> None:
    if isinstance(part, HLGExpr):
        _add_layers(delivery, part)
    elif isinstance(part, Expr):
        _add_expression(delivery, part)
    elif isinstance(part, HighLevelGraph):
        delivery.layers.update(part.layers)
        delivery.delayed.update(delayed_keys(part.layers))
        delivery.graph.update(ensure_dict(part))
    elif isinstance(part, Mapping):
        delivery.graph.update(part)
    elif hasattr(part, "__dask_graph__"):
        _add(delivery, part.__dask_graph__())
    else:
        raise GraphError(
            f"a Dask graph is a mapping, or has __dask_graph__; this is {type(part).__name__}"
        )


def _add_layers(delivery: Delivery, operand: Any) -> None:
    """Add an operand that is made of high-level layers: Delayed, Array, Bag, xarray."""
    graph = operand.hlg
    keys = list(flatten(operand.__dask_keys__()))
    functions = _finalize_functions(operand)
    finalizers = {
        key: graph.layers[key][key] for key in keys if _is_finalizer(graph, key, functions)
    }
    if finalizers:
        graph = HighLevelGraph(
            {name: layer for name, layer in graph.layers.items() if name not in finalizers},
            {name: deps for name, deps in graph.dependencies.items() if name not in finalizers},
        )
        chunks = [key for task in finalizers.values() for key in _chunks(task)]
        keys = list(dict.fromkeys([key for key in keys if key not in finalizers] + chunks))
    delivery.layers.update(graph.layers)
    delivery.finalizers.update(finalizers)
    keys += _written(graph)
    optimize = operand.low_level_optimizer
    if getattr(optimize, "__module__", None) != "dask.bag.core":
        delivery.delayed.update(delayed_keys(graph.layers))
    if optimize is not None and not _only_culls(optimize):
        graph = optimize(graph, keys)
    delivery.graph.update(ensure_dict(graph))


def _only_culls(optimize: Callable[..., Any]) -> bool:
    """Whether an optimiser does nothing but leave out tasks, which the walk does anyway.

    That of delayed calls takes a time that is quadratic in their number.
    """
    name = getattr(optimize, "__module__", None), getattr(optimize, "__name__", None)
    return name == ("dask.delayed", "optimize") and not dask.config.get(
        "optimization.fuse.delayed", False
    )


def _finalize_functions(operand: Any) -> list[Callable[..., Any]]:
    """List the functions by which the collections behind an operand put their chunks together."""
    postcompute = operand.postcompute
    if not postcompute:
        return []
    pairs = postcompute if isinstance(postcompute, list) else [postcompute]
    return [pair[0] for pair in pairs if pair]


def _is_finalizer(
    graph: HighLevelGraph, key: Hashable, functions: list[Callable[..., Any]]
) -> bool:
    """Whether a wanted key is a task that Dask added: a layer of its own, with that function.

    The name is no evidence: a user's function may be called ``finalize``.
    """
    layer = graph.layers.get(key)
    if layer is None or len(layer) != 1 or key not in layer:
        return False
    if any(key in dependencies for dependencies in graph.dependencies.values()):
        return False
    return getattr(layer[key], "func", None) in functions


def _written(graph: HighLevelGraph) -> list[Hashable]:
    """List the keys that writers write.

    As keys that are wanted they are not fused with the writer: it runs every time, they need not.
    """
    sources = {
        source
        for name, layer in graph.layers.items()
        if _layer_writes(layer)
        for source in graph.dependencies[name]
    }
    return [key for name in graph.layers if name in sources for key in graph.layers[name]]


def _layer_writes(layer: Any) -> bool:
    nodes = (layer.task,) if isinstance(layer, Blockwise) else layer.values()
    return any(_node_writes(node) for node in nodes)


def _node_writes(node: Any) -> bool:
    if type(node) is tuple and node:
        return is_writer(node[0])
    return hasattr(node, "func") and is_writer(node.func)


def _chunks(finalizer: Any) -> Iterator[Hashable]:
    """Yield what a finalize task puts together, in order (its ``dependencies`` are a set)."""
    return references(expression(finalizer, Block(finalizer.key, {})))


def _add_expression(delivery: Delivery, operand: Any) -> None:
    """Add an operand that is an expression: a DataFrame."""
    asked = list(flatten(operand.__dask_keys__()))
    final = mend_expression(operand)
    graph = final.__dask_graph__()
    if not any(_node_writes(node) for node in graph.values()):
        final = final.fuse()
        graph = final.__dask_graph__()
    delivery.graph.update(graph)
    given = list(flatten(final.__dask_keys__()))
    delivery.renamed.update({old: new for old, new in zip(asked, given, strict=True) if old != new})
