"""A dataframe: twelve files are read, grouped and joined.

Touch one of the files and run again: its branch runs, the others come from the cache.
"""

import pathlib

import dask.dataframe as dd
import pandas as pd

from dask_batch import cluster_get

FOLDER = pathlib.Path("measurements")


def write_files():
    """Write a file for each month, unless they are there."""
    FOLDER.mkdir(exist_ok=True)
    for month in range(1, 13):
        path = FOLDER / f"{month:02}.csv"
        if not path.exists():
            rows = range(100 * month)
            frame = pd.DataFrame(
                {"station": [i % 5 for i in rows], "value": [i * 0.5 for i in rows]}
            )
            frame.to_csv(path, index=False)


if __name__ == "__main__":
    write_files()
    frame = dd.read_csv(str(FOLDER / "*.csv"))
    names = pd.DataFrame({"station": range(5), "name": ["north", "east", "south", "west", "top"]})
    joined = frame.merge(names, on="station")
    means = joined.groupby("name").value.mean()
    # Dask records no annotations for dataframes; rules by the names of its layers do the same.
    rules = {"read*": {"memory_max": 0.5}}
    print(means.compute(scheduler=cluster_get, resource_rules=rules).sort_index())
