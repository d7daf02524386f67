from __future__ import annotations

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dask_batch.backends.base import Job
from dask_batch.backends.slurm.dependencies import dependency_of
from dask_batch.backends.slurm.limits import refuse_what_cannot_be
from dask_batch.backends.slurm.options import log_pattern, refuse_directives, refuse_reserved
from dask_batch.backends.slurm.parse import NodeKind
from dask_batch.backends.slurm.script import job_command, sbatch_arguments, script_text
from dask_batch.configuration.resources import for_dask_task
from dask_batch.errors import ResourceError, TemplateError
from slurm_cluster import OWN_TEMPLATE as OWN


def a_job(logs="/logs", parents=(), after=(), template=None, variables=(), **resources):
    if template is not None:
        resources["submission_template"] = template
    return Job(
        name="add-r1-0",
        definition=Path("/cache/definitions/r1.h5"),
        index=0,
        resources=for_dask_task(resources, template_variables=frozenset(variables)),
        parents=tuple(parents),
        after=tuple(after),
        log_directory=Path(logs),
        environment={"PATH": "/bin"},
    )


def text_of(job, dependency=()):
    return script_text(job, dependency_of(job, dependency), job_command(job))


def arguments_of(job, dependency=(), *, hold=False, patient=False):
    return sbatch_arguments(job, dependency_of(job, dependency, patient=patient), hold=hold)


def directives(script):
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if "#SBATCH" in line]


EVERYTHING = {
    "cores": 4,
    "gpus_per_core": 2,
    "memory_max": 1.5,
    "run_time_max": 61,
    "partition": "debug",
    "account": "abc",
    "qos": "high",
    "constraint": "[a&b]",
    "reservation": "r",
    "num_nodes": 2,
    "exclusive": True,
    "priority": -3,
    "job_extra_directives": ["--mail-type=END"],
}


def test_the_builtin_template_prints_every_resource():
    assert directives(text_of(a_job(**EVERYTHING), ["1", "2"])) == [
        "--job-name=add-r1-0",
        "--output=/logs/0.out",
        "--error=/logs/0.err",
        "--ntasks=2",
        "--cpus-per-task=4",
        "--nodes=2",
        "--exclusive",
        "--gpus-per-task=2",
        "--mem=1536M",
        "--time=2",
        "--partition=debug",
        "--account=abc",
        "--qos=high",
        "--constraint=[a&b]",
        "--reservation=r",
        "--nice=3",
        "--mail-type=END",
        "--dependency=afterok:1:2",
        "--kill-on-invalid-dep=yes",
        "--signal=B:USR1@12",
    ]


@pytest.mark.parametrize(
    ("resources", "option"),
    [
        ({"gpus_per_core": 2}, "--gpus-per-task=2"),
        ({"gpu_request": "--gpus-per-task=a100:{gpus_per_core}"}, "--gpus-per-task=a100:1"),
        ({"gpu_request": "--gres=gpu:{gpus}", "gpus_per_core": 2}, "--gres=gpu:2"),
        ({"gpu_request": "--gres=gpu:{gpus}", "ranks": 4}, "--gres=gpu:4"),
        ({"gpu_request": "--gres=gpu:a:{gpus}", "ranks": 5, "num_nodes": 2}, "--gres=gpu:a:3"),
    ],
)
def test_gpus_are_asked_for_as_the_site_wants(resources, option):
    ranks = resources.pop("ranks", 1)
    asked = {"gpus_per_core": 1} | resources
    builtin = a_job(**asked)
    bare = a_job(template="#!/bin/bash\n{{ command }}\n", **asked)
    own = a_job(template="#!/bin/bash\n#SBATCH {{ gpu_option }}\n{{ command }}\n", **asked)
    builtin, bare, own = (
        replace(job, resources={**job.resources, "cores": ranks}) for job in (builtin, bare, own)
    )
    assert option in directives(text_of(builtin))
    assert option in directives(text_of(own))
    assert option in arguments_of(bare)
    assert not [word for word in arguments_of(own) if "gpu" in word]


def test_a_job_without_gpus_asks_for_none_however_it_would():
    text = text_of(a_job(gpu_request="--gres=gpu:{gpus}"))
    assert "gpu" not in text
    with pytest.raises(ResourceError, match=r"gpu_request.*--array"):
        refuse_reserved(a_job(gpu_request="--array={gpus}", gpus_per_core=2).resources)


def test_the_builtin_template_prints_nothing_that_was_not_asked_for():
    assert directives(text_of(a_job())) == [
        "--job-name=add-r1-0",
        "--output=/logs/0.out",
        "--error=/logs/0.err",
        "--ntasks=1",
        "--cpus-per-task=1",
        "--signal=B:USR1@60",
    ]


