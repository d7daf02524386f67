from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_batch.configuration import resources
from dask_batch.configuration.resources import (
    KNOWN,
    can_chain,
    chain_resources,
    check_resources,
    for_dask_task,
    for_executor_call,
    merge_resources,
    task_options,
)
from dask_batch.errors import ResourceError


def test_unknown_key_lists_the_known_ones_and_the_nearest():
    with pytest.raises(ResourceError, match="Did you mean 'memory_max'") as caught:
        check_resources({"memory_mx": 1})
    assert all(name in str(caught.value) for name in KNOWN)


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        ("queue", "partition"),
        ("walltime", "run_time_max"),
        ("GPU", "gpus_per_core"),
        ("mem", "memory_max"),
    ],
)
def test_what_other_systems_say_is_translated_in_the_hint(foreign, ours):
    with pytest.raises(ResourceError, match=f"Did you mean '{ours}"):
        check_resources({foreign: 1})


def test_key_used_by_the_template_is_known():
    variables = frozenset({"licence"})
    assert check_resources({"licence": "abaqus"}, template_variables=variables) == {
        "licence": "abaqus"
    }
    assert for_dask_task({"licence": "abaqus"}, template_variables=variables)["licence"] == "abaqus"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cores", 0),
        ("cores", -1),
        ("cores", True),
        ("cores", 1.5),
        ("cores", "4"),
        ("threads_per_core", 0),
        ("gpus_per_core", -1),
        ("gpu_request", "--gres=gpu:1 --uid=0"),
        ("gpu_request", "gres=gpu:{gpus}"),
        ("gpu_request", "--gres=gpu:{cores}"),
        ("gpu_request", "--gres=gpu:{gpus.__class__}"),
        ("gpu_request", "--gres=$(id)"),
        ("memory_max", 0),
        ("memory_max", "8GB"),
        ("memory_max", math.nan),
        ("memory_max", math.inf),
        ("memory_max", True),
        ("run_time_max", -5),
        ("run_time_max", "00:30:00"),
        ("partition", ""),
        ("partition", "debug\n#SBATCH --uid=0"),
        ("partition", "debug --uid=0"),
        ("account", 'a"b'),
        ("constraint", "a\rb"),
        ("job_name", "a\x00b"),
        ("exclusive", "yes"),
        ("cache", 1),
        ("cache_key", "../other"),
        ("cache_key", "/etc/passwd"),
        ("cache_key", "a//b"),
        ("cache_key", ""),
        ("retries", -1),
        ("job_script_prologue", 3),
        ("job_script_prologue", ["echo \0"]),
        ("job_extra_directives", ["echo pwned"]),
        ("job_extra_directives", [["--x"]]),
        ("slurm_cmd_args", [1]),
        ("submission_template", Path("template.sh")),
        ("submission_template", " "),
        ("python", ""),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(name, value):
    with pytest.raises(ResourceError, match=f"resource '{name}': must"):
        check_resources({name: value})


@pytest.mark.parametrize("value", [object(), {"a": 1}, ["a\nb"], "a\nb", np.arange(2)])
def test_what_a_template_may_print_is_plain(value):
    with pytest.raises(ResourceError, match="'mine'"):
        check_resources({"mine": value}, template_variables={"mine"})


def test_numpy_scalars_become_plain_numbers():
    checked = check_resources(
        {
            "cores": np.int64(2),
            "memory_max": np.float32(1.5),
            "run_time_max": np.int32(60),
            "exclusive": np.bool_(True),
            "mine": np.int8(3),
        },
        template_variables={"mine"},
    )
    assert [type(value) for value in checked.values()] == [int, float, int, bool, int]


def test_texts_become_lines():
    checked = check_resources(
        {
            "job_script_prologue": "module load gcc\n\nexport A=1",
            "job_extra_directives": "#SBATCH --mail-type=END\n#SBATCH -C skylake",
            "slurm_cmd_args": "--mail-user=me --comment='a b'",
        }
    )
    assert checked["job_script_prologue"] == ("module load gcc", "", "export A=1")
    assert checked["job_extra_directives"] == ("--mail-type=END", "-C skylake")
    assert checked["slurm_cmd_args"] == ("--mail-user=me", "--comment=a b")


def test_time_is_rounded_up_to_seconds():
    assert check_resources({"run_time_max": 59.01}) == {"run_time_max": 60}


def test_nothing_given_is_changed():
    given_ = {"cores": 2, "partition": None, "job_script_prologue": ["a", "b\nc"], "retries": 1}
    before = copy.deepcopy(given_)
    check_resources(given_)
    for_dask_task(given_)
    task_options(given_)
    merge_resources(given_, {"cores": 3})
    assert given_ == before


def test_later_layers_win_and_none_takes_back():
    merged = merge_resources(
        {"partition": "long", "account": "a", "cores": 1}, None, {"partition": None}, {"cores": 4}
    )
    assert merged == {"account": "a", "cores": 4}


