"""Configuration directories: what is read, and what is refused, with the file and the entry."""

from __future__ import annotations

import logging
from pathlib import Path

import dask
import pytest

from dask_batch import SingleNodeExecutor
from dask_batch.backends.command import Completed
from dask_batch.configuration import queue_files
from dask_batch.configuration.config import resolve
from dask_batch.configuration.queue_files import read_queues
from dask_batch.configuration.resources import for_dask_task, for_executor_call
from dask_batch.errors import CommandError, ConfigurationError, ResourceError, TemplateError

SGE = """\
queue_type: SGE
queue_primary: impi_hydra_small
queues:
  impi_hydra: {cores_max: 4240, cores_min: 20, run_time_max: 259200, script: impi_hydra.sh}
  impi_hydra_small: {cores_max: 40, cores_min: 1, run_time_max: 604800, memory_max: 60G}
"""
TEMPLATE = """\
#!/bin/bash
#$ -N {{job_name}}
#$ -wd {{working_directory}}
{%- if cores %}
#$ -pe impi_hydra {{cores}}
{%- endif %}
{%- if run_time_max %}
#$ -l h_rt={{run_time_max}}
{%- endif %}
#$ -o time.out
#$ -e error.out

{{command}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "queue.yaml").write_text(SGE)
    (tmp_path / "impi_hydra.sh").write_text(TEMPLATE)
    return tmp_path


def test_the_queues_of_a_directory(folder: Path):
    found = read_queues(folder)
    assert (found.backend, found.primary) == ("sge", "impi_hydra_small")
    assert found.queues["impi_hydra"].template == TEMPLATE
    assert found.queues["impi_hydra_small"].memory_max == 60
    assert found.path == folder / "queue.yaml"


def test_the_template_of_the_queue_and_none_where_it_has_none(folder: Path):
    found = read_queues(folder)
    normal = found.resources({"queue": "impi_hydra", "cores": 20}, for_executor_call)
    assert (normal["submission_template"], normal["queue"]) == (TEMPLATE, "impi_hydra")
    normal = found.resources({}, for_dask_task)
    assert (normal["submission_template"], normal["queue"]) == (None, "impi_hydra_small")


def test_a_template_of_the_task_is_before_that_of_the_queue(folder: Path):
    asked = {"queue": "impi_hydra", "cores": 20, "submission_template": "#!/bin/sh\n{{command}}"}
    normal = read_queues(folder).resources(asked, for_executor_call)
    assert normal["submission_template"] == "#!/bin/sh\n{{command}}"


@pytest.mark.parametrize(
    ("asked", "limit"),
    [
        ({"queue": "impi_hydra"}, "('threads_per_core': 20 for one process)"),
        ({"queue": "impi_hydra", "cores": 19}, "cores_min: 20"),
        ({"cores": 41}, "cores_max: 40"),
        ({"cores": 21, "threads_per_core": 2}, "cores_max: 40"),
        ({"run_time_max": 604801}, "run_time_max: 604800"),
        ({"memory_max": 61}, "memory_max: 60"),
    ],
)
def test_limits_are_named(folder: Path, asked: dict[str, object], limit: str):
    with pytest.raises(ResourceError) as caught:
        read_queues(folder).resources(asked, for_executor_call)
    assert limit in str(caught.value)
    assert str(folder / "queue.yaml") in str(caught.value)


def test_limits_themselves_are_allowed(folder: Path):
    asked = {"cores": 40, "run_time_max": 604800, "memory_max": 60}
    assert read_queues(folder).resources(asked, for_executor_call)["cores"] == 40


def test_the_callers_dictionary_is_left_alone(folder: Path):
    asked = {"queue": "impi_hydra_small"}
    read_queues(folder).resources(asked, for_dask_task)
    assert asked == {"queue": "impi_hydra_small"}


def test_the_primary_cluster(folder: Path):
    (folder / "queue.yaml").rename(folder / "local.yaml")
    (folder / "clusters.yaml").write_text(
        "cluster_primary: here\ncluster: {here: local.yaml, there: remote.yaml}\n"
    )
    assert read_queues(folder).path == folder / "local.yaml"
    (folder / "clusters.yaml").write_text("cluster_primary: x\ncluster: {here: local.yaml}\n")
    with pytest.raises(ConfigurationError, match="not among the clusters: here"):
        read_queues(folder)


BAD = {
    "neither a queue.yaml nor a clusters.yaml": None,
    "cannot be read": "queues: [",
    "the file must be a mapping": "- 1\n",
    "unknown queue_type 'Error'. Known are: FLUX, LSF": "queue_type: Error\n",
    "queue_type REMOTE cannot be met here: .*login node": "queue_type: REMOTE\nqueues: {a: {}}\n",
    "queue_type GENT cannot be met here": "queue_type: GENT\nqueues: {a: {}}\n",
    "queues must be a mapping": "queue_type: SGE\n",
    "it names no queues": "queue_type: SGE\nqueues: {}\n",
    "the queue 'a' must be a mapping": "queue_type: SGE\nqueues: {a: 3}\n",
    "queue_primary is 'b', which is not among": (
        "queue_type: SGE\nqueue_primary: b\nqueues: {a: {}}\n"
    ),
    "'a' has cores_max: 'many'": "queue_type: SGE\nqueues: {a: {cores_max: many}}\n",
    "'a' has memory_max: '3 apples'": "queue_type: SGE\nqueues: {a: {memory_max: 3 apples}}\n",
    "the script of the queue 'a' cannot be read": "queue_type: SGE\nqueues: {a: {script: x.sh}}\n",
}


@pytest.mark.parametrize("message", BAD)
def test_what_makes_no_sense_is_refused_by_file_and_entry(tmp_path: Path, message: str):
    if BAD[message] is not None:
        (tmp_path / "queue.yaml").write_text(BAD[message])
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_queues(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_template_that_does_not_parse(folder: Path):
    (folder / "impi_hydra.sh").write_text("#!/bin/bash\n{% if cores %}\n")
    with pytest.raises(ConfigurationError, match=r"impi_hydra.sh: .*does not parse: line 2"):
        read_queues(folder)
    (folder / "impi_hydra.sh").write_text(" \n")
    with pytest.raises(ConfigurationError, match=r"impi_hydra.sh is empty"):
        read_queues(folder)


@pytest.mark.parametrize(
    ("stdout", "stderr", "backend"),
    [
        ("pbs_version = 19.1.3\n", "", "pbs"),
        ("", "pbs_version = 2022.1\n", "pbs"),
        ("Version: 6.1.2\nCommit: 661e092552de43a785c15d39a3634a541d86898e\n", "", "torque"),
    ],
)
def test_torque_stands_for_pbs_as_well(stdout: str, stderr: str, backend: str):
    assert queue_files._flavour("torque", lambda *a, **k: Completed(stdout, stderr)) == backend

    def fails(*_: object, **__: object) -> Completed:
        raise CommandError(("qstat",), 1, "", "no")

    assert queue_files._flavour("torque", fails) == "torque"


def test_the_directory_may_stand_in_the_configuration_of_dask(folder: Path, caplog):
    with dask.config.set({"batch.pysqa-config-directory": str(folder)}):
        options = resolve()
        assert (options.backend, options.pysqa_config_directory) == ("sge", folder)
        with caplog.at_level(logging.INFO, "dask_batch"):
            assert resolve(backend="slurm").backend == "sge"
    assert "backend 'sge'" in caplog.text


def test_an_executor_for_another_batch_system_is_told_what_to_use(folder: Path, tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"pysqa_config_directory.*'sge'.*ClusterExecutor"):
        SingleNodeExecutor(pysqa_config_directory=folder, cache_directory=tmp_path / "cache")


def test_a_script_for_flux_is_left_out_and_named_once(folder: Path, caplog):
    text = SGE.replace("queue_type: SGE", "queue_type: FLUX")
    (folder / "queue.yaml").write_text(text)
    for _ in range(2):
        found = resolve(backend="flux", pysqa_config_directory=folder).queues
    normal = found.resources({"queue": "impi_hydra", "cores": 20}, for_executor_call)
    assert normal["submission_template"] is None
    (warning,) = caplog.records
    for said in (str(folder / "queue.yaml"), "'impi_hydra'", "impi_hydra.sh", "prologue"):
        assert said in warning.getMessage()
    with pytest.raises(ResourceError, match="cores_min"):
        found.resources({"queue": "impi_hydra"}, for_executor_call)


def test_a_queue_without_a_configuration_is_an_unknown_resource():
    with pytest.raises(ResourceError, match=r"'queue'\. Did you mean 'partition'\?.*pysqa_config"):
        for_dask_task({"queue": "a"})


# ---- values in the directives of these systems ------------------------------------------------


@pytest.mark.parametrize("directive", ["#PBS -N", "#$ -N", "#BSUB -J", "#MSUB -N"])
def test_a_value_that_is_no_plain_word_is_not_printed_into_a_directive(directive: str):
    from dask_batch.backends.templating import render

    source = f"#!/bin/bash\n{directive} {{{{ word }}}}\n"
    assert render(source, {"word": "plain"}).endswith(f"{directive} plain\n")
    with pytest.raises(TemplateError, match="cannot be printed safely"):
        render(source, {"word": "a -W block=true"})
    options = f"#!/bin/bash\n{directive[:-3]}{{{{ job_extra_directives[0] }}}}\n"
    assert "-l a=1 -M x" in render(options, {"job_extra_directives": ["-l a=1 -M x"]})


def test_directives_are_taken_with_and_without_what_they_begin_with():
    asked = ["#PBS -m e", "#$ -R y", "#BSUB -x", "-M me"]
    given = for_dask_task({"job_extra_directives": asked})["job_extra_directives"]
    assert given == ("-m e", "-R y", "-x", "-M me")
