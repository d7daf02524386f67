"""Further options of a user's cannot undo what a submission is, however they are written."""

from __future__ import annotations

import pytest

from dask_batch.backends.slurm.options import refuse_directives, refuse_reserved
from dask_batch.configuration.resources import for_dask_task
from dask_batch.errors import ResourceError, TemplateError

WRITTEN = {
    "--array=0-9": "--array",
    "--arr=0-9": "--array",
    "-a0-9": "-a",
    "-Ha0-9": "-a",
    "-HW": "-W",
    "--wra=touch CANARY": "--wrap",
    "--outp=/tmp/x": "--output",
    "-J$(touch CANARY)": "-J",
    "--job=x": "--job-name",
    "-o/tmp/x": "-o",
    "--dep=singleton": "--dependency",
}


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("name", ["slurm_cmd_args", "job_extra_directives"])
def test_reserved_options_are_known_in_every_form(name: str, written: str) -> None:
    word = written
    if name == "job_extra_directives":  # in the shell's syntax
        word = written.replace("touch CANARY", "'touch CANARY'")
    for options in ([word], ["--comment=x", word]):
        with pytest.raises(ResourceError, match=f"{name}.*{WRITTEN[written]} "):
            refuse_reserved(for_dask_task({name: options}))


def test_a_second_option_in_one_directive_is_seen() -> None:
    asked = for_dask_task({"job_extra_directives": ["--comment=x --array=0-9"]})
    with pytest.raises(ResourceError, match="--array"):
        refuse_reserved(asked)


@pytest.mark.parametrize(
    "words",
    [
        ["/tmp/evil.sh"],
        ["--exclusive", "/tmp/evil.sh"],
        ["--comment=x", "/tmp/evil.sh"],
        ["-H", "/tmp/evil.sh"],
        ["-Cx", "/tmp/evil.sh"],
        ["--comment", "x", "/tmp/evil.sh"],
        ["--", "/tmp/evil.sh"],
        ["--begin", "--"],
    ],
)
def test_no_word_takes_the_place_of_the_script(words: list[str]) -> None:
    with pytest.raises(ResourceError, match=r"slurm_cmd_args.*for the job script"):
        refuse_reserved(for_dask_task({"slurm_cmd_args": words}))


@pytest.mark.parametrize(
    "words",
    [
        ["--comment", "a b", "-C", "haswell", "--exclusive"],
        ["--wait-all-nodes=1", "--deadline=now+1hour", "-N", "2", "-n2", "--nice"],
        ["--mail-type=END", "--mail-user=a@b.c", "--gres=gpu:1", "--export=ALL"],
    ],
)
def test_other_options_are_taken(words: list[str]) -> None:
    refuse_reserved(for_dask_task({"slurm_cmd_args": words}))


@pytest.mark.parametrize("directive", ["--arr=0-3", "-a0-3", "-HW", "--wai", "--exclusive -a 1"])
def test_a_template_is_one_job_however_it_is_written(directive: str) -> None:
    with pytest.raises(TemplateError, match="line 2"):
        refuse_directives(f"#!/bin/bash\n#SBATCH {directive}\ntrue\n")
