"""How objects are taken apart: one handler for each kind, chosen by type.

A handler takes an object and the :class:`Shaper` that it was chosen by, and returns a
:class:`~dask_batch.graph.shape.Shape`. Handlers for a library's types live in a module that is
only imported once an object of that library turns up, and finds the library in ``sys.modules``:
nothing is imported for the sake of a value that is not there.
"""

from dask_batch.graph.handlers.choice import Handler, Shaper

__all__ = ["Handler", "Shaper"]
