"""Flux: jobs are handed over, followed and ended through its Python bindings, in this process."""
