"""Templates are code of the user's own, in a sandbox: they print text, and do nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from dask_batch.backends.templating import render
from dask_batch.errors import TemplateError

VALUES = {"command": "run it", "cores": 2, "mine": ["a"], "unset": None, "cwd": "/a b"}

ESCAPES = (
    "{{ ''.__class__.__mro__ }}",
    "{{ command.__class__.__mro__[1].__subclasses__() }}",
    "{{ command | attr('__class__') }}",
    "{{ mine[0].__class__.__base__ }}",
    "{{ [command] | map(attribute='__class__') | list }}",
    "{{ mine | map('attr', '__class__') | list }}",
    "{{ '{0.__class__}'.format(command) }}",
    "{{ '{c.__class__}'.format_map({'c': command}) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "{{ lipsum.__globals__['os'].system('touch CANARY') }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cores.__class__ }}",
    "{{ unset.__class__ }}",
    "{{ nosuch.__class__.__init__.__globals__ }}",
    "{{ cwd.text }}{{ cwd.token }}",
    "{{ cwd.__init__.__globals__ }}",
    "{{ cwd._Carried__x }}",
    "{{ cwd.__class__ }}",
)


@pytest.mark.parametrize("source", ESCAPES)
def test_no_attribute_leads_out(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        printed = render("#!/bin/sh\n" + source, VALUES)
    except TemplateError:
        printed = ""
    assert "class '" not in printed
    assert "<" not in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "source",
    [
        "{% include '/etc/passwd' %}",
        "{% include 'slurm.sh.j2' %}",
        "{% import '/etc/passwd' as x %}{{ x }}",
        "{% from 'slurm.sh.j2' import x %}",
        "{% extends '/etc/passwd' %}",
    ],
)
def test_templates_read_no_files(source: str) -> None:
    with pytest.raises(TemplateError):
        render("#!/bin/sh\n" + source, VALUES)


@pytest.mark.parametrize("source", ["{% set _ = mine.append('b') %}", "{% do mine.clear() %}"])
def test_templates_change_nothing_of_the_caller(source: str) -> None:
    mine = ["a"]
    with pytest.raises(TemplateError):
        render(source, {"mine": mine})
    assert mine == ["a"]


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(90000) %}{{ 'x' * 9000 }}{% endfor %}",
        "{{ 'x' * 5000000 }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_what_a_template_prints_has_a_bound(source: str) -> None:
    with pytest.raises(TemplateError):
        render(source, VALUES)


def test_control_structures_and_arithmetic_are_there() -> None:
    source = "{% for i in range(2) %}{{ i + cores }}{% endfor %}{% set x = 3 %}{{ x ~ command }}"
    assert render(source, VALUES) == "233run it\n"
