"""What was said about tasks (``dask.annotate``, rules), brought to each of them.

Annotations belong to the tasks a user made. Where Dask has fused several of them into one, that
one gets what was said of each, merged.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from dask.utils import key_split

from dask_batch.spec import Expression, Let, Origin

__all__ = ["Annotations", "merge"]


@dataclass(frozen=True, slots=True)
class Annotations:
    """Everything that was said about the tasks of a graph.

    Attributes
    ----------
    by_key
        Annotations of single tasks.
    rules
        Resources by pattern of key prefix; a later rule goes before an earlier one.
    defaults
        Annotations for every task.
    """

    by_key: Mapping[Hashable, Mapping[str, Any]] = field(default_factory=dict)
    rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def of(self, name: Hashable) -> Mapping[str, Any]:
        """Say what applies to a task of this name: its annotations, then rules, then defaults."""
        own = self.by_key.get(name)
        if not self.rules:
            return _over(own, self.defaults)
        prefix = key_split(name)
        below = self.defaults
        for pattern, resources in self.rules.items():
            if fnmatchcase(prefix, pattern):
                below = _over({"resources": resources}, below)
        return _over(own, below)

    def apply(self, name: Hashable, body: Expression) -> tuple[Expression, Mapping[str, Any]]:
        """Annotate the parts of a fused task, and give what applies to the whole."""
        if not isinstance(body, Let):
            return body, self.of(name)
        body = self._annotate(body)
        said = [origin.annotations for origin in _origins(body)]
        return body, merge(self.of(name), *said)

    def _annotate(self, body: Expression) -> Expression:
        if isinstance(body, Let):
            return Let(
                tuple((name, self._annotate(bound)) for name, bound in body.bindings),
                body.result,
                tuple(o and Origin(o.name, self.of(o.name)) for o in body.origins),
            )
        return body


def _origins(body: Expression) -> Iterator[Origin]:
    if isinstance(body, Let):
        yield from (origin for origin in body.origins if origin is not None)
        for _, bound in body.bindings:
            yield from _origins(bound)


def _over(above: Mapping[str, Any] | None, below: Mapping[str, Any]) -> Mapping[str, Any]:
    """Let the more specific annotations go before the general ones, resource by resource."""
    if not above or not below:
        return above or below
    both = {**below, **above}
    if "resources" in above and "resources" in below:
        both["resources"] = {**below["resources"], **above["resources"]}
    return both


def merge(*said: Mapping[str, Any]) -> Mapping[str, Any]:
    """Merge what was said of tasks that have become one.

    Of numbers the largest is taken, of ``cache`` whether all allow it, dictionaries are united by
    the same rules, and of anything else the first is taken: that of the task seen outside.
    """
    distinct: list[Mapping[str, Any]] = []
    for one in said:
        if one and one not in distinct:
            distinct.append(one)
    if len(distinct) < 2:
        return distinct[0] if distinct else {}
    merged: dict[str, Any] = {}
    for one in distinct:
        for name, value in one.items():
            merged[name] = _both(name, merged[name], value) if name in merged else value
    return merged


def _both(name: str, first: Any, second: Any) -> Any:
    if name == "cache":
        return bool(first) and bool(second)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return merge(first, second)
    if _is_number(first) and _is_number(second):
        return max(first, second)
    return first


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
