"""Bad input: an error that names the culprit and the remedy, before anything is submitted."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import pytest

from bodies import add, noted, traces
from dask_batch import SingleNodeExecutor, SlurmClusterExecutor, cluster_get, status
from dask_batch.cache.store import Cache
from dask_batch.errors import (
    CacheError,
    ConfigurationError,
    ResourceError,
    TemplateError,
    TooManyJobsError,
)
from slurm_cluster import OWN_TEMPLATE

EXECUTORS = [
    pytest.param(SingleNodeExecutor, id="local"),
    pytest.param(SlurmClusterExecutor, id="slurm", marks=pytest.mark.slurm),
]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def nothing_was_submitted(cache: Path) -> bool:
    return status(cache) == [] and not list(cache.glob("runs/*"))


# ---- templates ---------------------------------------------------------------------------------

TEMPLATES = {
    "a missing name": (
        "#!/bin/bash\n#SBATCH --time={{ walltme }}\n{{ command }}\n",
        r"'walltme' is undefined.*resource_dict.*\{% if",
    ),
    "a name that is not set": (
        "#!/bin/bash\n#SBATCH --partition={{ partition }}\n{{ command }}\n",
        r"not set: 'partition' \(line 2\).*\{% if partition %\}",
    ),
    "no end of a block": (
        "#!/bin/bash\n{% if partition %}\n{{ command }}\n",
        r"does not parse: line \d",
    ),
    "nonsense": ("#!/bin/bash\n{{ command ] }}\n", r"does not parse: line 2(.|\n)*command \]"),
    "no interpreter": ("{{ command }}\n", "must begin with a line such as '#!/bin/bash'"),
    "forbidden": (
        "#!/bin/bash\n{{ ''.__class__.__mro__ }}\n{{ command }}\n",
        "unsafe|__class__|__mro__|missing",
    ),
}


@pytest.mark.slurm
@pytest.mark.parametrize("what", TEMPLATES)
def test_a_template_that_does_not_render(what: str, cache: Path) -> None:
    template, message = TEMPLATES[what]
    resources = {"submission_template": template}
    with SlurmClusterExecutor(cache_directory=cache) as exe:
        with pytest.raises(TemplateError, match=message):
            exe.submit(add, 1, 1, resource_dict=resources)
        with pytest.raises(TemplateError, match=message):
            exe.compute(dask.delayed(add)(1, 1), resource_dict=resources)
    with pytest.raises(TemplateError, match=message):
        dask.compute(
            dask.delayed(add)(1, 1),
            scheduler=cluster_get,
            backend="slurm",
            cache_directory=cache,
            resource_dict=resources,
        )
    assert nothing_was_submitted(cache)


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"memory_max": 1e6}, "memory_max.*MB.*at most"),
        ({"threads_per_core": 4096}, "threads_per_core.*4096.*at most"),
        ({"num_nodes": 10_000}, "num_nodes.*at most"),
        ({"job_name": "a\nb"}, "job_name"),
        ({"partition": "debug\n#SBATCH --uid=0"}, "partition"),
        ({"account": "a b"}, "account"),
        ({"run_time_max": -1}, "run_time_max"),
    ],
)
def test_a_request_that_cannot_be_met(resources: Any, message: str, cache: Path) -> None:
    with SlurmClusterExecutor(cache_directory=cache) as exe:
        with pytest.raises(ResourceError, match=message):
            exe.submit(add, 1, 1, resource_dict=resources)
        with dask.annotate(resources=resources):
            lazy = dask.delayed(add)(1, 1)
        with pytest.raises(ResourceError, match=message):
            exe.compute(lazy)
    assert nothing_was_submitted(cache)


@pytest.mark.parametrize("wrong", [[("cores", 1)], "cores", 3])
def test_resources_that_are_no_mapping(wrong: Any, cache: Path) -> None:
    with SingleNodeExecutor(cache_directory=cache) as exe:
        for call in (
            lambda: exe.submit(add, 1, 1, resource_dict=wrong),
            lambda: exe.compute(dask.delayed(add)(1, 1), resource_dict=wrong),
            lambda: dask.compute(dask.delayed(add)(1, 1), scheduler=exe, resource_dict=wrong),
        ):
            with pytest.raises(ConfigurationError, match=r"resource_dict must be a mapping.*, not"):
                call()
    assert nothing_was_submitted(cache)


def test_a_refusal_names_the_function_and_no_job_that_does_not_exist(cache: Path) -> None:
    with SingleNodeExecutor(cache_directory=cache) as exe:
        for asked in ({"threads_per_core": 4096}, {"cwd": "/nowhere/at/all"}):
            with pytest.raises(ResourceError, match=r"^job add: ") as caught:
                exe.submit(add, 1, 1, resource_dict=asked)
            assert "RUN" not in str(caught.value)
    assert nothing_was_submitted(cache)


@pytest.mark.slurm
def test_a_batch_system_is_spared_more_than_a_thousand_jobs(cache: Path) -> None:
    lazy = [dask.delayed(add)(i, 1) for i in range(700)]
    other = [dask.delayed(noted)(Path("/"), i) for i in range(301)]
    with (
        SlurmClusterExecutor(cache_directory=cache) as exe,
        pytest.raises(TooManyJobsError, match=r"1,001 jobs.*1,000.*700 add.*301 noted"),
    ):
        dask.compute(*lazy, *other, scheduler=exe)
    assert nothing_was_submitted(cache)


# ---- cache directories -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXECUTORS)
def test_a_cache_directory_that_is_a_file(kind: type, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    for use in (
        lambda: kind(cache_directory=path),
        lambda: kind(cache_directory=path / "below"),
        lambda: cluster_get({"a": 1}, "a", backend="local", cache_directory=path),
    ):
        with pytest.raises(CacheError, match="file"):
            use()


def test_a_cache_directory_that_others_may_write(cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(CacheError, match=rf"{cache}(.|\n)*(others|chmod|mode)"):
        SingleNodeExecutor(cache_directory=cache)


def test_a_cache_directory_of_another_version(cache: Path) -> None:
    Cache(cache)
    marker = cache / "dask-batch-cache.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "version": 99}))
    with pytest.raises(CacheError, match=r"99"):
        SingleNodeExecutor(cache_directory=cache)


def test_a_folder_that_holds_what_a_cache_would_need_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "thesis.txt").write_text("x")
    with pytest.raises(CacheError, match=r"holds 'results'.*another cache directory"):
        SingleNodeExecutor(cache_directory=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


AS_ANOTHER_USER = """
import os, sys
from dask_batch.cache.store import Cache  # while the files can be read
from dask_batch.errors import CacheError
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[1]))
try:
    Cache(sys.argv[3])
