from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import dask
import pytest

from dask_batch.backends import registry
from dask_batch.backends.registry import Setup, choose_backend, open_backend
from dask_batch.configuration import settings
from dask_batch.configuration.config import resolve
from dask_batch.configuration.options import KEYWORDS, Options
from dask_batch.errors import BackendUnavailableError, ConfigurationError


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """Nothing has been said yet, and nothing of the machine's decides."""
    monkeypatch.setattr(registry, "_said", set())
    monkeypatch.setattr(settings, "_jobqueue_reported", False)
    monkeypatch.delenv("FLUX_URI", raising=False)


def test_the_file_of_defaults_says_what_the_class_says():
    assert resolve(backend="local") == Options(
        backend="local", cache_directory=Path.cwd() / "dask_batch_cache"
    )


def test_every_option_has_a_setting_and_every_setting_an_option():
    settings.register_defaults()
    assert set(dask.config.get("batch")) == set(settings.SETTINGS)
    assert set(settings.SETTINGS.values()) == set(KEYWORDS) - settings._KEYWORDS_ONLY


def test_a_keyword_is_before_the_configuration_and_that_before_the_default():
    with dask.config.set({"batch.fuse": "none", "batch.max-jobs": 7, "batch.input-grace": "2m"}):
        options = resolve(backend="local", fuse="linear")
    assert (options.fuse, options.max_jobs, options.input_grace_s) == ("linear", 7, 120.0)
    assert options.key_versions == "minor"


def test_hyphens_and_underscores_are_the_same_to_the_configuration(tmp_path):
    with dask.config.set({"batch.cache_directory": str(tmp_path)}):
        assert resolve(backend="local").cache_directory == tmp_path


def test_resources_are_merged_and_the_callers_dictionaries_left_alone():
    given = {"partition": None, "cores": 2}
    with dask.config.set({"batch.resource-dict": {"partition": "long", "account": "abc"}}):
        options = resolve(backend="local", resource_dict=given)
    assert options.resource_dict == {"account": "abc", "cores": 2}
    assert given == {"partition": None, "cores": 2}


def test_rules_are_copied():
    rules = {"read-parquet*": {"memory_max": 16}}
    options = resolve(backend="local", resource_rules=rules)
    rules["read-parquet*"]["memory_max"] = 1
    assert options.resource_rules == {"read-parquet*": {"memory_max": 16}}


def test_the_cache_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = resolve(backend="local", cache_directory="cache")
    assert options.cache_directory == tmp_path / "cache"
    assert resolve(backend="local", cache_directory="~/c").cache_directory == Path.home() / "c"


def test_an_unknown_setting_names_the_nearest():
    with (
        dask.config.set({"batch.cache-dir": "x"}),
        pytest.raises(ConfigurationError, match=r"'batch\.cache-dir'.*'batch\.cache-directory'"),
    ):
        resolve(backend="local")


def test_an_unknown_keyword_lists_the_known_ones():
    with pytest.raises(ConfigurationError, match=r"'key_version'.*'key_versions'") as caught:
        resolve(backend="local", key_version="exact")
    assert all(name in str(caught.value) for name in KEYWORDS)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("fuse", "all"),
        ("fuse", ["auto"]),
        ("key_versions", "major"),
        ("max_jobs", 0),
        ("max_jobs", "many"),
        ("max_workers", -1),
        ("cache_directory", 3),
        ("cache_directory", "a\nb"),
        ("cache_directory", ""),
        ("resource_dict", [1]),
        ("resource_rules", {"x*": 3}),
        ("shortest_poll_s", "soon"),
        ("shortest_poll_s", -1),
        ("refresh_rate", 0),
        ("refresh_rate", "often"),
        ("log_obj_size", "yes"),
        ("disable_dependencies", 1.5),
        ("output_grace_s", float("inf")),
        ("output_grace_s", float("nan")),
        ("backend", "slrum"),
        ("backend", 3),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(keyword, value):
    name = {"backend": "backend", "resource_rules": "resource_rules"}.get(keyword, keyword)
    with pytest.raises(ConfigurationError, match=name):
        resolve(**{"backend": "local", keyword: value})


@pytest.mark.parametrize(
    ("keyword", "default", "other"),
    [
        ("flux_executor", None, object()),
        ("flux_log_files", True, "flux.out"),
        ("plot_dependency_graph", False, True),
        ("restart_limit", 0, 2),
        ("wait", True, False),
    ],
)
def test_options_of_executorlib_are_accepted_when_they_ask_for_nothing(keyword, default, other):
    assert resolve(backend="local", **{keyword: default}) == resolve(backend="local")
    with pytest.raises(ConfigurationError, match=keyword):
        resolve(backend="local", **{keyword: other})


def test_parameters_that_are_resources_become_defaults_of_theirs():
    assert resolve(backend="local", pmi_mode="pmix").resource_dict == {"pmi_mode": "pmix"}
    said = resolve(backend="local", pmi_mode="pmix", resource_dict={"pmi_mode": "pmi2"})
    assert said.resource_dict == {"pmi_mode": "pmi2"}
    assert resolve(backend="local", pmi_mode=None).resource_dict == {}
    assert resolve(backend="local", flux_executor_nesting=False).resource_dict == {}
    nested = resolve(backend="local", flux_executor_nesting=True).resource_dict
    assert nested == {"flux_executor_nesting": True}


