"""A pipeline of delayed calls whose stages ask for different resources."""

import dask

from dask_batch import cluster_get


@dask.delayed
def load(day):
    """Stand in for reading one day of measurements."""
    return [(day * 31 + hour * 7) % 100 for hour in range(24)]


@dask.delayed
def calibrate(values, offset):
    return [value - offset for value in values]


@dask.delayed
def fit(days):
    """The heavy step: it gets more CPUs and more memory than the others."""
    values = [value for day in days for value in day]
    return sum(values) / len(values)


days = []
for day in range(7):
    # What is annotated here reaches the batch system: one CPU, ten minutes.
    with dask.annotate(resources={"run_time_max": 600}):
        days.append(calibrate(load(day), 5))

with dask.annotate(resources={"cores": 2, "memory_max": 0.5}, priority=10):
    result = fit(days)

if __name__ == "__main__":
    print(f"mean over {len(days)} days: {result.compute(scheduler=cluster_get):.3f}")
