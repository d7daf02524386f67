"""One graph on several batch systems: the same keys, the same results, and one cache for all.

The script runs in two folders, as on a laptop and on a cluster to which the cache was copied: the
input has another path and another time there, strings hash otherwise, and the code is in other
files. The input counts by its content (``digest=True``).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from local_harness import PACKAGE

MODULE = """
GAIN = 3

def amplified(values, by=GAIN):
    return [by * value for value in values]
"""

SCRIPT = """
import json
import sys

import dask
import dask.array as da
import numpy as np

import dask_batch
from dask_batch import File, cluster_get, get_cache_data, status
from own import amplified

EXECUTORS = {
    "local": "SingleNodeExecutor", "slurm": "SlurmClusterExecutor", "flux": "FluxClusterExecutor"
}

def read(path):
    return np.load(path)

def weigh(values, offset):
    return {"sum": float(sum(values)) + offset, "names": sorted({"b", "a", "c"})}

def double(values):
    return [2 * float(value) for value in values]

def main(backend, cache, offset):
    options = {"cache_directory": cache, "shortest_poll_s": 0.3}
    table = File("input.npy", digest=True)
    field = da.from_delayed(dask.delayed(read)(table), shape=(4, 6), dtype=float)
    columns = (field.rechunk((4, 3)) ** 2).sum(axis=0)
    more = dask.delayed(amplified)(columns, by=5)
    weight = dask.delayed(weigh)(more, offset)
    graph = dask.compute(columns, more, weight, scheduler=cluster_get, backend=backend, **options)
    with getattr(dask_batch, EXECUTORS[backend])(**options) as exe:
        first = exe.submit(read, table)
        second = exe.submit(double, [1, 2, 3])
        third = exe.submit(amplified, second)
        calls = [first.result().tolist(), second.result(), third.result()]
        called = [future.key for future in (first, second, third)]
    entries = get_cache_data(cache)
    return {
        "values": [graph[0].tolist(), graph[1], graph[2], *calls],
        "called": called,
        "jobs": {entry["key"]: [entry["function"], entry["queue_id"]] for entry in entries},
        "runs": len(status(cache)),
    }

if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
"""


class Site:
    """A folder with the script, the module it imports and its input; what a user has at a place."""

    def __init__(self, folder: Path, *, hash_seed: int, written: int) -> None:
        self.folder = folder
        self.hash_seed = hash_seed
        folder.mkdir()
        (folder / "own.py").write_text(MODULE)
        (folder / "script.py").write_text(SCRIPT)
        np.save(folder / "input.npy", np.arange(24.0).reshape(4, 6))
        os.utime(folder / "input.npy", (written, written))

    def run(self, backend: str, cache: Path, offset: int = 0) -> dict[str, Any]:
        """Run the script, and return what it found."""
        path = os.pathsep.join([str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "script.py", backend, str(cache), str(offset)],
            cwd=self.folder,
            env={**os.environ, "PYTHONHASHSEED": str(self.hash_seed), "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return said


pytest_plugins = ["flux_systems"]


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A cache that was filled by the local queue, and what the script found there."""
    folder = tmp_path_factory.mktemp("laptop")
    cache = folder / "cache"
    return cache, Site(folder / "project", hash_seed=1, written=1_000_000_000).run("local", cache)


@pytest.fixture(
    params=[
        pytest.param("slurm", marks=pytest.mark.slurm),
        pytest.param("flux", marks=pytest.mark.flux),
    ]
)
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A batch system that is reachable."""
    name: str = request.param
    if name == "flux":
        monkeypatch.setenv("FLUX_URI", request.getfixturevalue("flux_uri"))
    else:
        request.getfixturevalue("slurm")  # which cancels what a test leaves behind
    return name


@pytest.fixture
def cluster(tmp_path: Path) -> Site:
    return Site(tmp_path / "elsewhere", hash_seed=2, written=1_500_000_000)


def test_what_a_laptop_has_computed_is_found_on_the_cluster(
    laptop: tuple[Path, dict[str, Any]], cluster: Site, elsewhere: str, tmp_path: Path
) -> None:
    cache, before = laptop
    assert len(before["jobs"]) >= 6
    assert all(job_id.startswith("local-") for _, job_id in before["jobs"].values())
    copied = tmp_path / "copied"
    shutil.copytree(cache, copied)
    assert cluster.run(elsewhere, copied) == before  # no further run, nor any other result
    # What is new builds upon what was found.
    after = cluster.run(elsewhere, copied, offset=7)
    assert after["values"][2]["sum"] == before["values"][2]["sum"] + 7
    new = [job for key, job in after["jobs"].items() if key not in before["jobs"]]
    assert [function for function, _ in new] == ["weigh"]
    assert not new[0][1].startswith("local-")
    assert after["runs"] == before["runs"] + 1


def test_the_same_keys_and_results_from_nothing(
    laptop: tuple[Path, dict[str, Any]], cluster: Site, elsewhere: str, tmp_path: Path
) -> None:
    _, there = laptop
    here = cluster.run(elsewhere, tmp_path / "cache")
    assert here["values"] == there["values"]
    assert here["called"] == there["called"]
    assert here["jobs"].keys() == there["jobs"].keys()
    assert not any(job_id.startswith("local-") for _, job_id in here["jobs"].values())


def test_another_content_is_another_input(
    laptop: tuple[Path, dict[str, Any]], cluster: Site, tmp_path: Path
) -> None:
    cache, before = laptop
    copied = tmp_path / "copied"
    shutil.copytree(cache, copied)
    written = os.stat(cluster.folder / "input.npy")
    np.save(cluster.folder / "input.npy", np.arange(24.0).reshape(4, 6) + 1)
    os.utime(cluster.folder / "input.npy", (written.st_atime, written.st_mtime))
    after = cluster.run("local", copied)
    assert after["values"][0] != before["values"][0]
    assert after["called"][0] != before["called"][0]
    assert after["called"][1:] == before["called"][1:]