except CacheError as error:
    print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_cache_directory_that_is_not_writable_or_somebody_elses(
    request: pytest.FixtureRequest,
) -> None:
    nobody = pwd.getpwnam("nobody")
    # What pytest gives is closed to others.
    folder = Path(tempfile.mkdtemp())
    request.addfinalizer(lambda: shutil.rmtree(folder))
    folder.chmod(0o755)
    (folder / "roots").mkdir(mode=0o755)

    def attempt(path: Path) -> str:
        argv = [sys.executable, "-c", AS_ANOTHER_USER, str(nobody.pw_uid), str(nobody.pw_gid)]
        done = subprocess.run(
            [*argv, str(path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for path in (folder / "new", folder / "roots"):
        said = attempt(path)
        assert str(path) in said
        assert "cannot" in said or "belongs" in said or "own" in said, said


@pytest.mark.parametrize("value", [3, "a\nb", "~nosuchuser/cache"])
def test_a_cache_directory_that_is_no_path(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="cache_directory"):
        SingleNodeExecutor(cache_directory=value)


# ---- hostile names -----------------------------------------------------------------------------

NAMES = [
    "'; touch pwned; '",
    "$(touch pwned)",
    "`touch pwned`",
    'a"b\nc',
    "../../up",
    "-rf",
    "größe",
    "x" * 500,
    "",
    "%j %A\\n",
]


@pytest.mark.parametrize("kind", EXECUTORS)
def test_no_name_of_a_function_can_do_harm(
    kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with kind(cache_directory=tmp_path / "cache") as exe:
        futures = []
        for i, name in enumerate(NAMES):

            def named(i: int, folder: Path) -> int:
                noted(folder, "named")
                return i

            named.__name__ = named.__qualname__ = name
            futures.append(exe.submit(named, i, tmp_path))
        assert [future.result(180) for future in futures] == list(range(len(NAMES)))
        assert {entry["function"] for entry in exe.get_cache_data()} >= {"$(touch pwned)"}
    assert traces(tmp_path)["named"] == len(NAMES)
    assert not list(tmp_path.rglob("pwned*"))


FOLDERS = [
    "a b",
    'it\'s "quoted"',
    "größe ☂",
    "$(touch pwned)",
    "back\\slash %j #x;&|",
    "new\nline",
]


@pytest.mark.parametrize("kind", EXECUTORS)
def test_no_name_of_a_folder_can_do_harm(
    kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the working directory; and, where it can be printed, as the cache."""
    futures: dict[str, Any] = {}
    executors = []
    for name in FOLDERS:
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        cache = folder / "cache" if name.isprintable() else tmp_path / "cache"
        exe = kind(cache_directory=cache)
        executors.append(exe)
        futures[name] = exe.submit(os.getcwd, resource_dict={"version": str(len(futures))})
    for name, future in futures.items():
        assert future.result(180) == str(tmp_path / name)
    for exe in executors:
        exe.shutdown()
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.slurm
def test_a_hostile_folder_under_a_template_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: Callable[[], list[str]]
) -> None:
    folder = tmp_path / "a b's $(touch pwned)"
    folder.mkdir()
    monkeypatch.chdir(folder)
    argv = ["sinfo", "-h", "-o", "%P"]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    resources = {
        "submission_template": OWN_TEMPLATE,
        "partition": listed.split()[0].rstrip("*"),
    }
    with SlurmClusterExecutor(cache_directory="cache", resource_dict=resources) as exe:
        assert exe.submit(os.getcwd).result(120) == str(folder)
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("given", [[("cores", 2)], "cores=2", 2])
def test_resources_of_a_call_that_are_no_mapping(given: Any, cache: Path) -> None:
    with SingleNodeExecutor(cache_directory=cache) as executor:
        for ask in (
            lambda: executor.submit(add, 1, 2, resource_dict=given),
            lambda: executor.compute(dask.delayed(add)(1, 2), resource_dict=given),
            lambda: executor.job_script(given),
        ):
            with pytest.raises((ResourceError, ConfigurationError), match="must be a mapping"):
                ask()
