"""User modules after their journey: namespaces that hold what was reached, and nothing else."""

from __future__ import annotations

import builtins
from types import ModuleType
from typing import Any

__all__ = ["TravelledModule", "travelled"]


class TravelledModule(ModuleType):
    """A module of the user's with exactly the attributes that travelled."""

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__.get("__name__", "")
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(f"module {own!r} has no attribute {name!r}")
        raise AttributeError(
            f"module {own!r} has no attribute {name!r} here: only what the task's functions name "
            f"travels with them. Write {own.rpartition('.')[2]}.{name} in the function's body (or "
            "pass the object as an argument), so that it is seen and goes along."
        )


def travelled(name: str, *, package: str | None, is_package: bool) -> TravelledModule:
    """Make an empty namespace in which relative imports resolve as they did at home."""
    module = TravelledModule(name)
    module.__package__ = package
    if is_package:
        module.__path__ = []
    module.__dict__["__builtins__"] = builtins
    return module
