"""No value of the user's, or of her data, becomes code on its way to a job and back."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest

from dask_batch import SingleNodeExecutor, SlurmClusterExecutor, cluster_get, status
from dask_batch.errors import ConfigurationError, ResourceError, TemplateError

KINDS = [
    pytest.param(SingleNodeExecutor, id="local"),
    pytest.param(SlurmClusterExecutor, id="slurm", marks=pytest.mark.slurm),
]
PATIENCE_S = 240.0

HOSTILE = (
    "$(touch CANARY)",
    "`touch CANARY`",
    "'; touch CANARY;'",
    '"; touch CANARY; "',
    "\ntouch CANARY",
    "\n#SBATCH --comment=CANARY\n",
    "a & touch CANARY & b | touch CANARY > CANARY",
    "{{ 7*7 }}{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{% for x in [1] %}CANARY{% endfor %}",
    "--wrap=touch CANARY",
    "-c touch${IFS}CANARY",
    "%j%x%N\\%A",
    "größe ☂ \u202e",
    "../../CANARY",
    "x" * 300 + "$(touch CANARY)",
    "",
)
VARIABLE = "; touch CANARY"
FOLDERS = tuple(v for v in HOSTILE if v and v.isprintable() and "/" not in v and len(v) < 255)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a working directory; nothing may leave a canary in it, beside it or at home."""
    watched = [Path.home(), Path("/"), Path("/tmp")]
    before = {path for place in watched for path in place.glob("CANARY*")}
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "work"
    assert not list(tmp_path.rglob("CANARY*"))
    assert {path for place in watched for path in place.glob("CANARY*")} == before


def told(value: Any, *more: Any, **named: Any) -> Any:
    return (value, more, named)


def named(name: str) -> Any:
    """Return a function that is called so."""

    def function(value: Any) -> Any:
        return (value, os.environ.get("HOSTILE"), os.environ.get(VARIABLE))

    function.__name__ = function.__qualname__ = name
    return function


def nothing_was_submitted(cache: Path) -> bool:
    return status(cache) == [] and not list(cache.glob("runs/*"))


