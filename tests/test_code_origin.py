from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from dask_batch.code.namespaces import travelled
from dask_batch.code.origin import (
    cut_version,
    distribution,
    is_user_module,
    library_label,
    library_of_namespace,
    travels_by_value,
)


@pytest.mark.parametrize("name", ["__main__", None, "__mp_main__", "there_is_no_such_module"])
def test_what_cannot_be_found_is_the_users(name):
    assert is_user_module(name)


@pytest.mark.parametrize(
    "name",
    ["sys", "os", "os.path", "json.decoder", "numpy", "numpy.linalg", "dask_batch.spec", "_thread"],
)
def test_libraries_and_the_package_itself_are_not_the_users(name):
    assert not is_user_module(name)


def test_this_test_is_the_users():
    assert is_user_module(__name__)


def test_asking_imports_nothing(tmp_path, monkeypatch):
    package = tmp_path / "asked"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "inner.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert is_user_module("asked.inner")
    assert "asked" not in sys.modules


@pytest.mark.parametrize("directory", ["site-packages", "dist-packages"])
def test_a_module_tree_of_a_cluster_is_a_library(tmp_path, monkeypatch, directory):
    tree = tmp_path / "opt" / directory
    tree.mkdir(parents=True)
    (tree / "clustered.py").write_text("__version__ = '3.4.5'")
    monkeypatch.syspath_prepend(tree)
    assert not is_user_module("clustered")


def test_what_pip_has_put_into_a_folder_is_a_library_and_what_lies_beside_is_not(
    tmp_path, monkeypatch
):
    for file in ("thing/__init__.py", "thing/part.py", "single.py", "mine.py", "thing/mine.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    info = tmp_path / "thing-1.2.dist-info"
    info.mkdir()
    lines = ["thing/__init__.py,sha256=x,0", "thing/part.py,,", '"single.py",,', "../bin/thing,,"]
    (info / "RECORD").write_text("\n".join(lines))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.2.3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("thing", "thing.part", "single"):
        assert not is_user_module(module)
        assert library_label(module) == "1.2"
    assert is_user_module("mine")
    assert is_user_module("thing.mine")


def test_a_namespace_package_is_judged_by_where_it_lies(tmp_path, monkeypatch):
    (tmp_path / "spread" / "part").mkdir(parents=True)
    (tmp_path / "spread" / "part" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert is_user_module("spread")
    assert is_user_module("spread.part")


def test_a_module_made_on_the_fly_is_the_users_unless_a_library_made_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "made_here", types.ModuleType("made_here"))
    monkeypatch.setitem(sys.modules, "numpy.made", types.ModuleType("numpy.made"))
    assert is_user_module("made_here")
    assert not is_user_module("numpy.made")


def test_an_extension_module_cannot_travel(tmp_path, monkeypatch):
    module = types.ModuleType("compiled")
    module.__file__ = str(tmp_path / "compiled.so")
    Path(module.__file__).write_bytes(b"\x7fELF")
    monkeypatch.setitem(sys.modules, "compiled", module)
    assert not is_user_module("compiled")
    name, version = distribution("compiled")
    assert (name, version.partition(":")[0]) == ("compiled", "sha256")


def test_a_reloaded_module_is_judged_anew(tmp_path, monkeypatch):
    module = types.ModuleType("moved")
    module.__file__ = str(tmp_path / "site-packages" / "moved.py")
    monkeypatch.setitem(sys.modules, "moved", module)
    assert not is_user_module("moved")
    module.__file__ = str(tmp_path / "moved.py")
    assert is_user_module("moved")


def test_a_module_that_travelled_stays_the_users_even_under_a_library_name(monkeypatch):
    module = travelled("code", package="", is_package=False)
    monkeypatch.setitem(sys.modules, "code", module)
    assert is_user_module("code")


def test_distributions():
    import numpy
    import yaml

    assert distribution("numpy.linalg") == ("numpy", numpy.__version__)
    assert distribution("yaml") == ("pyyaml", yaml.__version__)
    assert distribution("os.path") is None
    assert distribution("sys") is None


@pytest.mark.parametrize(
    ("version", "minor"),
    [
        ("2.4.1", "2.4"),
        ("2.4.0rc1", "2.4"),
        ("2026.8.0", "2026.8"),
        ("3", "3"),
        ("1!2.3.4", "1!2.3"),
        ("1.10.2", "1.10"),
        ("2.4.dev0+g12", "2.4"),
        ("sha256:ab", "sha256:ab"),
    ],
)
def test_versions_are_cut(version, minor):
    assert cut_version(version) == minor
    assert cut_version(version, "exact") == version
    assert cut_version(version, "none") == ""


def test_labels():
    import numpy

    assert library_label("numpy.linalg", "exact") == numpy.__version__
    assert numpy.__version__.startswith(library_label("numpy") + ".")
    assert library_label("json") == ""


def test_by_value_is_what_no_library_offers_by_name():
    import functools
    import json

    @functools.wraps(json.dumps)
    def wrapper():
        return None

    assert travels_by_value(wrapper)
    assert not travels_by_value(json.dumps)
    assert not travels_by_value(json.JSONEncoder)
    assert not travels_by_value(type(None))
    assert library_of_namespace(vars(json)) == "json"
    assert library_of_namespace(dict(vars(json))) is None
    assert library_of_namespace(globals()) is None
