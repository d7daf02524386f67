from __future__ import annotations

import json as np  # a library under another name
import sys
import types

import pytest

from dask_batch.code.reach import LibraryReference, Missing, reach, reached, resolve

FIRST = 1


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the user's that has not been imported."""
    root = tmp_path / "reached_package"
    (root / "deep").mkdir(parents=True)
    (root / "__init__.py").write_text("TOP = 1\n")
    (root / "leaf.py").write_text("def g():\n    return 1\nK = 2\n")
    (root / "deep" / "__init__.py").write_text("")
    (root / "deep" / "end.py").write_text(
        "def relative():\n"
        "    from . import nowhere\n"
        "    from ..leaf import g\n"
        "    from .. import leaf\n"
        "    return g() + leaf.K\n"
    )
    (root / "broken.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "reached_package"
    for name in [n for n in sys.modules if n.startswith("reached_package")]:
        del sys.modules[name]


def defined(source: str, **namespace):
    """Execute source code and return what it calls ``f``."""
    namespace.setdefault("__name__", "somewhere")
    exec(source, namespace)
    return namespace["f"]


def labels(function):
    return [label for label, _ in reached(function)]


def uses(source):
    return {g.name: (g.chains, g.whole) for g in reach(defined(source)).globals}


def test_chains_on_globals():
    found = uses("def f(x):\n return helper.sub.g(x) + helper.K, other, third(x).attr")
    assert found == {
        "helper": ((("K",), ("sub", "g")), False),
        "other": ((), True),
        "third": ((), True),
    }


def test_a_module_that_is_passed_on_is_used_whole():
    assert uses("def f():\n return getattr(helper, 'g'), helper.h") == {"helper": ((("h",),), True)}


@pytest.mark.parametrize(
    "body",
    ["helper.counter += 1", "helper.counter = 5", "del helper.counter", "helper.counter.x(1)[2]"],
)
def test_attributes_that_are_set_count_as_used(body):
    ((chain, whole),) = uses(f"def f():\n {body}").values()
    assert chain[0][0] == "counter"
    assert not whole


@pytest.mark.parametrize(
    "body",
    [
        "return [helper.g(i) for i in x]",
        "return (lambda: helper.g)",
        "return {k: helper.g for k in x}",
        "return list(helper.g(i) for i in x)",
        "class K:\n  v = helper.g\n return K",
        "class K:\n  def m(self): return helper.g\n return K",
        "def inner(a=helper.g): return a\n return inner",
        "async def inner():\n  async for i in x: yield helper.g\n return inner",
        "return x if x else helper.g",
        "try: return x\n except helper.g: raise",
        "match x:\n  case helper.g: return 1",
        "with helper.g: pass",
    ],
)
def test_code_inside_counts(body):
    assert uses(f"def f(x):\n {body}")["helper"] == ((("g",),), False)


def test_builtins_are_left_out_unless_shadowed():
    assert uses("def f(x):\n return len(x), print") == {}
    shadowing = defined("def f(x):\n return len(x)", len=max)
    assert dict(reached(shadowing)) == {"len": max}


def test_the_reach_does_not_depend_on_lines_or_specialisation():
    first = defined("def f(x):\n return helper.g(x) + K", helper=np, K=1)
    second = defined("\n\n# moved\ndef f(x):\n\n  return helper.g(x) + K", helper=np, K=1)
    with pytest.raises(AttributeError):
        first(1)
    before = reach(second)
    warm = defined("def f(x):\n return len(x) + FIRST", FIRST=1)
    cold = reach(warm)
    for _ in range(100):
        warm("ab")
    assert reach(first) == before
    assert reach(warm) == cold


def imports(source):
    return [(i.module, i.root, i.chains, i.whole) for i in reach(defined(source)).imports]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("import a.b.c\n a.b.c.f()", ("a.b.c", "a", (("b", "c", "f"),), False)),
        ("import a.b.c as d\n d.f()", ("a.b.c", "a.b.c", (("f",),), False)),
        ("import a as d\n return d", ("a", "a", (), True)),
        ("from a import b as c\n c.f()", ("a", "a", (("b", "f"),), False)),
        ("from a import b, c\n return b", ("a", "a", (("b",), ("c",)), False)),
        ("import a\n return [a.f for i in x]", ("a", "a", (("f",),), False)),
        ("import a\n def inner(): return a.f\n return inner", ("a", "a", (("f",),), False)),
        ("global a\n import a\n", ("a", "a", (), True)),
        ("class K:\n  import a\n return K", ("a", "a", (), True)),
        ("import a\n return a.f(a.g)", ("a", "a", (("f",), ("g",)), False)),
    ],
)
def test_imports_in_bodies(body, expected):
    assert imports(f"def f(x):\n {body}") == [expected]


