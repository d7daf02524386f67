"""An array, block by block as jobs; on Slurm where there is one, else on the local queue."""

import dask
import dask.array as da

from dask_batch import cluster_get

# A seed makes the blocks the same in the next run: without one there is nothing to come back to.
x = da.random.default_rng(seed=42).normal(size=(2000, 2000), chunks=(1000, 1000))
spread = (x - x.mean(axis=0)).std()
largest = abs(x).max()

if __name__ == "__main__":
    # Both collections are one graph: what they share runs once.
    with dask.config.set({"batch.resource-dict": {"run_time_max": 600}}):
        spread, largest = dask.compute(spread, largest, scheduler=cluster_get)
    print(f"spread {spread:.4f}, largest {largest:.4f}")
