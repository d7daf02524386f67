"""What helps to test code that hands jobs to a batch system.

>>> from dask_batch.testing import FakeSlurm
>>> with FakeSlurm("/tmp/fake") as slurm:  # doctest: +SKIP
...     subprocess.run(["sinfo"], env={**os.environ, **slurm.environment()})
"""

from dask_batch.testing.batch import FakeBatch
from dask_batch.testing.fake_flux import FakeFlux
from dask_batch.testing.slurm import Call, FakeSlurm

__all__ = ["Call", "FakeBatch", "FakeFlux", "FakeSlurm"]
