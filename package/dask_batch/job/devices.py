"""Which GPUs a process sees: the variables that say so, and the share of each MPI rank.

CUDA, HIP, oneAPI and the like each read a variable with the devices that a program may use, by
number or by unique id. A batch system sets it for a job; where one process of several is to have
devices of its own, the list is cut.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final

from dask_batch.errors import ResourceError

__all__ = [
    "VARIABLES",
    "listed",
    "rank_on_node",
    "restricted",
    "seeing",
    "share",
    "unrestricted",
    "without_lists",
]

_ALL: Final = "DASK_BATCH_GPUS"
"""Set where a job was given some of several devices: all of them, with the variable they are in."""


_BELOW_HIP: Final = "ROCR_VISIBLE_DEVICES"
_HIP: Final = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
VARIABLES: Final = (
    *("CUDA_VISIBLE_DEVICES", _BELOW_HIP, "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"),
    *("ZE_AFFINITY_MASK", "ASCEND_RT_VISIBLE_DEVICES", "HABANA_VISIBLE_MODULES"),
    *("MUSA_VISIBLE_DEVICES", "NEURON_RT_VISIBLE_CORES", "TPU_VISIBLE_CHIPS"),
)
"""Those whose value is a list of devices: of NVIDIA, AMD (three), Intel, Huawei, Habana, Moore
Threads, Amazon, Google."""

_NONE: Final = frozenset({"-1", "NoDevFiles", "none", "void"})
"""What stands for no device, and for the end of a list: whatever comes behind is not seen."""

_RANKS_ON_NODE: Final = (
    *("SLURM_LOCALID", "FLUX_TASK_LOCAL_ID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"),
    *("MV2_COMM_WORLD_LOCAL_RANK", "PALS_LOCAL_RANKID"),
)


def listed(value: str) -> tuple[str, ...]:
    """Return the devices that the value of such a variable names.

    >>> listed("0, 2"), listed("GPU-1f2e"), listed(""), listed("1,-1,3")
    (('0', '2'), ('GPU-1f2e',), (), ('1',))
    """
    devices: dict[str, None] = {}
    for word in map(str.strip, value.split(",")):
        if not word or word in _NONE:
            break
        devices[word] = None
    return tuple(devices)


def seeing(environment: Mapping[str, str], variable: str, devices: Sequence[str]) -> dict[str, str]:
    """Return the variables with which a program sees these devices and no others.

    Parameters
    ----------
    environment
        What the program has else. HIP counts what ROCr shows it from 0: where the environment
        says something to both, HIP is told to take all of that.
    variable
        One of :data:`VARIABLES`.
    devices
        By number or by unique id; none: it sees none.

    Returns
    -------
    dict
        What to add to the environment.
    """
    given = {variable: ",".join(devices)}
    if variable == _BELOW_HIP:
        all_of_them = ",".join(map(str, range(len(devices))))
        given |= {name: all_of_them for name in _HIP if name in environment}
    return given


def restricted(
    environment: Mapping[str, str], variable: str, devices: Sequence[str], own: Sequence[str]
) -> dict[str, str]:
    """Return the variables with which a job sees only its own of several devices.

    :func:`unrestricted` takes it back for what a job hands over in its turn.
    """
    return {**seeing(environment, variable, own), _ALL: f"{variable}={','.join(devices)}"}


def unrestricted(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which all devices are seen of which this job was given some.

    What a job hands over is no part of it: it takes its own share of the machine.
    """
    before = dict(environment)
    variable, _, devices = before.pop(_ALL, "").partition("=")
    return {**before, **seeing(before, variable, listed(devices))} if variable else before


def without_lists(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without lists of devices, for a job on another machine.

    There the same numbers are other devices, which are perhaps another job's. That a program is to
    see none holds anywhere.
    """
    return {
        name: value
        for name, value in environment.items()
        if name not in VARIABLES or not listed(value)
    }


def share(visible: Mapping[str, str], rank: int, gpus_per_rank: int) -> dict[str, str]:
    """Return the variables with which one MPI rank sees its own devices.

    Parameters
    ----------
    visible
        The environment: of the job, or of the rank itself.
    rank
        Its number among the ranks on its node, from 0: see :func:`rank_on_node`.
    gpus_per_rank
        How many devices each rank has.

    Returns
    -------
    dict
        What to add to the rank's environment. Empty if ranks have no devices, if nothing says
        which there are, or if there are as many as one rank has: what started the ranks has
        shared them out already.

    Raises
    ------
    ResourceError
        There are too few.
    """
    if gpus_per_rank < 1:
        return {}
    given: dict[str, str] = {}
    for variable in VARIABLES:
        if variable not in visible or variable in given:
            continue
        devices = listed(visible[variable])
        if len(devices) != gpus_per_rank:
            mine = devices[rank * gpus_per_rank : (rank + 1) * gpus_per_rank]
            if len(mine) < gpus_per_rank:
                raise ResourceError(_too_few(variable, visible[variable], rank, gpus_per_rank))
            given |= seeing(_numbered_from_0(visible), variable, mine)
    return given


def _numbered_from_0(visible: Mapping[str, str]) -> dict[str, str]:
    """Return of HIP's variables those that count what ROCr shows it, rather than the machine's.

    Slurm sets all variables alike, for whatever the devices are; it does not set HIP's own.
    """
    hip = visible.get(_HIP[0])
    return {name: visible[name] for name in _HIP if hip is not None and visible.get(name) == hip}


def _too_few(variable: str, value: str, rank: int, gpus_per_rank: int) -> str:
    return (
        f"rank {rank} of its node is to have {gpus_per_rank} GPUs of its own after those of the "
        f"ranks before it, but the job sees {len(listed(value))} ({variable}={value!r}): ask for "
        "gpus_per_core GPUs for each of cores ranks, on nodes that have as many"
    )


def rank_on_node(environment: Mapping[str, str] | None = None) -> int | None:
    """Return the number of this rank among those on its node, as whoever started it says.

    Parameters
    ----------
    environment
        Of the rank; None: this process's.

    Returns
    -------
    int or None
        None if nobody has said so.
    """
    environment = os.environ if environment is None else environment
    for name in _RANKS_ON_NODE:
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    return None
