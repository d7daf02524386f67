"""The content of code: what it does and reaches, not where and how it is written."""

from __future__ import annotations

import functools
import importlib
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dask_batch.graph.content import Content, ContentHasher

Load = Callable[..., ModuleType]


def content(obj: Any, **options: Any) -> Content:
    return ContentHasher(**options).content(obj, "argument 'x'")


def digest(obj: Any) -> bytes:
    found = content(obj)
    assert found.problems == ()
    return found.digest


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Write modules of the user's, and import one: as a fresh process would see them."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def forget() -> None:
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]
        importlib.invalidate_caches()

    def load(wanted: str, /, **sources: str) -> ModuleType:
        forget()
        for name, source in sources.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(source))
            for stale in path.parent.glob("__pycache__/*"):
                stale.unlink()
        return importlib.import_module(wanted)

    yield load
    forget()


BASE = """
    import math
    LIMIT = 3
    def g(x):
        return x + 1
    class A:
        \"\"\"Doc of A.\"\"\"
        def m(self):
            return g(1)
    def f(x, y=2, *, z=3):
        \"\"\"Doc of f.\"\"\"
        def inner(v):
            \"\"\"Doc of inner.\"\"\"
            return v in {"a", "b", "c"}
        class Local:
            \"\"\"Doc of Local.\"\"\"
        return g(x) + LIMIT + math.pi, A().m(), inner(x), Local
"""

SAME = {
    "lines moved": lambda s: "\n\n\n" + s,
    "comment": lambda s: s.replace("LIMIT = 3", "LIMIT = 3  # no more\n    # than that"),
    "docstring of a function": lambda s: s.replace("Doc of f.", "What f does, at length."),
    "docstring removed": lambda s: s.replace('"""Doc of f."""', ""),
    "docstring of an inner function": lambda s: s.replace("Doc of inner.", "Other."),
    "docstring of an inner function removed": lambda s: s.replace('"""Doc of inner."""', ""),
    "docstring of a class": lambda s: s.replace("Doc of A.", "Other."),
    "docstring of a class removed": lambda s: s.replace('"""Doc of A."""', ""),
    "docstring of a local class": lambda s: s.replace("Doc of Local.", "Other."),
    "docstring of the module": lambda s: '    """Module."""\n' + s,
    "something beside it": lambda s: s + "    OTHER = 1\n    def h(): return 7\n",
    "an unused global changed": lambda s: s + "    UNUSED = 2\n",
}

OTHER = {
    "body": lambda s: s.replace("g(x) +", "g(x) -"),
    "helper": lambda s: s.replace("x + 1", "x + 2"),
    "global": lambda s: s.replace("LIMIT = 3", "LIMIT = 4"),
    "type of a global": lambda s: s.replace("LIMIT = 3", "LIMIT = 3.0"),
    "default": lambda s: s.replace("y=2", "y=3"),
    "keyword default": lambda s: s.replace("z=3", "z=4"),
    "name of an argument": lambda s: s.replace("y=2", "why=2"),
    "method": lambda s: s.replace("g(1)", "g(2)"),
    "constant in a set": lambda s: s.replace('"c"}', '"d"}'),
    "base class": lambda s: s.replace("class A:", "class A(dict):"),
    "metaclass": lambda s: s.replace(
        "class A:", "class M(type):\n        pass\n    class A(metaclass=M):"
    ),
    "slots": lambda s: s.replace("def m(self)", "__slots__ = ('q',)\n        def m(self)"),
    "static method": lambda s: s.replace("def m(self)", "@staticmethod\n        def m(self)"),
    "attribute of a library": lambda s: s.replace("math.pi", "math.e"),
    "negative zero": lambda s: s.replace("LIMIT = 3", "LIMIT = -0.0"),
}


@pytest.mark.parametrize("edit", SAME.values(), ids=SAME)
def test_edit_that_changes_nothing(load: Load, edit: Callable[[str], str]) -> None:
    before = digest(load("user", user=BASE).f)
    edited = edit(BASE)
    assert edited != BASE
    assert digest(load("user", user=edited).f) == before


