"""A first graph: a dozen samples are drawn, measured one by one, and summed up.

Run it twice: the second time nothing runs, because everything is in the cache. Kill it in the
middle: the jobs go on without it, and the next run finds what they have done.
"""

import random
import time

import dask

from dask_batch import cluster_get

SAMPLES = 12


@dask.delayed
def draw(seed):
    """Draw a sample. It takes half a second, to be seen."""
    time.sleep(0.5)
    generator = random.Random(seed)
    return [generator.gauss(0, 1) for _ in range(10_000)]


@dask.delayed
def measure(sample):
    """Return the mean and the variance of a sample."""
    mean = sum(sample) / len(sample)
    return mean, sum((x - mean) ** 2 for x in sample) / (len(sample) - 1)


@dask.delayed
def summarise(measurements):
    """Return the averages over all samples."""
    means, variances = zip(*measurements, strict=True)
    return {"mean": sum(means) / len(means), "variance": sum(variances) / len(variances)}


if __name__ == "__main__":
    graph = summarise([measure(draw(seed)) for seed in range(SAMPLES)])
    began = time.perf_counter()
    (result,) = dask.compute(graph, scheduler=cluster_get)
    print(f"mean {result['mean']:+.4f}, variance {result['variance']:.4f}")
    print(f"{time.perf_counter() - began:.1f} s")
