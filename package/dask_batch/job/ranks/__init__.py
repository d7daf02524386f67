"""A task of several MPI ranks: a leader starts them, watches over them, and tells how they ended.

The leader is the job's own process and does what every job does: it takes its turn, checks its
surroundings, waits for its inputs, records how the attempt ended. It is no rank itself. The ranks
are processes of ``python -m dask_batch.job.ranks``, started together by ``srun``, ``flux run`` or
``mpiexec``; the first of them reads, broadcasts, gathers and publishes. What else they have to say
to the leader goes through a directory of the cache (:mod:`.exchange`), so that a rank that raises
is heard even if all others wait for it in a collective call, for ever.
"""