JOBQUEUE = {
    "name": "dask-worker",
    "account": "abc",
    "queue": "regular",
    "python": "/opt/python",
    "walltime": "00:30:00",
    "job-script-prologue": ["module load gcc"],
}


def test_a_section_of_dask_jobqueue_gives_defaults_and_that_is_said_once(caplog):
    caplog.set_level(logging.INFO, logger="dask_batch")
    with dask.config.set({"jobqueue.slurm": JOBQUEUE, "batch.resource-dict": {"account": "xyz"}}):
        options = resolve(backend="slurm", resource_dict={"python": None})
        resolve(backend="slurm")
        local = resolve(backend="local")
    assert options.resource_dict == {
        "account": "xyz",
        "partition": "regular",
        "job_script_prologue": ("module load gcc",),
    }
    assert local.resource_dict == {"account": "xyz"}
    assert caplog.text.count("jobqueue.slurm") == 1


def test_an_empty_section_of_dask_jobqueue_says_nothing(caplog):
    caplog.set_level(logging.INFO, logger="dask_batch")
    empty = {"account": None, "queue": None, "python": None, "job-script-prologue": []}
    with dask.config.set({"jobqueue.slurm": empty}):
        assert resolve(backend="slurm").resource_dict == {}
    assert "jobqueue" not in caplog.text


def test_slurm_is_chosen_where_sbatch_is_and_that_is_said_once(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="dask_batch")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert choose_backend() == "local"
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    assert [choose_backend() for _ in range(3)] == ["slurm"] * 3
    assert caplog.text.count("'slurm'") == 1


def test_flux_is_chosen_inside_an_instance_and_that_is_said_once(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="dask_batch")
    monkeypatch.setenv("FLUX_URI", "local:///run/flux")
    assert [choose_backend() for _ in range(3)] == ["flux"] * 3
    assert caplog.text.count("'flux', since FLUX_URI is set") == 1


@pytest.mark.parametrize(
    ("name", "variable"), [("flux-step", "FLUX_URI"), ("slurm-step", "SLURM_JOB_ID")]
)
def test_a_backend_within_an_allocation_says_which_variable_is_missing(name, variable, monkeypatch):
    for each in ("FLUX_URI", "SLURM_JOB_ID", "SLURM_JOBID"):
        monkeypatch.delenv(each, raising=False)
    assert resolve(backend=name).backend == name
    with pytest.raises(BackendUnavailableError, match=f"{variable} is not set"):
        open_backend(name)


def test_slurm_without_its_commands_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailableError, match="sbatch"):
        open_backend("slurm")


def test_max_workers_means_nothing_to_slurm():
    with pytest.raises(ConfigurationError, match="max_workers"):
        open_backend("slurm", Setup(max_workers=2))


def test_which_flux_instance_is_meant(tmp_path):
    assert resolve(backend="flux", flux_uri="local:///run/flux").setup.flux_uri
    with pytest.raises(ConfigurationError, match="flux_uri must be a text"):
        resolve(backend="flux", flux_uri=5)
    for name in ("local", "slurm"):
        with pytest.raises((ConfigurationError, BackendUnavailableError), match=r"flux_uri|Slurm"):
            open_backend(name, Setup(flux_uri="local:///run/flux"))


def python(code: str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.strip()


def test_the_file_of_defaults_is_laid_beside_dasks_other_files(tmp_path):
    code = (
        "from dask_batch.configuration import config as c; print(c.resolve(backend='local').fuse)"
    )
    folder = tmp_path / "config"
    assert python(code, DASK_CONFIG=str(folder)) == "auto"
    text = (folder / "batch.yaml").read_text()
    assert "cache-directory" in text
    assert all(line.startswith("#") for line in text.splitlines() if line.strip())
    (folder / "batch.yaml").write_text("batch:\n  fuse: none\n")
    assert python(code, DASK_CONFIG=str(folder)) == "none"
    assert (folder / "batch.yaml").read_text() == "batch:\n  fuse: none\n"


def test_the_environment_sets_options(tmp_path):
    code = (
        "from dask_batch.configuration.config import resolve\n"
        "options = resolve(); print(options.backend, options.max_jobs)"
    )
    found = python(
        code, DASK_CONFIG=str(tmp_path), DASK_BATCH__BACKEND="local", DASK_BATCH__MAX_JOBS="5"
    )
    assert found == "local 5"


def test_reading_options_needs_neither_networkx_nor_jinja2(tmp_path):
    code = (
        "import sys, dask_batch.configuration.config\n"
        "print(sorted({'networkx', 'jinja2', 'h5py', 'numpy', 'dask.array'} & set(sys.modules)))"
    )
    assert python(code, DASK_CONFIG=str(tmp_path)) == "[]"
