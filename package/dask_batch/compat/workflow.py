"""Calls as a graph for people and for other programs: nodes with ports, and edges between them.

The export is the JSON of the Python Workflow Definition, version 0.1.0: nodes are functions, inputs
and outputs; an edge leads from a port of its source (None: the whole result; else the item of that
name) to a port of its target, the name of an argument.
"""

from __future__ import annotations

import concurrent.futures
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dask_batch.errors import GraphError
from dask_batch.items import whole_of
from dask_batch.preparing.packing import name_of

__all__ = ["Edge", "Node", "Workflow"]

_VERSION = "0.1.0"
_GET_LIST = "python_workflow_definition.shared.get_list"
_GET_DICT = "python_workflow_definition.shared.get_dict"


@dataclass(slots=True, eq=False)
class Node:
    """A function that is called, or a value that goes in."""

    kind: Literal["function", "input"]
    name: str
    """What to call it in a picture; of an input, the argument that it first is."""
    value: Any
    """The input; of a function where it can be imported from."""


@dataclass(frozen=True, slots=True)
class Edge:
    """What goes from where to where."""

    source: Node
    target: Node
    target_port: str
    source_port: tuple[Any, ...] = ()
    """The way to an item of the source's result; () for all of it."""


@dataclass(slots=True)
class Workflow:
    """Collects calls.

    Attributes
    ----------
    exportable
        Whether to refuse at once what cannot be exported.
    nodes, edges
        What has been collected, in the order of the calls.
    """

    exportable: bool = False
    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    _made_by: dict[concurrent.futures.Future[Any], Node] = field(default_factory=dict)
    _same: dict[Any, Node] = field(default_factory=dict)

    def add(
        self,
        future: concurrent.futures.Future[Any],
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Add a call, and the future that stands for it; equal calls are one node.

        Raises
        ------
        TypeError
            The function does not take these arguments.
        GraphError
            A future among them is of no call in here, or stands where no edge can lead; or it
            cannot be exported, and is to be.
        """
        target = Node("function", name_of(function), _place_of(function))
        edges: list[Edge] = []
        for port, argument in _ports(function, args, kwargs):
            edges.append(self._edge(argument, target, port))
        identity = (target.value, *((e.target_port, e.source, e.source_port) for e in edges))
        known = self._known(identity)
        if known is None:
            self._keep(identity, target, edges)
        self._made_by[future] = known or target

    # ---- one argument ------------------------------------------------------------------------

    def _edge(self, argument: Any, target: Node, port: str) -> Edge:
        if isinstance(argument, concurrent.futures.Future):
            whole, way = whole_of(argument)
            if whole not in self._made_by:
                raise GraphError(
                    f"the argument {port!r} of {target.name} is a future of none of the calls that "
                    "are drawn: draw all calls by one executor"
                )
            return Edge(self._made_by[whole], target, port, way)
        if isinstance(argument, (list, tuple)) and _has_future(argument):
            items = [(str(index), part) for index, part in enumerate(argument)]
            return Edge(self._container(argument, _GET_LIST, items), target, port)
        if isinstance(argument, dict) and _has_future(list(argument.values())):
            items = [(str(name), part) for name, part in argument.items()]
            return Edge(self._container(argument, _GET_DICT, items), target, port)
        if isinstance(argument, (dict, set, frozenset)) and _has_future(list(argument)):
            raise GraphError(
                f"the argument {port!r} of {target.name} holds a future in a set, or as a key of a "
                "dictionary, where no edge can lead: use a list"
            )
        return Edge(self._input(argument, port), target, port)

    def _container(self, container: Any, place: str, items: Sequence[tuple[str, Any]]) -> Node:
        """Return the node of a list or a dictionary with results in it."""
        shown = ["$" if _has_future([part]) else part for _, part in items]
        name = str(shown if place is _GET_LIST else dict(zip(container, shown, strict=True)))
        node = Node("function", name, place)
        edges = [self._edge(part, node, port) for port, part in items]
        identity = (place, *((edge.target_port, edge.source, edge.source_port) for edge in edges))
        return self._known(identity) or self._keep(identity, node, edges)

    def _input(self, value: Any, port: str) -> Node:
        identity = _identity(value)
        return self._known(identity) or self._keep(identity, Node("input", port, value), ())

    def _known(self, identity: Any) -> Node | None:
        return self._same.get(identity)

    def _keep(self, identity: Any, node: Node, edges: Sequence[Edge]) -> Node:
        if self.exportable:
            _node_record(node, 0)
            for edge in edges:
                _item_port(edge)
        self._same[identity] = node
        self.nodes.append(node)
        self.edges.extend(edges)
        return node

    # ---- the export --------------------------------------------------------------------------

    def as_json(self) -> str:
        """Return the workflow in the Python Workflow Definition's format.

        Raises
        ------
        GraphError
            Something in it cannot be said in that format.
        """
        taken = {edge.source for edge in self.edges}
        functions = [node for node in self.nodes if node.kind == "function"]
        inputs = [node for node in self.nodes if node.kind == "input" and node in taken]
        ordered = [*functions, *inputs]
        ids = {node: index for index, node in enumerate(ordered)}
        nodes = [_node_record(node, ids[node]) for node in ordered]
        edges = [
            _edge_record(ids[e.source], _item_port(e), ids[e.target], e.target_port)
            for e in self.edges
        ]
        ends = [node for node in functions if node not in taken]
        for number, end in enumerate(ends, 1):
            name = "result" if len(ends) == 1 else f"result_{number}"
            nodes.append({"id": len(nodes), "type": "output", "name": name})
            edges.append(_edge_record(ids[end], None, len(nodes) - 1, None))
        return json.dumps({"version": _VERSION, "nodes": nodes, "edges": edges}, indent=4)


def _ports(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Yield the arguments of a call by the names of the parameters."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # of some builtins nobody knows it
        yield from ((f"arg{index}", argument) for index, argument in enumerate(args))
        yield from kwargs.items()
        return
    for name, argument in signature.bind(*args, **kwargs).arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            yield from argument.items()
        else:
            yield name, argument


def _has_future(parts: Sequence[Any]) -> bool:
    """Whether there is a future in lists and dictionaries, however deep."""
    return any(
        isinstance(part, concurrent.futures.Future)
        or (isinstance(part, (list, tuple)) and _has_future(part))
        or (isinstance(part, dict) and _has_future(list(part.values())))
        for part in parts
    )


def _identity(value: Any) -> Any:
    """Return what equal inputs have in common: they are one node."""
    try:
        return "input", type(value), json.dumps(_plain(value))
    except (TypeError, ValueError):
        return "input", type(value), id(value)  # the node keeps the value, so the id stays true


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: arrays as lists, however deep."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    return value


def _place_of(function: Any) -> str:
    """Return where a function can be imported from."""
    name = getattr(function, "__qualname__", None) or repr(function)
    return f"{getattr(function, '__module__', None)}.{name}"


def _node_record(node: Node, number: int) -> dict[str, Any]:
    if node.kind == "function":
        if not all(part.isidentifier() for part in node.value.split(".")):
            raise GraphError(
                f"{node.value} cannot be exported: a workflow names its functions, and this one "
                "cannot be imported by its name. Define it at the top of a module"
            )
        return {"id": number, "type": "function", "value": node.value}
    try:
        value = _plain(node.value)
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise GraphError(
            f"the argument {node.name!r}, of type {type(node.value).__qualname__}, cannot be "
            f"exported: JSON cannot hold it ({error}). Pass plain numbers, texts, lists"
        ) from None
    return {"id": number, "type": "input", "value": value, "name": node.name}


def _item_port(edge: Edge) -> str | None:
    if len(edge.source_port) > 1:
        raise GraphError(
            f"the argument {edge.target_port!r} of {edge.target.name} cannot be exported: it is "
            f"an item of an item of {edge.source.name}'s result, and a workflow has no port for it"
        )
    return str(edge.source_port[0]) if edge.source_port else None


def _edge_record(
    source: int, source_port: str | None, target: int, target_port: str | None
) -> dict[str, Any]:
    return {
        "target": target,
        "targetPort": target_port,
        "source": source,
        "sourcePort": source_port,
    }
