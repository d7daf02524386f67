"""Long-lived workers: processes that keep their state and take one task after another.

::

    queue ── WorkerPool ── socket ── keeper ── workbench     (job/keeper.py, job/workbench.py)
                 │
                 └── a launcher that starts the keepers: processes, steps, batch jobs
"""