def test_at_the_dask_door_cores_are_cpus_of_one_process():
    normal = for_dask_task({"cores": 4})
    assert (normal["cores"], normal["threads_per_core"]) == (1, 4)
    assert for_dask_task({"cores": 2, "threads_per_core": 3})["threads_per_core"] == 6
    assert for_dask_task({})["threads_per_core"] == 1


def test_at_the_dask_door_ranks_have_cores_cpus_each():
    normal = for_dask_task({"ranks": 2, "cores": 3})
    assert (normal["cores"], normal["threads_per_core"]) == (2, 3)
    assert for_dask_task({"ranks": 1})["cores"] == 1


@pytest.mark.parametrize("name", ["cores", "ranks"])
def test_at_the_executor_door_cores_are_ranks(name):
    normal = for_executor_call({name: 4, "threads_per_core": 2})
    assert (normal["cores"], normal["threads_per_core"]) == (4, 2)
    assert for_executor_call({"cores": 2, "ranks": 2})["cores"] == 2
    with pytest.raises(ResourceError, match=r"cores=2 and ranks=4"):
        for_executor_call({"cores": 2, "ranks": 4})


def test_tasks_of_several_ranks_are_jobs_by_themselves():
    assert not can_chain(for_dask_task({"ranks": 2}), for_dask_task({"ranks": 2}))


@pytest.mark.parametrize("door", [for_dask_task, for_executor_call])
def test_the_normal_form_has_every_resource_and_no_task_option(door):
    normal = door({"memory_max": 2, "cache": False, "retries": 2})
    assert set(normal) == {name for name, key in KNOWN.items() if key.scope == "resource"}
    assert normal["memory_max"] == 2
    assert normal["partition"] is None


def test_task_options_are_taken_apart():
    options = task_options({"cores": 3, "cache": False, "version": 2, "retries": np.int64(1)})
    assert (options.cache, options.version, options.retries) == (False, "2", 1)
    assert task_options({}).cache is True
    with pytest.raises(ResourceError, match="'retries'"):
        task_options({"retries": "many"})


def test_a_chain_needs_the_largest_memory_and_the_sum_of_the_times():
    first = for_dask_task({"memory_max": 4, "run_time_max": 60, "cores": 2})
    second = for_dask_task({"memory_max": 1.5, "run_time_max": 30, "cores": 4})
    combined = chain_resources([first, second])
    assert combined["memory_max"] == 4
    assert combined["run_time_max"] == 90
    assert combined["threads_per_core"] == 4
    assert first["run_time_max"] == 60


def test_one_job_cannot_be_in_two_partitions():
    first, second = for_dask_task({"partition": "a"}), for_dask_task({"partition": "b"})
    assert not can_chain(first, second)
    with pytest.raises(ResourceError):
        chain_resources([first, second])


def test_a_limit_and_none_do_not_add_up():
    assert not can_chain(for_dask_task({"run_time_max": 60}), for_dask_task({}))
    assert chain_resources([for_dask_task({}), for_dask_task({})])["run_time_max"] is None


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "cores": st.integers(1, 64),
                "memory_max": st.floats(0.01, 1e4),
                "run_time_max": st.integers(1, 10**6),
            }
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_chain_is_enough_for_each_of_its_tasks(asked):
    tasks = [for_dask_task(item) for item in asked]
    combined = chain_resources(tasks)
    assert all(combined["memory_max"] >= task["memory_max"] for task in tasks)
    assert all(combined["threads_per_core"] >= task["threads_per_core"] for task in tasks)
    assert combined["run_time_max"] == sum(task["run_time_max"] for task in tasks)


class Own(Exception):
    """An exception of the user's."""


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (True, True),
        (False, False),
        (ValueError, ("builtins.ValueError",)),
        ("ValueError", ("ValueError",)),
        ([OSError, "a.b.Error", OSError], ("a.b.Error", "builtins.OSError")),
        ((Own,), (f"{__name__}.Own",)),
        ((), ()),
    ],
)
def test_exceptions_to_repeat_are_kept_by_name(given: object, kept: object) -> None:
    assert resources.task_options({"retry_exceptions": given}).retry_exceptions == kept


@pytest.mark.parametrize("given", [1, "not a name", [3], [int], {"a": 1}, "a..b", [True]])
def test_what_is_no_exception_is_refused(given: object) -> None:
    with pytest.raises(ResourceError, match="retry_exceptions"):
        resources.task_options({"retry_exceptions": given})


def test_a_chain_is_as_patient_as_the_most_patient_of_its_tasks() -> None:
    options = [
        resources.task_options({"retries": 1, "retry_exceptions": [OSError]}),
        resources.task_options({"retries": 3, "retry_exceptions": [KeyError]}),
    ]
    policy = resources.retry_policy(options, memory_factor=2.0, time_factor=3.0)
    assert policy == {
        "retries": 3,
        "exceptions": ["builtins.KeyError", "builtins.OSError"],
        "memory_factor": 2.0,
        "time_factor": 3.0,
    }
    options.append(resources.task_options({"retry_exceptions": True}))
    assert resources.retry_policy(options, memory_factor=2.0, time_factor=3.0)["exceptions"] is True
