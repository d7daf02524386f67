"""Slurm, through its client commands."""
