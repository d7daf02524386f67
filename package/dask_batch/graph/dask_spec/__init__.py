"""Everything private of Dask, in one place: what it hands a scheduler becomes tasks.

What arrives is an expression, a high-level graph or a dict, in any of several generations of
formats. :mod:`.delivery` makes a low-level graph of it without letting Dask's optimiser throw away
what we still need (annotations, finalize tasks, the names of fused blocks), :mod:`.nodes`
translates single nodes, and :mod:`.ingest` puts the graph together.
"""

from dask_batch.graph.dask_spec.ingest import Graph, ingest, values

__all__ = ["Graph", "ingest", "values"]
