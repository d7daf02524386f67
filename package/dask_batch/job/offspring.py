"""Processes that a task starts by *spawn* or *forkserver* find the task's code, as forks do.

For such a process Python runs the client's script once more, or the module that it was started as:
what a pool is to call is referred to by name. A job has no script, and files may have changed since
the code was hashed. So ``__main__`` is said to be :mod:`.main_of_offspring`: a module that loads
what travelled with the task.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Final

from dask_batch.cache.definitions import Definition
from dask_batch.code import pickling
from dask_batch.code.namespaces import TravelledModule
from dask_batch.job.inputs import Inputs
from dask_batch.job.opening import open_task
from dask_batch.job.surroundings import TASK_VARIABLE

__all__ = ["announce", "travelled_main"]

_MAIN: Final = "dask_batch.job.main_of_offspring"


def announce(definition: Definition) -> None:
    """Say where processes that this one starts find the code of the one task that it runs."""
    os.environ[TASK_VARIABLE] = json.dumps([str(definition.path), definition.index])
    sys.modules["__main__"].__spec__ = ModuleSpec(_MAIN, None)


def travelled_main() -> dict[str, Any]:
    """Install the modules that travelled with the task, and return what its ``__main__`` has.

    Raises
    ------
    RefusedError
        The task's definition cannot be read any more.
    """
    path, index = json.loads(os.environ[TASK_VARIABLE])
    cache, definition = open_task(Path(path), index)
    grace_s = float(definition.common["input_grace_s"])
    inputs = Inputs(cache, definition.header["input_claims"], grace_s)
    pickling.loads(
        definition.data, definition.buffers, persistent_load=inputs.referenced, install=True
    )
    main = sys.modules.get("__main__")
    if not isinstance(main, TravelledModule):
        return {}
    return {name: value for name, value in vars(main).items() if not name.startswith("__")}
