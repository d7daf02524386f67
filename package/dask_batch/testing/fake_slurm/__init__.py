"""The programs of the fake Slurm: nothing but the standard library, and no import of the package.

A command starts in some 20 ms because it runs with ``python -I -S`` and reaches its modules by
relative imports, from a path entry of its own. Who does what:

=================  =========================================================================
``command``        a client command: writes down the call, suffers the faults, asks and prints
``sacct``          answers from the accounting file, as slurmdbd does while slurmctld is away
``controller``     slurmctld: one process, one thread; takes requests, looks at the clock
``sbatch`` ...     what the controller does for each command
``queue``          the jobs, and each change of their states
``step``           slurmstepd: one process per job; runs the script, writes down its end
=================  =========================================================================
"""
