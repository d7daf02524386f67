"""A climatology with xarray, a job for each block of time."""

import numpy as np
import pandas as pd
import xarray as xr

from dask_batch import cluster_get

time = pd.date_range("2001-01-01", periods=730, freq="D")
rng = np.random.default_rng(0)
season = 10 * np.sin(2 * np.pi * np.asarray(time.dayofyear) / 365.25)
temperature = xr.DataArray(
    season[:, None, None] + rng.normal(size=(time.size, 4, 8)),
    coords={"time": time, "lat": np.linspace(-60, 60, 4), "lon": np.arange(0, 360, 45)},
    dims=("time", "lat", "lon"),
    name="temperature",
).chunk(time=182)

if __name__ == "__main__":
    zonal = temperature.mean("lon")
    by_season = zonal.groupby("time.season").mean()
    print(by_season.compute(scheduler=cluster_get).round(2).to_pandas())
