"""What executorlib's users know by name, as far as it has a meaning here.

``from executorlib import X`` becomes ``from dask_batch import X``, and ``executorlib.api`` becomes
``dask_batch.api``: see ``docs/migrating-from-executorlib.md``.
"""
