"""A Flux instance without Flux: it lives in this process, and runs real processes.

>>> from dask_batch.testing.fake_flux import FakeFlux
>>> with FakeFlux("/tmp/fake") as flux:  # doctest: +SKIP
...     backend = FluxBackend(flux)
"""

from dask_batch.testing.fake_flux.instance import FakeFlux

__all__ = ["FakeFlux"]