def test_what_a_template_does_not_print_is_requested_on_the_command_line():
    bare = a_job(template="#!/bin/bash\n{{ command }}\n", **EVERYTHING)
    builtin = directives(text_of(a_job(**EVERYTHING)))
    of_the_script_itself = {"--signal=B:USR1@12"}
    assert set(builtin) - of_the_script_itself <= set(arguments_of(bare, []))


def test_what_a_template_prints_is_left_to_it():
    job = a_job(template=OWN, partition="debug", run_time_max=60, memory_max=1)
    arguments = arguments_of(job, [])
    assert not [a for a in arguments if re.match("--(partition|time|mem|ntasks|cpus)", a)]


def test_a_template_of_executorlib_means_what_it_says():
    job = a_job(template=OWN, partition="debug", run_time_max=119, memory_max=1.5, cores=4)
    lines = directives(text_of(job, ["7", "8", "9"]))
    assert "--time=2" in lines
    assert "--mem=2G" in lines
    assert "--dependency=afterok:7:8:9" in lines
    assert "--ntasks=1" in lines
    assert "--cpus-per-task=4" in arguments_of(job, ["7", "8", "9"])


def test_a_template_that_needs_a_partition_says_so():
    with pytest.raises(TemplateError, match="'partition'"):
        text_of(a_job(template=OWN))


def test_the_command_line_names_the_job_its_logs_and_its_parents():
    child = a_job(parents=["p"], slurm_cmd_args="--begin=now --comment='a b'")
    assert arguments_of(child, ["1", "2"]) == [
        "--begin=now",
        "--comment=a b",
        "--parsable",
        "--job-name=add-r1-0",
        "--output=/logs/0.out",
        "--error=/logs/0.err",
        "--open-mode=append",
        "--dependency=afterok:1:2",
        "--kill-on-invalid-dep=yes",
    ]


def test_the_command_holds_paths_and_no_values():
    command = job_command(a_job())
    assert command == [
        sys.executable, "-P", "-m", "dask_batch.job", "/cache/definitions/r1.h5", "0"
    ]  # fmt: skip
    last = text_of(a_job()).splitlines()[-1]
    assert shlex.split(last) == ["exec", "env", "DASK_BATCH_BACKEND=slurm", *command]


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("/opt/my env/bin/python", ["/opt/my", "env/bin/python"]),
        ("apptainer exec image.sif python", ["apptainer", "exec", "image.sif", "python"]),
    ],
)
def test_python_may_be_several_words(python, words):
    assert job_command(a_job(python=python))[: len(words)] == words


def test_python_may_have_a_blank_in_its_path(tmp_path):
    program = tmp_path / "my env" / "python"
    program.parent.mkdir()
    program.symlink_to(sys.executable)
    assert job_command(a_job(python=str(program)))[0] == str(program)


def test_threads_are_set_before_the_prologue():
    script = text_of(a_job(cores=4, job_script_prologue="export OMP_NUM_THREADS=2\nmodule load x"))
    lines = script.splitlines()
    assert lines.index("export OMP_NUM_THREADS=4") < lines.index("export OMP_NUM_THREADS=2")
    assert lines.index("module load x") < len(lines) - 1
    assert "OMP_NUM_THREADS" not in lines[-1]


def test_threads_travel_with_the_command_of_a_users_template():
    script = text_of(a_job(template=OWN, partition="debug", cores=3))
    assert "OMP_NUM_THREADS=3 " in script.splitlines()[-1]
    exporting = OWN.replace("{{command}}", "export OMP_NUM_THREADS=1\n{{command}}")
    last = text_of(a_job(template=exporting, partition="debug", cores=3)).splitlines()[-1]
    assert " OMP_NUM_THREADS" not in last
    assert "MKL_NUM_THREADS=3" in last
    fixed = OWN.replace("--ntasks", "--cpus-per-task=8 --ntasks")
    assert "NUM_THREADS" not in text_of(a_job(template=fixed, partition="debug"))


def test_a_prologue_that_a_template_does_not_print_comes_before_its_commands():
    template = "#!/bin/bash\n#SBATCH --x\n\n# comment\necho hi\n{{ command }}\n"
    lines = text_of(a_job(template=template, job_script_prologue=["module load a", "b"]))
    assert lines.splitlines()[:7] == [
        "#!/bin/bash", "#SBATCH --x", "", "# comment", "module load a", "b", "echo hi"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("/a/1.out", "/a/1.out"),
        ("/100%/%j.out", "/100%%/%%j.out"),
        ("/a\\b/%j.out", "/a\\\\b/%j.out"),
    ],
)
def test_log_patterns(path, pattern):
    assert log_pattern(path) == pattern