@pytest.mark.parametrize("edit", OTHER.values(), ids=OTHER)
def test_edit_that_changes_the_work(load: Load, edit: Callable[[str], str]) -> None:
    before = digest(load("user", user=BASE).f)
    edited = edit(BASE)
    assert edited != BASE
    assert digest(load("user", user=edited).f) != before


def test_module_renamed_or_moved(load: Load) -> None:
    assert digest(load("one", one=BASE).f) == digest(load("two", two=BASE).f)


@pytest.mark.parametrize(
    "use",
    [
        "import helper\ndef f(x): return helper.g(x)",
        "from helper import g\ndef f(x): return g(x)",
        "import helper as h\ndef f(x): return [h.g(i) for i in x]",
        "def f(x):\n    import helper\n    return helper.g(x)",
        "def f(x):\n    from helper import g as gg\n    return (lambda: gg(x))()",
        "import helper\ndef f(x): return getattr(helper, 'g')(x)",
        "import helper\nclass C:\n    def __call__(self, x): return helper.g(x)\nf = C()",
        "import functools, helper\nf = functools.partial(map, helper.g)",
        "import helper\nf = {'call': [helper.g]}",
        "import helper\nclass B:\n    g = helper.g\nclass C(B): pass\nf = C",
        "import helper\ndef f(x, call=helper.g): return call(x)",
        "import helper\ndef make(g):\n    return lambda x: g(x)\nf = make(helper.g)",
        "import helper\nclass C:\n    @property\n    def p(self): return helper.g(1)\nf = C()",
        "import functools, helper\n@functools.lru_cache\ndef f(x): return helper.g(x)",
        "import contextlib, helper\n@contextlib.contextmanager\ndef f(x):\n    yield helper.g(x)",
        "import functools, helper\n@functools.wraps(len)\ndef f(x): return helper.g(x)",
    ],
)
def test_helper_edited(load: Load, use: str) -> None:
    def value(constant: int) -> bytes:
        helper = f"def k(x): return x + {constant}\ndef g(x): return k(x)\ndef other(): return 1"
        return digest(load("user", user=use, helper=helper).f)

    assert value(1) == value(1)
    assert value(1) != value(2)


def test_chain_of_attributes_through_packages(load: Load) -> None:
    def value(constant: int, beside: int = 0) -> bytes:
        return digest(
            load(
                "user",
                user="import pkg.sub\ndef f(x): return pkg.sub.g(x)",
                **{
                    "pkg/__init__": "",
                    "pkg/sub": f"def g(x): return x + {constant}\ndef other(): return {beside}",
                },
            ).f
        )

    assert value(1) == value(1, beside=5)
    assert value(1) != value(2)


def test_recursion_and_mutual_recursion(load: Load) -> None:
    source = """
        def even(n): return n == 0 or odd(n - 1)
        def odd(n): return n != {} and even(n - 1)
        def alone(n): return n and alone(n - 1)
    """
    one, two = load("user", user=source.format(0)), load("user", user=source.format(1))
    assert digest(one.even) != digest(two.even)
    assert digest(one.odd) != digest(two.odd)
    assert digest(one.even) != digest(one.odd)
    assert digest(one.alone) == digest(two.alone)
    hasher = ContentHasher()
    hasher.content(one.even)
    assert hasher.content(one.odd).digest == digest(one.odd)  # whichever came first


def test_functions_in_a_set_that_they_reach(load: Load) -> None:
    source = """
        ALL = set()
        def f(x): return [g for g in ALL if g is not f]
        def h(x): return len(ALL)
        ALL |= {f, h}
    """
    assert digest(load("user", user=source).f) == digest(load("user", user=source).f)


def test_renaming_a_function_changes_nothing_and_a_class_is_its_name(load: Load) -> None:
    one = load("user", user="def f(x):\n    def g(): return x\n    return g\nclass A: pass")
    two = load("user", user="def h(x):\n    def g(): return x\n    return g\nclass B: pass")
    assert digest(one.f) == digest(two.h)
    assert digest(one.A) != digest(two.B)


def test_running_a_function_changes_nothing() -> None:
    @functools.lru_cache
    def cached(x: int) -> int:
        return x + 1

    def plain(x: int) -> int:
        total = 0
        for i in range(x):
            total += i
        return total + cached(x)

    class Lazy:
        @functools.cached_property
        def whole(self) -> int:
            return plain(10)

    lazy = Lazy()
    before = digest(plain), digest(lazy)
    for _ in range(2_000):
        plain(50)
    assert lazy.whole
    assert (digest(plain), digest(lazy)) == before


