"""Dask's own objects: collections by the keys of their tasks, fragments of files by their files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dask_batch.graph.shape import NOTHING, Facts, Shape, unstable

if TYPE_CHECKING:
    from dask_batch.graph.handlers.choice import Handler, Shaper

__all__ = ["choose"]


def choose(cls: type) -> Handler | None:
    """Return the handler of a type of Dask's."""
    if cls.__name__ == "FragmentWrapper":
        return _fragment
    if hasattr(cls, "__dask_graph__") and hasattr(cls, "__dask_keys__"):
        return _collection
    return None


def _fragment(obj: Any, _: Shaper) -> Shape:
    """Unpack what may or may not have been packed already."""
    return Shape("fragment", (), (obj.fragment,))


_ABOUT: Final = ("chunks", "dtype", "divisions", "_meta", "npartitions")


def _collection(obj: Any, shaper: Shaper) -> Shape:
    """Give a collection that is a value the keys that its tasks would have."""
    from dask_batch.graph.dask_spec import ingest
    from dask_batch.graph.keys import Keys

    graph = ingest(obj.__dask_graph__(), list(obj.__dask_keys__()))
    keyed = Keys(key_versions=shaper.key_versions, nonce="").of(graph.tasks, graph.required)
    if any(keyed[name].ephemeral for name in graph.required):
        return unstable("collection", f"a {type(obj).__name__} has tasks without stable content")
    facts = NOTHING
    for found in keyed.values():
        facts = facts.joined(Facts((), found.libraries, found.inputs, found.preload))
    # Asked of the class: a Delayed has every attribute, and each is another Delayed.
    about = [getattr(obj, name) for name in _ABOUT if hasattr(type(obj), name)]
    finish = obj.__dask_postcompute__()
    data = tuple(keyed[name].key for name in graph.required)
    parts = (type(obj), about, finish, [*graph.literals.values()])
    return Shape("collection", data, parts, facts=facts)