@pytest.mark.parametrize(
    "option", ["--array=0-3", "-a 0-3", "--wait", "-W", "--dependency=singleton", "--job-name=x"]
)
@pytest.mark.parametrize("key", ["slurm_cmd_args", "job_extra_directives"])
def test_options_that_are_our_own_business_are_refused(key, option):
    with pytest.raises(ResourceError, match=re.escape(option.split("=")[0].split()[0])):
        refuse_reserved(a_job(**{key: [option]}).resources)


@pytest.mark.parametrize("directive", ["--array=0-3", "-a 0-3", "-N 1 --wait", "-W"])
def test_a_template_is_one_job_that_is_not_waited_for(directive):
    with pytest.raises(TemplateError, match="line 2"):
        refuse_directives(f"#!/bin/bash\n#SBATCH {directive}\ntrue\n")


def test_a_template_may_say_what_the_command_line_overrides():
    refuse_directives("#!/bin/bash\n#SBATCH --wait-all-nodes=1 --output=x\necho --array\n")


NODES = [
    NodeKind("debug", 2, 4, 5000, 1800, 2),
    NodeKind("debug", 1, 8, 2000, 1800, 0),
    NodeKind("long", 2, 64, 250000, float("inf"), 0),
]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"partition": "debug", "cores": 9}, "9 CPUs .* partition debug offers a job at most 8"),
        ({"cores": 65}, "any partition .* 64"),
        ({"partition": "debug", "memory_max": 4.9}, "5018 MB .* 5000"),
        ({"partition": "debug", "run_time_max": 1801}, "31 minutes .* 30"),
        ({"partition": "long", "gpus_per_core": 1}, "1 GPUs .* at most 0"),
        ({"partition": "debug", "num_nodes": 4}, "4 nodes .* at most 3"),
        ({"partition": "debug", "cores": 8, "memory_max": 4}, "at once"),
    ],
)
def test_what_no_node_can_meet_is_refused(asked, named):
    with pytest.raises(ResourceError, match=named):
        refuse_what_cannot_be(a_job(**asked).resources, NODES)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"partition": "debug", "cores": 8, "memory_max": 1},
        {"partition": "debug,long", "cores": 64},
        {"run_time_max": 10**7, "partition": "long"},
        {"run_time_max": 1800, "partition": "debug"},
        {"partition": "hidden", "cores": 65},  # sbatch knows
        {"partition": "long,hidden"},
    ],
)
def test_what_some_node_can_meet_is_not_refused(asked):
    refuse_what_cannot_be(a_job(**asked).resources, NODES)


def test_where_nothing_is_known_nothing_is_refused():
    refuse_what_cannot_be(a_job(partition="any", cores=10**6).resources, [])


@pytest.mark.parametrize(
    ("run_time_max", "seconds"), [(None, 60), (1, 6), (60, 6), (61, 12), (599, 60), (86400, 60)]
)
def test_a_job_is_warned_a_share_of_its_time_before_the_end(run_time_max, seconds):
    lines = text_of(a_job(run_time_max=run_time_max)).splitlines()
    assert f"#SBATCH --signal=B:USR1@{seconds}" in lines
    assert "trap '' USR1" in lines
    assert lines[-1].startswith("exec env ")


@pytest.mark.parametrize(
    "asked",
    [
        {"job_script_prologue": ["d=$(mktemp -d)", "trap 'rm -r $d' EXIT"]},
        {"template": "#!/bin/bash\n{{ command }}\n"},
    ],
)
def test_a_shell_that_stays_is_not_sent_a_signal_that_kills_it(asked):
    text = text_of(a_job(**asked))
    assert "--signal" not in text
    assert "exec " not in text


def test_a_template_cannot_have_a_dependent_removed_that_must_stay():
    template = "#!/bin/bash\n#SBATCH -N1 --kill-on-invalid-dep=yes\n{{ command }}\n"
    job = a_job(template=template, parents=["p"])
    patient = dependency_of(job, ["1"], patient=True)
    assert "--kill-on-invalid-dep=no" in script_text(job, patient, job_command(job))
    assert "--kill-on-invalid-dep=no" in sbatch_arguments(job, patient, hold=False)
    assert "--kill-on-invalid-dep=yes" in text_of(job, ["1"])
    with pytest.raises(ResourceError, match="--kill-on-invalid-dep"):
        refuse_reserved(a_job(slurm_cmd_args="--kill-on-invalid-dep=no").resources)


def test_the_script_that_is_shown_says_what_the_command_line_does():
    job = replace(a_job(parents=["p"]), repeatable=True, patient=True)
    lines = directives(text_of(job, ["1"]))
    for option in ("--requeue", "--kill-on-invalid-dep=no", "--dependency=afterok:1"):
        assert option in lines
        assert option in arguments_of(job, ["1"])


def test_another_program():
    command = job_command(replace(a_job(), program="dask_batch.steward"))
    assert command[1:4] == ["-P", "-m", "dask_batch.steward"]
