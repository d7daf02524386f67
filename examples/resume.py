"""Hand a graph over, leave, and come back for the results.

python resume.py submit     hands over, and ends at once
python resume.py            waits for what is left, and prints the result
"""

import shutil
import sys
import time

import dask

from dask_batch import SingleNodeExecutor, SlurmClusterExecutor, status

CACHE = "resume_cache"


@dask.delayed
def simulate(temperature):
    time.sleep(2)
    return temperature, temperature**2 / 100


@dask.delayed
def table(rows):
    return "\n".join(f"{t:6.1f} K  {energy:8.3f}" for t, energy in rows)


graph = table([simulate(t) for t in (100.0, 200.0, 300.0, 400.0)])

if __name__ == "__main__":
    Executor = SlurmClusterExecutor if shutil.which("sbatch") else SingleNodeExecutor
    executor = Executor(cache_directory=CACHE)
    future = executor.compute(graph)
    if "submit" in sys.argv[1:]:
        executor.shutdown(wait=False)  # returns once everything has been handed over
        for run in status(CACHE):
            print(f"run {run.run}: {len(run.job_ids)} jobs on {run.backend}")
    else:
        print(future.result())
        executor.shutdown()
