"""Batch systems that are known by their commands alone: PBS, Grid Engine, LSF, Torque, Moab."""