def test_relative_imports_resolve_through_the_package(package):
    import importlib

    end = importlib.import_module(f"{package}.deep.end")
    found = dict(reached(end.relative))
    leaf = importlib.import_module(f"{package}.leaf")
    assert found[f"import {package}.leaf.g"] is leaf.g
    assert found[f"import {package}.leaf.K"] == 2
    assert found[f"import {package}.deep.nowhere"] == Missing(f"{package}.deep.nowhere")


def test_imported_user_modules_are_followed_and_needed(package):
    f = defined(f"def f():\n from {package} import leaf\n return leaf.g()")
    resolved = resolve(f)
    assert [label for label, _ in resolved.values] == [f"import {package}.leaf.g"]
    assert list(resolved.modules) == [package, f"{package}.leaf"]
    bound = {(b.namespace["__name__"], b.name) for b in resolved.bindings}
    assert bound == {(package, "leaf"), (f"{package}.leaf", "g")}


def test_what_fails_to_import_is_missing(package):
    f = defined(f"def f():\n import {package}.broken, {package}.absent\n import nowhere_at_all")
    assert dict(reached(f)) == {
        f"import {package}.broken": Missing(f"{package}.broken"),
        f"import {package}.absent": Missing(f"{package}.absent"),
        "import nowhere_at_all": Missing("nowhere_at_all"),
    }


def test_a_library_that_a_body_imports_is_named_and_not_imported(monkeypatch):
    f = defined("def f():\n from wsgiref import simple_server as s\n return s.demo_app")
    for name in [n for n in sys.modules if n.startswith("wsgiref")]:
        monkeypatch.delitem(sys.modules, name)
    expected = {
        "import wsgiref.simple_server.demo_app": LibraryReference(
            "wsgiref", ("simple_server", "demo_app")
        )
    }
    assert dict(reached(f)) == expected
    assert "wsgiref" not in sys.modules


def test_chains_lead_through_user_modules_to_values_and_stop_there():
    helper = types.ModuleType("made_up_helper")
    helper.sub = types.ModuleType("made_up_helper.sub")
    helper.sub.table = {"a": [1]}
    helper.np = np
    f = defined(
        "def f():\n return helper.sub.table.get('a'), helper.np.dumps, helper.none.x", helper=helper
    )
    assert dict(reached(f)) == {
        "helper.none": Missing("made_up_helper.none"),
        "helper.np.dumps": np.dumps,
        "helper.sub.table": {"a": [1]},
    }


def test_a_missing_global_is_marked():
    assert dict(reached(defined("def f():\n return nothing"))) == {"nothing": Missing("nothing")}


def test_a_library_function_reaches_its_library_alone():
    assert list(reached(np.dumps)) == [("json", LibraryReference("json"))]


def test_labels_come_in_the_order_of_names():
    f = defined("def f():\n return zeta, alpha, np.loads, np.dumps", zeta=1, alpha=2, np=np)
    assert labels(f) == ["alpha", "np.dumps", "np.loads", "zeta"]
