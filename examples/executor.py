"""Plain function calls as jobs, with futures as arguments of other calls."""

import concurrent.futures
import shutil

from dask_batch import SingleNodeExecutor, SlurmClusterExecutor


def add(a, b):
    return a + b


def largest(values):
    return max(values)


if __name__ == "__main__":
    Executor = SlurmClusterExecutor if shutil.which("sbatch") else SingleNodeExecutor
    with Executor(cache_directory="executor_cache", resource_dict={"run_time_max": 600}) as exe:
        # Each call waits for the one before, at the batch system itself.
        future = 0
        for i in range(4, 8):
            future = exe.submit(add, i, future)
        print("the sum:", future.result())

        # Futures may stand anywhere in the arguments.
        sums = [exe.submit(add, i, i) for i in range(5)]
        print("the largest:", exe.submit(largest, {"of": sums}["of"]).result())
        for done in concurrent.futures.as_completed(sums):
            print("job", done.job_id, "returned", done.result())