@pytest.mark.parametrize("kind", KINDS)
def test_names_keys_arguments_and_annotations(
    kind: type, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = "$(touch CANARY)\n'`touch CANARY`"
    monkeypatch.setenv("HOSTILE", environment)
    monkeypatch.setenv(VARIABLE, environment)
    lazy = []
    for value in HOSTILE:
        with dask.annotate(note=value, **{"n" + value: value}):
            key = f"key {value}"
            lazy.append(dask.delayed(named(value), pure=False)([value], dask_key_name=key))
    with kind(cache_directory=folder / "cache") as exe:
        results = dask.compute(*lazy, scheduler=exe)
        names = {entry["function"] for entry in exe.get_cache_data()}
    assert list(results) == [([value], environment, environment) for value in HOSTILE]
    assert {"key $(touch CANARY)", "key `touch CANARY`", "key '; touch CANARY;'"} <= names


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_may_be_called_what_no_line_of_a_script_could_hold(
    kind: type, folder: Path
) -> None:
    with kind(cache_directory=folder / "cache") as exe:
        future = exe.submit(named("two\nlines\x00\x1b[31m"), 1)
        assert future.result(PATIENCE_S)[0] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_tuple_keys_and_blocks(kind: type, folder: Path) -> None:
    graph = {(value, i, "`touch CANARY`"): (told, value, i) for i, value in enumerate(HOSTILE)}
    options = {"backend": "local" if kind is SingleNodeExecutor else "slurm"}
    found = cluster_get(graph, list(graph), cache_directory=folder / "cache", **options)
    assert list(found) == [(value, (i,), {}) for i, value in enumerate(HOSTILE)]


@pytest.mark.parametrize("kind", KINDS)
def test_directories_job_names_and_log_files(kind: type, folder: Path) -> None:
    futures = {}
    with kind(cache_directory="cache") as exe:
        for i, name in enumerate(FOLDERS):
            (folder / name).mkdir()
            asked = {
                "cwd": folder / name,
                "job_name": name,
                "version": name,
                "cache_key": f"name {name}",
                "error_log_file": folder / f"{i}{name[:200]}.log",
            }
            futures[name] = exe.submit(os.getcwd, resource_dict=asked)
            failing = exe.submit(int, name, resource_dict=asked | {"cache_key": None})
            assert isinstance(failing.exception(PATIENCE_S), ValueError)
        found = {name: future.result(PATIENCE_S) for name, future in futures.items()}
    assert found == {name: str(folder / name) for name in FOLDERS}
    logs = {f"{i}{name[:200]}.log" for i, name in enumerate(FOLDERS)}
    assert {path.name for path in folder.iterdir() if path.is_file()} == logs


@pytest.mark.parametrize("kind", KINDS)
def test_cache_directories(kind: type, folder: Path) -> None:
    """Under which lie scripts, definitions and logs."""
    executors = [kind(cache_directory=f"{name}/c") for name in FOLDERS]
    futures = [
        exe.submit(named("f"), i, resource_dict={"version": str(i)})
        for i, exe in enumerate(executors)
    ]
    assert [f.result(PATIENCE_S)[0] for f in futures] == list(range(len(FOLDERS)))
    assert [f.stderr() for f in futures] == [""] * len(FOLDERS)
    for exe in executors:
        exe.shutdown()


@pytest.mark.parametrize("kind", KINDS)
def test_an_interpreter_in_a_hostile_folder(kind: type, folder: Path) -> None:
    place = folder / "it's $(touch CANARY); `touch CANARY`"
    place.mkdir()
    python = place / "python"
    python.write_text(f'#!/bin/sh\nPROOF=yes exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    with kind(cache_directory=folder / "cache") as exe:
        future = exe.submit(os.getenv, "PROOF", resource_dict={"python": str(python)})
        assert future.result(PATIENCE_S) == "yes"


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_are_in_definitions_alone_and_the_environment_nowhere(
    kind: type, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTILE", "secret of the environment")
    asked = {"job_script_prologue": ["true"], "cache_key": "name", "retries": 1}
    with kind(cache_directory="cache") as exe:
        with dask.annotate(note="secret of a note"):
            lazy = dask.delayed(len)("secret of a task", dask_key_name="key of a task")
        assert dask.compute(lazy, scheduler=exe) == (16,)
        assert exe.submit(len, "secret of a call", resource_dict=asked).result(PATIENCE_S) == 16
    holders = {
        path.relative_to("cache").parts[0]
        for path in Path("cache").rglob("*")
        if path.is_file() and b"secret of a" in path.read_bytes()
    }
    assert holders <= {"definitions"}
    every = [path.read_bytes() for path in Path("cache").rglob("*") if path.is_file()]
    assert len(every) > 8
    assert not any(b"secret of the environment" in content for content in every)
    scripts = [path.read_bytes() for path in Path("cache").rglob("*.sh")]
    assert scripts
    assert not any(b"key of" in script for script in scripts)


WORDS = ("partition", "account", "qos", "reservation", "constraint")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WORDS)
def test_what_is_no_word_is_refused_by_name(kind: type, name: str, folder: Path) -> None:
    for value in HOSTILE:
        if value.isprintable() and value and name == "constraint" and "$" not in value:
            continue
        if value.startswith(("..", "%j")):
            continue
        with kind(cache_directory="cache") as exe:
            with pytest.raises(ResourceError, match=name):
                exe.submit(told, 1, resource_dict={name: value})
            with dask.annotate(resources={name: value}):
                lazy = dask.delayed(told)(1)
            with pytest.raises(ResourceError, match=name):
                dask.compute(lazy, scheduler=exe)
    assert nothing_was_submitted(folder / "cache")


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\x1b[2Jb", "a\0b", "a\u2028b"])
@pytest.mark.parametrize(
    "name", ["cwd", "job_name", "python", "error_log_file", "slurm_cmd_args", "cache_key"]
)
def test_a_line_that_would_end_is_refused_by_name(name: str, value: str, folder: Path) -> None:
    with (
        SingleNodeExecutor(cache_directory="cache") as exe,
        pytest.raises(ResourceError, match=name),
    ):
        exe.submit(told, 1, resource_dict={name: value})
    with pytest.raises(ConfigurationError, match="cache_directory"):
        SingleNodeExecutor(cache_directory=value)
    assert nothing_was_submitted(folder / "cache")


# ---- templates of the user's own ---------------------------------------------------------------

RAW = """#!/bin/bash
#SBATCH --comment={{ mine }}
#SBATCH --chdir={{ working_directory }}
# {{ mine }} {{ cwd }}
export MINE={{ mine }}
cd {{ cwd }} && test "$PWD" = "{{ cwd }}" && {{ command }}
"""


@pytest.mark.slurm
def test_a_template_that_prints_values_raw(folder: Path) -> None:
    futures = {}
    with SlurmClusterExecutor(cache_directory="it's a $(touch CANARY) cache") as exe:
        for name in FOLDERS:
            (folder / name).mkdir()
            asked = {"submission_template": RAW, "cwd": folder / name, "mine": name}
            futures[name] = exe.submit(os.getenv, "MINE", resource_dict={**asked, "version": name})
        found = {name: future.result(PATIENCE_S) for name, future in futures.items()}
    assert found == {name: name for name in FOLDERS}


@pytest.mark.slurm
@pytest.mark.parametrize("value", [v for v in HOSTILE if not v.isprintable()])
def test_a_value_that_a_template_cannot_carry_is_refused(value: str, folder: Path) -> None:
    asked = {"submission_template": RAW, "cwd": folder, "mine": value}
    with SlurmClusterExecutor(cache_directory="cache") as exe:
        with pytest.raises(ResourceError, match="mine"):
            exe.submit(told, 1, resource_dict=asked)
        heredoc = "#!/bin/bash\ncat <<EOF\n{{ mine }}\nEOF\n{{ command }}\n"
        with pytest.raises(TemplateError, match="mine"):
            exe.submit(told, 1, resource_dict={"submission_template": heredoc, "mine": "$(x)"})
    assert nothing_was_submitted(folder / "cache")
