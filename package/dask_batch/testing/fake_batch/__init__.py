"""Behind :class:`dask_batch.testing.FakeBatch`: one queue, and the commands of several systems.

``queue.py`` is the queue, whose state is one file behind one lock; there is no daemon. Whoever
changes something (a command, or the ``step.py`` that has run a job to its end) starts what may
start then. ``pbs.py``, ``sge.py``, ``lsf.py`` and ``moab.py`` read the arguments of their commands
and print what the real ones do. Nothing here imports more than the standard library.
"""
