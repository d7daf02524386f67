"""Batch systems that live in the client's own process, and end with it."""
