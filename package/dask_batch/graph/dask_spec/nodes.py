"""One node of a Dask graph becomes one expression of :mod:`dask_batch.spec`.

Fused nodes are kept as they are, as a :class:`~dask_batch.spec.Let`; what matters is to find out
which tasks its parts were before, because keys must not depend on fusion. Two kinds of local
names occur. Linear fusion (and that of DataFrames) keeps the keys that the tasks had. Blockwise
fusion of arrays names a part after its layer and the dimensions it runs over:
``transpose-<token>_.1_.0`` in the task ``("add-<token>", 2, 5)`` is the block of ``transpose``
whose index is (dimension .1, dimension .0) of the block of ``add``, which is (5, 2) if ``add``
has the dimensions (.0, .1). Only the layer knows that order.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dask._task_spec import (
    Alias,
    DataNode,
    Dict,
    GraphNode,
    NestedContainer,
    Task,
    TaskRef,
    _execute_subgraph,
    _identity_cast,
    _instantiate_named_tuple,
)
from dask.blockwise import Blockwise

from dask_batch.spec import Build, Call, Expression, Let, Origin, Ref, references

__all__ = ["Block", "expression", "substitute"]

_CONTAINERS: Final = (list, tuple, set, frozenset)
# How dask 2025.4 calls a function with keyword arguments; later versions need nothing for it.
# (``dask.delayed`` as an attribute is the function.)
_APPLY: Final = getattr(importlib.import_module("dask.delayed"), "_apply2", object())


@dataclass(frozen=True, slots=True)
class Block:
    """Where a node stands: its name, and what the layers of the graph know about its index."""

    name: Hashable
    layers: Mapping[Any, Any]

    @property
    def layer(self) -> Blockwise | None:
        """The blockwise layer that this block belongs to, if there is one."""
        if isinstance(self.name, tuple) and self.name:
            found = self.layers.get(self.name[0])
            if isinstance(found, Blockwise) and len(found.output_indices) == len(self.name) - 1:
                return found
        return None

    def part(self, local: Hashable) -> Block:
        """Say which task a local name inside of this (fused) node was."""
        if not isinstance(self.name, tuple) or self._is_key(local):
            return Block(local, self.layers)
        if local == self.name[0]:
            return self
        for name, dimensions in _splits(str(local)):
            found = self._block(name, dimensions)
            if found is not None:
                return Block(found, self.layers)
        # Its layer is not at hand. No index of a real block has a negative number in it.
        mark = tuple(-1 - int(d[1:]) for d in str(local).split("_") if _is_dimension(d))
        return Block((local, *self.name[1:], *mark), self.layers)

    def _is_key(self, local: Hashable) -> bool:
        """Whether a local name is a key as it stands: linear fusion leaves them alone."""
        if isinstance(local, tuple):
            return True
        layer = self.layers.get(local)
        return layer is not None and not isinstance(layer, Blockwise) and local in layer

    def _block(self, name: str, dimensions: list[str]) -> tuple[Any, ...] | None:
        own, other = self.layer, self.layers.get(name)
        if own is None or not isinstance(other, Blockwise):
            return None
        if len(other.output_indices) != len(dimensions):
            return None
        coordinates = dict(zip(map(str, own.output_indices), self.name[1:], strict=True))  # type: ignore[index]
        if not coordinates.keys() >= set(dimensions):
            return None
        # A dimension of one block is broadcast: every index means that block.
        return name, *(
            0 if other.dims[index] == 1 else coordinates[dimension]
            for index, dimension in zip(other.output_indices, dimensions, strict=True)
        )


def _is_dimension(text: str) -> bool:
    return text[:1] == "." and text[1:].isdecimal()


def _splits(local: str) -> Iterator[tuple[str, list[str]]]:
    """Yield all ways to read a local name as a layer's name and dimensions."""
    if local.endswith("_"):
        yield local[:-1], []
    pieces = local.split("_")
    for count in range(1, len(pieces)):
        yield "_".join(pieces[:-count]), pieces[-count:]


def expression(node: Any, block: Block) -> Expression:
    """Translate a node, or an argument of one."""
    if isinstance(node, TaskRef):
        return Ref(node.key)
    if not isinstance(node, GraphNode):
        return node
    if isinstance(node, Alias):
        return Ref(node.target)
    if isinstance(node, DataNode):
        return node.value
    if isinstance(node, NestedContainer):
        kind = dict if isinstance(node, Dict) else node.klass
        return Build(kind, tuple(expression(item, block) for item in node.args))
    if not isinstance(node, Task):
        raise TypeError(f"unknown kind of node in a Dask graph: {type(node).__name__}")
    if node.func is _execute_subgraph:
        return _let(node, block)
    return _call(node, block)


