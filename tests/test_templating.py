from __future__ import annotations

import pytest

from dask_batch.backends.templating import (
    render,
    template_values,
    template_variables,
)
from dask_batch.configuration.resources import for_dask_task
from dask_batch.errors import TemplateError


def values(dependency=(), extra=(), **resources):
    normal = for_dask_task(resources, template_variables=frozenset(extra))
    return template_values(
        normal,
        command="run it",
        working_directory="/logs",
        job_name="add-1",
        dependency=dependency,
    )


def test_variables_are_found():
    source = "{% if a %}{{ b | join(',') }}{% endif %}{% for c in d %}{{ c }}{% endfor %}"
    assert template_variables(source) == {"a", "b", "d"}


def test_a_template_that_does_not_parse_names_the_line():
    source = "#!/bin/bash\n{% if partition %}\n{{ command }\n"
    with pytest.raises(TemplateError, match="line 3") as caught:
        template_variables(source)
    assert "{{ command }" in str(caught.value)
    with pytest.raises(TemplateError, match="line 3"):
        render(source, values())


@pytest.mark.parametrize("name", ["dependency", "dependency_list"])
@pytest.mark.parametrize("form", ["{{ NAME | join(',') }}", "{{ NAME | join(':') }}", "{{ NAME }}"])
def test_dependencies_all_must_succeed_however_they_are_joined(name, form):
    source = "{% if NAME %}--dependency=afterok:" + form + "{% endif %}"
    source = source.replace("NAME", name)
    script = render(source, values(dependency=["11", "22", "33"]))
    assert script == "--dependency=afterok:11:22:33\n"
    assert render(source, values()) == "\n"


def test_dependencies_in_a_loop():
    source = "{% for id in dependency_list %}# afterok:{{ id }}\n{% endfor %}"
    assert render(source, values(dependency=["1", "2"])) == "# afterok:1:2\n"


def test_a_missing_name_is_false_in_a_test_and_an_error_when_printed():
    assert render("{% if nosuch %}x{% endif %}.", values()) == ".\n"
    assert render("{% if nosuch == 1 %}x{% endif %}.", values()) == ".\n"
    for source in ("{{ nosuch }}", "{{ nosuch | join(',') }}", "{{ nosuch ~ 'x' }}"):
        with pytest.raises(TemplateError, match=r"'nosuch'.*resource_dict"):
            render(source, values())


def test_an_unset_resource_is_false_in_a_test_and_an_error_when_printed():
    assert render("{% if partition %}x{% endif %}.", values()) == ".\n"
    assert render("{% if partition is none %}x{% endif %}", values()) == "x\n"
    for source in (
        "--partition={{ partition }}",
        "a\n{{ partition | join(',') }}",
        "{{ 'x' ~ partition }}",
    ):
        with pytest.raises(TemplateError, match=r"'partition' \(line \d\).*resource_dict"):
            render(source, values())


def test_names_that_a_test_is_about_are_not_blamed():
    seed = (
        "#SBATCH --partition={{ partition }}\n"
        "{%- if run_time_max %}\n--time={{ [1, run_time_max // 60] | max }}\n{%- endif %}\n"
        "{%- if memory_max is not none and cores %}{{ memory_max }}{% else %}{{ qos }}{% endif %}"
        "{{ account if account else 'none' }}"
    )
    with pytest.raises(TemplateError) as caught:
        render(seed, values(run_time_max=None, memory_max=None, qos=None, account=None))
    message = str(caught.value)
    assert "'partition' (line 1), 'qos' (line 5)" in message
    for name in ("run_time_max", "memory_max", "account"):
        assert name not in message


def test_the_default_filter_covers_unset_and_missing():
    source = "{{ partition | default('debug') }} {{ nosuch | d('x') }} {{ cores | default(7) }}"
    assert render(source, values()) == "debug x 1\n"


def test_memory_prints_as_whole_gigabytes_rounded_up_and_counts_exactly():
    source = "{{ memory_max }}G {{ memory_max ~ 'G' }} {{ (memory_max * 1024) | int }}M"
    assert render(source, values(memory_max=1.5)) == "2G 2G 1536M\n"
    assert render(source, values(memory_max=8)) == "8G 8G 8192M\n"
    assert render("{{ memory_max * 1024 }}", values(memory_max=0.25)) == "256\n"


@pytest.mark.parametrize(("seconds", "minutes"), [(1, 1), (60, 1), (61, 2), (119, 2), (180, 3)])
def test_a_template_that_drops_the_rest_of_a_minute_loses_no_time(seconds, minutes):
    source = "{{ [1, run_time_max // 60] | max }}"
    assert render(source, values(run_time_max=seconds)) == f"{minutes}\n"


def test_the_prologue_prints_and_loops():
    asked = {"job_script_prologue": ["module load a", "cd /x"]}
    assert render("{{ job_script_prologue }}", values(**asked)) == "module load a\ncd /x\n"
    looped = "{% for line in job_script_prologue %}> {{ line }}\n{% endfor %}"
    assert render(looped, values(**asked)) == "> module load a\n> cd /x\n"
    joined = render("{{ job_script_prologue | join(' && ') }}", values(**asked))
    assert joined == "module load a && cd /x\n"


def test_a_value_cannot_end_a_line():
    variables = {**values(), "working_directory": "/a\n#SBATCH --uid=0"}
    with pytest.raises(TemplateError, match="'working_directory' has a newline"):
        render("#SBATCH --chdir={{ working_directory }}", variables)


def test_templates_run_in_a_sandbox():
    with pytest.raises(TemplateError):
        render("{{ command.__class__.__mro__[1].__subclasses__() }}", values())


def test_a_template_that_fails_says_how_and_where():
    with pytest.raises(TemplateError, match=r"line 3 \({{ cores / 0 }}\): ZeroDivisionError"):
        render("#!/bin/sh\n\n  {{ cores / 0 }}\n", values())