def test_singledispatch() -> None:
    @functools.singledispatch
    def show(x: Any) -> str:
        return "?"

    before = digest(show)
    show(1)
    assert digest(show) == before
    show.register(int, lambda x: "int")
    assert digest(show) != before


def test_a_global_lock_or_logger_is_no_obstacle(load: Load) -> None:
    source = """
        import logging, threading
        LOCK = threading.Lock(); LOG = logging.getLogger(__name__); EVENT = threading.Event()
        LOCAL = threading.local(); CONDITION = threading.Condition()
        class Holder:
            def __init__(self): self.lock = threading.RLock()
        HOLDER = Holder()
        def f(x):
            with LOCK, CONDITION, HOLDER.lock:
                LOG.info("x"); EVENT.set(); LOCAL.x = 1
                return x
    """
    module = load("user", user=source)
    before = digest(module.f)
    module.f(1)
    assert digest(module.f) == before


def test_paths_to_what_has_no_content(load: Load) -> None:
    source = """
        import socket
        conn = object()
        class Config: pass
        config = Config(); config.handlers = [open("/dev/null")]
        def load(x): return conn
        def outer(x): return load(x)
        def made(h):
            def f(x): return h
            return f
        f = made(config)
        def g(x=config): return x
    """
    module = load("user", user=source)

    def paths(obj: Any) -> list[str]:
        return [problem.path for problem in content(obj).problems]

    assert paths(module.config) == ["argument 'x'.handlers[0]"]
    assert paths(module.load) == ["global 'conn' of user.load"]
    assert paths([module.outer]) == ["global 'conn' of user.load"]
    assert paths(module.f) == ["closure 'h' of user.made.<locals>.f.handlers[0]"]
    assert paths(module.g) == ["defaults of user.g[0].handlers[0]"]


def test_library_code_by_name_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    found = content(np.linalg.svd)
    assert {name for name, _ in found.libraries} == {"numpy"}
    assert found.preload == {"numpy"}
    from dask_batch.graph.handlers import choice

    assert digest(np.linalg.svd) != digest(np.linalg.qr)

    def as_version(version: str, **options: Any) -> bytes:
        monkeypatch.setattr(choice, "distribution", lambda _: ("numpy", version))
        return content(np.linalg.svd, **options).digest

    assert as_version("2.4.1") == as_version("2.4.7") != as_version("2.5.0")
    assert as_version("2.4.1", key_versions="exact") != as_version("2.4.7", key_versions="exact")
    assert as_version("2.4.1", key_versions="none") == as_version("3.0", key_versions="none")


def test_library_through_a_function(load: Load) -> None:
    module = load(
        "user",
        user="""
            import numpy as np, sys, os
            def f(x): return np.linalg.svd(x)
            def g(x): return np.random.normal(x), sys.argv, os.environ, sys.stdout
            def h(x):
                import dask.array as da
                return da.ones(x)
        """,
    )
    assert content(module.f).preload == {"numpy"}
    assert content(module.h).preload == {"dask.array"}
    before = digest(module.g)
    import numpy as np

    np.random.random()
    assert digest(module.g) == before


def test_library_function_behind_a_name_of_the_users(load: Load) -> None:
    source = "from numpy.random import normal\nfrom random import random\ndef f(x): return {}(x)"
    one = load("user", user=source.format("normal"))
    before = digest(one.f)
    one.f(1.0)
    assert digest(one.f) == before
    two = load("user", user=source.format("random"))
    before = digest(two.f)
    two.random()
    assert digest(two.f) == before


