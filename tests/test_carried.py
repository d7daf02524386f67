"""Values reach a script as data, wherever a template prints them."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_batch.backends.carried import Cargo
from dask_batch.backends.places import directive_value
from dask_batch.backends.templating import render
from dask_batch.errors import TemplateError

HOSTILE = (
    "$(touch CANARY)",
    "`touch CANARY`",
    "'; touch CANARY;'",
    '"; touch CANARY; "',
    "a & touch CANARY &",
    "| touch CANARY",
    "> CANARY",
    "\\",
    "\\'",
    "a b",
    " # b",
    "*",
    "~",
    "größe ☂",
    "{{ 7*7 }}",
    "{% raw %}",
    "%j $$ ${PATH}",
    "-rf /",
    "x" * 300 + "'",
)
EVERY_PLACE = """#!/bin/bash
#SBATCH --comment={{ cwd }}
# a comment {{ cwd }} isn't code
true # nor is "this {{ cwd }}
{% raw %}x=${PATH#/}; y=$(( 1 + 2 )){% endraw %}
show() { printf '%s\\0' "$@"; }
show {{ cwd }} "<{{ cwd }}>" '<{{ cwd }}>' {{ cwd ~ "/x" }} {{ cwd | quote }} "it's" \\
    {{ cwd | directive }} "$(printf %s {{ cwd }}x)" "$(printf %s "{{ cwd }}x")" {{ cwd + "/y" }}
(show {{ [cwd, cwd] | join(":") }})
"""


def printed_by(script: str, folder: Path) -> list[str]:
    argv = ["bash", "-c", script]
    done = subprocess.run(
        argv, cwd=folder, capture_output=True, check=True, timeout=60, env={"PATH": os.defpath}
    )
    return os.fsdecode(done.stdout).split("\0")[:-1]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_path_arrives_as_it_is_in_every_place(value: str, tmp_path: Path) -> None:
    script = render(EVERY_PLACE, {"cwd": value})
    shown = [value, f"<{value}>", f"<{value}>", f"{value}/x", value, "it's", value]
    shown += [f"{value}x", f"{value}x", f"{value}/y", f"{value}:{value}"]
    assert printed_by(script, tmp_path) == shown
    assert list(tmp_path.iterdir()) == []
    comment = script.splitlines()[1].removeprefix("#SBATCH --comment=")
    assert comment == directive_value(value)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=12))
def test_any_text_arrives_as_it_is(value: str) -> None:
    script = render(
        'show() { printf \'%s\\0\' "$@"; }\nshow {{ cwd }}. "{{ cwd }}"\n', {"cwd": value}
    )
    assert printed_by(script, Path("/")) == [f"{value}.", value]


PIECES = (
    "{{ cwd }}", '"', "'", "$(", ")", "`", "#", " ", "\n", "\n#", "#SBATCH ", "\\", "(", "{ ", ";",
    "<<EOF\n", "EOF\n", "<<-'E'\n", "E\n", "<<<", "$'", '$"', "$((", "))",
    "{% raw %}${x#{% endraw %}", "}", "case x in x) ", "esac", "[[ ", " ]]", "&&", "|", "x", "x=",
    "echo ", "function f", "!", "\t",
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14), st.sampled_from(HOSTILE))
def test_in_no_script_whatever_does_a_value_run(pieces: list[str], value: str) -> None:
    """Most of these scripts are nonsense; the shell runs what it can of them."""
    try:
        script = render("#!/bin/bash\n{{ cwd }}" + "".join(pieces) + "{{ cwd }}", {"cwd": value})
    except TemplateError:
        return
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(
            ["bash", "-c", script],
            cwd=name,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
            env={"PATH": os.defpath},
        )
        assert "CANARY" not in os.listdir(name), script


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\x00b", "\x1b[2J", "a\n#SBATCH --uid=0"])
def test_a_value_with_control_characters_is_refused_by_name(value: str) -> None:
    with pytest.raises(TemplateError, match="'mine' has a newline"):
        render("#!/bin/sh\n{{ command }}", {"command": "true", "mine": value})
    with pytest.raises(TemplateError, match="'mine' has a newline"):
        render("#!/bin/sh\n{{ command }}", {"command": "true", "mine": ["ok", value]})


@pytest.mark.parametrize(
    "body",
    [
        "cat <<EOF\n{{ cwd }}\nEOF\n",
        "echo `ls {{ cwd }}`\n",
        "bash -c 'cd {{ cwd }}'\n",
        'ssh node "cd {{ cwd }}"\n',
        "eval cd {{ cwd }}\n",
        "x=$'{{ cwd }}'\n",
        "echo $(( {{ cwd }} ))\n",
        "echo \\{{ cwd }}\n",
        "{% raw %}echo ${x:-'}{% endraw %}{{ cwd }}\n",
        "echo $(case x in x) echo {{ cwd }};; esac)\n",
        "{{ cwd | upper }}\n",
        "{{ cwd | truncate(8, True) }}\n",
        "{{ cwd.split('/') }}\n",
        "{{ cwd.text }}\n",
        "{% for c in cwd %}{{ c }}{% endfor %}\n",
    ],
)
def test_what_no_quoting_makes_safe_is_refused(body: str) -> None:
    with pytest.raises(TemplateError, match=r"cwd|Carried|text"):
        render("#!/bin/bash\n" + body, {"cwd": "/a/$(touch CANARY)"})
    assert render("#!/bin/bash\n" + body.replace(".text", ""), {"cwd": "/plain"})


def test_after_a_heredoc_the_shell_goes_on(tmp_path: Path) -> None:
    body = "cat >/dev/null <<-'E'\n it's \"\n\tE\nprintf '%s\\0' {{ cwd }}\n"
    assert printed_by(render(body, {"cwd": "$(touch x)"}), tmp_path) == ["$(touch x)"]


@pytest.mark.parametrize(
    "body", ["{{ command }}", 'sh -c "{{ command }}"', "sh -c '{{ command }}'"]
)
def test_a_command_may_be_handed_to_another_shell(body: str, tmp_path: Path) -> None:
    words = ["printf", "%s\\0", "/a b", "$(touch CANARY)", "it's", '"']
    assert printed_by(render(body, {"command": shlex.join(words)}), tmp_path) == words[2:]
    assert list(tmp_path.iterdir()) == []


def test_text_is_one_word_and_a_list_is_several() -> None:
    source = "#SBATCH --mine={{ mine }}\nload {{ mine }}\n"
    for text in ("gcc mpi", "a --uid=0", "a; b", "#b"):
        told = f"#SBATCH --mine=\"{text}\"\nload '{text}'\n"
        assert render(source, {"mine": text}) == told
    for text in ("gcc", "--mem=0", "~/a", "größe"):
        assert render(source, {"mine": text}) == source.replace("{{ mine }}", text)
    listed = render("load {{ mine | join(' ') }}", {"mine": ["gcc", "mpi", "$(x)"]})
    assert listed == "load gcc mpi '$(x)'\n"


def test_options_keep_their_quotes_in_directives() -> None:
    option = {"job_extra_directives": ('--comment="a b"', "--exclusive")}
    source = "{% for o in job_extra_directives %}#SBATCH {{ o }}\n{% endfor %}srun "
    source += "{{ job_extra_directives | join(' ') }}\n"
    told = "#SBATCH --comment=\"a b\"\n#SBATCH --exclusive\nsrun '--comment=a b' --exclusive\n"
    assert render(source, option) == told


def test_a_carried_value_can_be_tested() -> None:
    source = "{% if cwd and cwd == '/a b' and ' ' in cwd %}yes{% endif %}"
    assert render(source, {"cwd": "/a b"}) == "yes\n"


def test_values_are_never_templates() -> None:
    assert render("echo {{ mine }}", {"mine": "{{ 7*7 }}"}) == "echo '{{ 7*7 }}'\n"


def test_plain_values_are_not_touched() -> None:
    cargo = Cargo()
    for value in ("debug", "/a/b-c.d", 3, None, True, ("a", "b"), ["x"]):
        loaded: Any = cargo.load("mine", value)
        assert loaded is value


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("debug", "debug"),
        ("/a/b-c_d.out", "/a/b-c_d.out"),
        ("/a b", '"/a b"'),
        ("it's", '"it\'s"'),
        ('say "x"', '"say \\"x\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("a#b", '"a#b"'),
        ("", '""'),
    ],
)
def test_values_of_directives_are_quoted_where_they_need_it(text: str, quoted: str) -> None:
    assert directive_value(text) == quoted
