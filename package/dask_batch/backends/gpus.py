"""Which GPUs the jobs of a client may have: by its environment, this machine, and what it declares.

What the environment lists counts first, as it does for programs that use GPUs themselves. Where it
lists none, the machine is looked at: devices of NVIDIA (``/dev/nvidia*``, ``nvidia-smi``), then of
AMD (ROCr's topology). What is declared narrows the one, and goes before the other: only so can
devices of other makers be known.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from dask_batch.backends.command import run
from dask_batch.errors import BackendError, ConfigurationError
from dask_batch.job.devices import VARIABLES, listed

__all__ = ["NO_DEVICES", "Declared", "Devices", "declared", "visible"]

_DEVICES = Path("/dev")
_TOPOLOGY = Path("/sys/class/kfd/kfd/topology/nodes")
_LIST_S: Final = 30.0

_ROCR: Final = "ROCR_VISIBLE_DEVICES"
_HIP: Final = "HIP_VISIBLE_DEVICES"
_USUAL: Final = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices that a job may be given some of."""

    variable: str = ""
    """In which a program finds them, one of :data:`dask_batch.job.devices.VARIABLES`; empty:
    nobody manages devices, and programs see what their client sees."""
    names: tuple[str, ...] = ()
    """Numbers, or unique ids."""


NO_DEVICES: Final = Devices()


@dataclass(frozen=True, slots=True)
class Declared:
    """What a user says of the GPUs of this machine.

    Attributes
    ----------
    count
        How many there are, or how many of those that are visible jobs may have; 0: the queue
        leaves GPUs alone.
    names
        Which there are; empty: the first ``count``.
    variable
        In which programs find them; empty: that of the devices that are here.
    """

    count: int
    names: tuple[str, ...] = ()
    variable: str = ""


def declared(value: Any) -> Declared | None:
    """Read a declaration: a number, a list of devices, or ``{variable: one of these}``.

    Raises
    ------
    ValueError
        It is none of these: says what it must be.
    """
    if value is None:
        return None
    variable = ""
    if isinstance(value, Mapping):
        if len(value) != 1 or not set(value) <= set(VARIABLES):
            raise ValueError(f"must name one variable of {', '.join(VARIABLES)}")
        ((variable, value),) = value.items()
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return Declared(value, variable=variable)
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, (list, tuple)):
        raise ValueError("must be a number of GPUs, or a list of their numbers or ids")
    names = tuple(str(name).strip() for name in value)
    if len(set(names)) < len(names) or listed(",".join(names)) != names:
        raise ValueError("must be a list of numbers or ids, each once")
    return Declared(len(names), names, variable)


def visible(environment: Mapping[str, str], said: Declared | None = None) -> Devices:
    """Return the devices that jobs with this environment may have.

    Parameters
    ----------
    environment
        The client's.
    said
        What it declares.

    Raises
    ------
    ConfigurationError
        It declares more than its environment lets it see.
    """
    if said is not None and said.count == 0:
        return NO_DEVICES
    given = _by_environment(environment, said)
    if said is None:
        return _on_this_machine() if given is None else given
    if given is not None:
        return Devices(given.variable, _narrowed(given, said))
    variable = said.variable or _on_this_machine().variable or _USUAL
    return Devices(variable, said.names or tuple(map(str, range(said.count))))


def _by_environment(environment: Mapping[str, str], said: Declared | None) -> Devices | None:
    """Return what the environment lists; None if it says nothing."""
    if said is not None and said.variable:
        found = [said.variable] if said.variable in environment else []
    elif _ROCR in environment and (_HIP in environment or _on_this_machine().variable == _ROCR):
        return _by_rocr(environment)
    else:
        found = [variable for variable in VARIABLES if variable in environment]
    return Devices(found[0], listed(environment[found[0]])) if found else None


def _by_rocr(environment: Mapping[str, str]) -> Devices:
    """Return what is left of ROCr's list where HIP, which counts in that, has one of its own."""
    names = listed(environment[_ROCR])
    if _HIP not in environment:
        return Devices(_ROCR, names)
    chosen = [int(n) for n in listed(environment[_HIP]) if n.isdecimal() and int(n) < len(names)]
    return Devices(_ROCR, tuple(names[number] for number in chosen))


def _narrowed(given: Devices, said: Declared) -> tuple[str, ...]:
    """Return those of the devices of the environment that are declared."""
    names = said.names or given.names[: said.count]
    if not set(names) <= set(given.names) or len(names) < said.count:
        wanted = ",".join(said.names) or str(said.count)
        raise ConfigurationError(
            f"local_gpus (batch.local-gpus) declares {wanted}, but this process sees only "
            f"{given.variable}={','.join(given.names)!r}: declare fewer, or change the variable"
        )
    return names


@cache
def _on_this_machine() -> Devices:
    """Look for devices; there are none if there is nothing to be seen of them."""
    if names := _nvidia():
        return Devices(_USUAL, names)
    if names := _amd():
        return Devices(_ROCR, names)
    return NO_DEVICES


def _nvidia() -> tuple[str, ...]:
    """Return the devices of NVIDIA: numbers, or the ids of the instances into which they are cut.

    The files have the numbers of the whole machine, CUDA counts those that this process may open.
    """
    files = [path for path in _DEVICES.glob("nvidia[0-9]*") if os.access(path, os.R_OK | os.W_OK)]
    if not files and not (_DEVICES / "dxg").exists():  # the latter: Linux within Windows
        return ()
    program = shutil.which("nvidia-smi")
    if program is None:
        return tuple(map(str, range(len(files))))
    try:
        return _listed_by_driver(run([program, "-L"], timeout_s=_LIST_S, env=os.environ).stdout)
    except BackendError:  # a driver that does not answer runs nothing either
        return ()


def _listed_by_driver(text: str) -> tuple[str, ...]:
    """Read ``nvidia-smi -L``: a line for each GPU, below it one for each of its instances."""
    names: list[str] = []
    count = 0
    for line in text.splitlines():
        if re.match(r"GPU \d+:", line):
            names.append(str(count))
            count += 1
        elif instance := re.search(r"\(UUID: (MIG-[^)]+)\)", line):
            if names and names[-1].isdecimal():
                names.pop()  # cut into instances, it is not to be had as a whole
            names.append(instance[1])
    return tuple(names)


def _amd() -> tuple[str, ...]:
    """Return the devices of AMD that this process may use, numbered as ROCr does."""
    count = 0
    for node in sorted(_TOPOLOGY.glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            words = (node / "properties").read_text().split()
        except OSError:  # the kernel shows only what this process's control group lets it use
            continue
        properties = dict(zip(words[::2], words[1::2], strict=False))
        render = _DEVICES / "dri" / f"renderD{properties.get('drm_render_minor', '')}"
        if properties.get("simd_count", "0") != "0" and os.access(render, os.R_OK | os.W_OK):
            count += 1
    return tuple(map(str, range(count)))