def _call(node: Task, block: Block) -> Expression:
    args = tuple(expression(argument, block) for argument in node.args)
    if node.func is NestedContainer.to_container:  # a bag's optimiser makes tasks of containers
        made = node.kwargs["constructor"]
        return Build(made if isinstance(made, type) else dict, args)
    if node.func is _identity_cast:
        return Build(node.kwargs["typ"], args)
    if isinstance(node.func, functools.partial) and node.func.func is _instantiate_named_tuple:
        # In a job, Dask's own function would import Dask.
        items, options = args
        if isinstance(options, Build) and not options.items:
            fields = items.items if isinstance(items, Build) else tuple(items)
            return Call(node.func.args[0], fields)
    if len(args) == 1 and not node.kwargs and isinstance(args[0], Build):
        made = _container(node.func, args[0])
        if made is not None:
            return made
    kwargs = {name: expression(value, block) for name, value in node.kwargs.items()}
    if node.func is _APPLY and isinstance(given := _dictionary(kwargs["dask_kwargs"]), dict):
        return Call(args[0], args[1:], given)
    return Call(node.func, args, kwargs)


def _container(kind: Any, members: Build) -> Build | None:
    """Read delayed's way to write a container: ``set([a, b])``, ``dict([[k, v]])``."""
    if members.kind not in (list, tuple):
        return None
    if any(kind is one for one in _CONTAINERS):
        return Build(kind, members.items)
    pairs = members.items
    if kind is dict and all(isinstance(p, Build) and len(p.items) == 2 for p in pairs):
        return Build(dict, tuple(itertools.chain.from_iterable(pair.items for pair in pairs)))
    return None


def _dictionary(made: Expression) -> Expression:
    """Read a dictionary of keyword arguments, if it is plain to see."""
    if isinstance(made, Build) and made.kind is dict:
        return dict(zip(made.items[::2], made.items[1::2], strict=True))
    return made


def _let(node: Task, block: Block) -> Expression:
    inner, wanted, names, *outer = node.args
    bindings: list[tuple[Hashable, Expression]] = []
    origins: list[Origin | None] = []
    given: dict[Hashable, Expression] = {}
    for name, argument in zip(names, outer, strict=True):
        translated = expression(argument, block)
        if _is_work(translated):
            bindings.append((name, translated))
            origins.append(None)
        else:
            given[name] = translated
    bound = {name for name, _ in bindings}
    for name, origin, translated in _parts(inner, wanted, given.keys() | bound, block):
        body = substitute(translated, given)
        if _is_work(body):
            bindings.append((name, body))
            origins.append(origin)
        else:
            given[name] = body  # no more a task here than it is by itself
    result = given.get(wanted, Ref(wanted))
    return Let(tuple(bindings), result, tuple(origins)) if bindings else result


def _is_work(translated: Expression) -> bool:
    """Whether an expression is more than an alias or plain data."""
    return isinstance(translated, (Call, Build, Let))


def _parts(
    inner: Mapping[Hashable, GraphNode], wanted: Hashable, done: set[Hashable], block: Block
) -> Iterator[tuple[Hashable, Origin, Expression]]:
    """Yield the parts of a fused node, each after those it needs."""
    translated: dict[Hashable, tuple[Origin, Expression]] = {}
    stack = [wanted]
    while stack:
        name = stack[-1]
        if name in done:
            stack.pop()
            continue
        if name not in translated:
            part = block.part(name)
            translated[name] = Origin(part.name), expression(inner[name], part)
        missing = [d for d in references(translated[name][1]) if d in inner and d not in done]
        if missing:
            stack += reversed(missing)
        else:
            stack.pop()
            done.add(name)
            yield name, *translated[name]


def substitute(target: Expression, given: Mapping[Hashable, Expression]) -> Expression:
    """Put expressions in the place of references, outside of the scopes that rebind them."""
    if not given:
        return target
    if isinstance(target, Ref):
        return given.get(target.name, target)
    if isinstance(target, Call):
        return Call(
            target.function,
            tuple(substitute(argument, given) for argument in target.args),
            {name: substitute(value, given) for name, value in target.kwargs.items()},
        )
    if isinstance(target, Build):
        return Build(target.kind, tuple(substitute(item, given) for item in target.items))
    if isinstance(target, Let):
        return _substitute_let(target, given)
    return target


def _substitute_let(target: Let, given: Mapping[Hashable, Expression]) -> Let:
    bindings: list[tuple[Hashable, Expression]] = []
    visible = dict(given)
    for name, bound in target.bindings:
        bindings.append((name, substitute(bound, visible)))
        visible.pop(name, None)
    return Let(tuple(bindings), substitute(target.result, visible), target.origins)