def test_memo_dict_is_content(load: Load) -> None:
    module = load("user", user="MEMO = {}\ndef f(x): return MEMO.setdefault(x, x)")
    before = digest(module.f)
    module.f(1)
    assert digest(module.f) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("class E(enum.Enum):\n    A = 1\n    B = 2", "class E(enum.Enum):\n    A = 1\n    B = 3"),
        ("class E(enum.Enum):\n    A = 1", "class E(enum.IntEnum):\n    A = 1"),
        (
            "class E(enum.Enum):\n    A = 1\n    def m(self): return 1",
            "class E(enum.Enum):\n    A = 1\n    def m(self): return 2",
        ),
        ("class E(enum.Enum):\n    A = 1\n    B = 2", "class E(enum.Enum):\n    B = 2\n    A = 1"),
        (
            "@dataclasses.dataclass\nclass E:\n    a: int = 1",
            "@dataclasses.dataclass\nclass E:\n    a: int = 2",
        ),
        (
            "@dataclasses.dataclass\nclass E:\n    a: int",
            "@dataclasses.dataclass\nclass E:\n    a: float",
        ),
        (
            "@dataclasses.dataclass(frozen=True, slots=True)\nclass E:\n    a: int",
            "@dataclasses.dataclass(frozen=True, slots=True)\nclass E:\n    b: int",
        ),
        (
            "E = collections.namedtuple('E', 'a b')",
            "E = collections.namedtuple('E', 'b a')",
        ),
        (
            "class E(typing.NamedTuple):\n    a: int = 1",
            "class E(typing.NamedTuple):\n    a: int = 2",
        ),
        (
            "class E:\n    @classmethod\n    def m(cls): return 1",
            "class E:\n    @classmethod\n    def m(cls): return 2",
        ),
        (
            "class B:\n    def m(self): return 1\nclass E(B):\n    def m(self): return super().m()",
            "class B:\n    def m(self): return 2\nclass E(B):\n    def m(self): return super().m()",
        ),
        (
            "class E(abc.ABC):\n    @abc.abstractmethod\n    def m(self): ...",
            "class E(abc.ABC):\n    def m(self): ...",
        ),
        (
            "class D:\n    def __get__(self, o, t): return 1\nclass E:\n    d = D()",
            "class D:\n    def __get__(self, o, t): return 2\nclass E:\n    d = D()",
        ),
        (
            "class E(typing.Generic[typing.TypeVar('T')]):\n    pass",
            "class E:\n    pass",
        ),
        ("class E(enum.Flag):\n    A = 1\n    B = 2", "class E(enum.Flag):\n    A = 1\n    B = 4"),
    ],
)
def test_classes(load: Load, one: str, other: str) -> None:
    imports = "import abc, collections, dataclasses, enum, typing\n"
    first = digest(load("user", user=imports + one).E)
    assert digest(load("user", user="\n\n" + imports + "\n" + one).E) == first
    assert digest(load("user", user=imports + other).E) != first


def test_instances_carry_their_class(load: Load) -> None:
    source = "class P:\n    def __init__(self): self.x = 1\n    def m(self): return {}\np = P()"
    one, two = load("user", user=source.format(1)), load("user", user=source.format(2))
    assert digest(one.p) != digest(two.p)
    assert digest(one.p.m) != digest(two.p.m)
    assert digest(one.p) == digest(one.P())


def test_threads_may_hash_deep_recursion_of_functions() -> None:
    functions: list[Any] = [len]
    for _ in range(3_000):
        functions.append((lambda g: lambda x: g(x))(functions[-1]))
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(digest(functions[-1])))
    thread.start()
    thread.join()
    assert found == [digest(functions[-1])]


def test_errors_of_the_users_own_methods_are_raised() -> None:
    from dask_batch.errors import SerializationError

    class Refuses:
        def __reduce__(self) -> Any:
            raise RuntimeError("no")

    class Tokens:
        def __dask_tokenize__(self) -> Any:
            raise ValueError("never")

    with pytest.raises(SerializationError, match=r"argument 'x'\['k'\]\[1\]") as caught:
        content({"k": [1, Refuses()]})
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(SerializationError, match="__dask_tokenize__") as caught:
        content(Tokens())
    assert isinstance(caught.value.__cause__, ValueError)


def test_tokenize_of_an_object_is_its_content() -> None:
    class Token:
        def __init__(self, a: int, noise: int) -> None:
            self.a, self.noise = a, noise

        def __dask_tokenize__(self) -> Any:
            return ("Token", [self.a])

    assert digest(Token(1, 2)) == digest(Token(1, 3))
    assert digest(Token(1, 2)) != digest(Token(2, 2))
