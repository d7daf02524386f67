"""A user's script and package as jobs: right results, and just that runs again which has changed.

Each run is a client process of its own, under another hash seed and in another directory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dask_batch.cache.store import Cache

PACKAGE = {
    "model/__init__.py": "",
    "model/front.py": """
        from model import middle

        def entry(x):
            return middle.middle(x) + 1

        def unrelated(x):
            return x * 7
        """,
    "model/middle.py": """
        import model.deep.bottom

        def middle(x):
            return model.deep.bottom.bottom(x) * 2
        """,
    "model/deep/__init__.py": "",
    "model/deep/bottom.py": """
        '''Far below.'''

        FACTOR = 3

        def bottom(x):
            '''Return a multiple.'''
            return x * FACTOR

        class Base:
            scale = 2

            def size(self):
                return self.scale

        class Child(Base):
            def __init__(self, n):
                self.n = n

            def size(self):
                return super().size() * self.n
        """,
    "late.py": """
        def late(x):
            return x - 1
        """,
    "script.py": """
        import dataclasses, enum, functools, logging, sys, threading, warnings

        import dask
        import numpy as np

        from dask_batch import cluster_get
        import model.front
        import model.deep.bottom as below
        from model.deep.bottom import Child

        warnings.simplefilter("error")

        logger = logging.getLogger("script")
        LOCK = threading.Lock()
        SETTING = 1

        class Colour(enum.Enum):
            RED = 1
            BLUE = 2

        @dataclasses.dataclass(frozen=True)
        class Point:
            x: int
            colour: Colour = Colour.RED

            def moved(self, by):
                return dataclasses.replace(self, x=self.x + by)

        def chain(x):
            return model.deep.bottom.bottom(x)

        def aliased(x):
            return below.FACTOR + x

        def importing(x):
            import late
            from model.front import unrelated
            return late.late(x) + unrelated(x)

        def setting(x):
            return x + SETTING

        def locked(x):
            with LOCK:
                logger.info("locked")
                return x

        def seeded(generator):
            return float(generator.normal())

        def factorial(n):
            return 1 if n < 2 else n * factorial(n - 1)

        def even(n):
            return n == 0 or odd(n - 1)

        def odd(n):
            return n != 0 and even(n - 1)

        def cycle(n):
            members = {"n": n}
            members["self"] = members
            return members

        def cyclic(members):
            return members["self"]["self"]["n"]

        def move(point):
            return point.moved(1)

        def points(n):
            return {Colour.BLUE: [Point(i, Colour.BLUE) for i in range(n)]}

        def subclass(n):
            return Child(n)

        def sized(thing):
            return thing.size()

        def adder(k):
            def inner(x):
                return x + k
            return inner

        @functools.lru_cache
        def memo(x):
            return x + 100

        def ordered(members):
            return sorted(members)

        def looped(members):
            return members[0] is members

        def scaled(x, *, by=2, **more):
            return x * by + sum(more.values())

        class Loop(list):
            pass

        try:
            import numba
        except ImportError:
            def jitted(x):
                return x * 2 + 1
        else:
            @numba.njit
            def jitted(x):
                return x * 2 + 1

        def graph():
            task = dask.delayed
            loop = Loop()
            loop.append(loop)
            return {
                "entry": task(model.front.entry)(1),
                "unrelated": task(model.front.unrelated)(1),
                "chain": task(chain)(2),
                "aliased": task(aliased)(2),
                "importing": task(importing)(3),
                "setting": task(setting)(1),
                "locked": task(locked)(1),
                "seeded": task(seeded)(np.random.default_rng(3)),
                "factorial": task(factorial)(5),
                "even": task(even)(4),
                "cyclic": task(cyclic)(task(cycle)(5)),
                "looped": task(looped)(loop),
                "move": task(move)(Point(1)),
                "points": task(points)(2),
                "sized": task(sized)(task(subclass)(4)),
                "inner": task(adder(4))(1),
                "lambda": task(lambda x: x * 3)(2),
                "jitted": task(jitted)(4),
                "memo": task(memo)(1),
                "ordered": task(ordered)({"a", "b", "c"}),
                "scaled": task(scaled)(1, by=3, a=1, b=2),
            }

        if __name__ == "__main__":
            cache, SETTING = sys.argv[1], int(sys.argv[2])
            named = graph()
            how = {"backend": "local", "cache_directory": cache}
            ours = dask.compute(*named.values(), scheduler=cluster_get, **how)
            theirs = dask.compute(*named.values(), scheduler="synchronous")
            found = dict(zip(named, ours))
            wrong = [n for n, a, b in zip(named, ours, theirs) if a != b or type(a) is not type(b)]
            assert not wrong, (wrong, found)
            assert found["setting"] == 1 + SETTING
            assert type(found["move"]) is Point and found["move"].colour is Colour.RED
        """,
}


class User:
    """A user's directory with a script and a package, and runs of that script."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.runs = 0
        for name, text in PACKAGE.items():
            path = self.home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(line[8:] for line in text.splitlines()))

    def run(self, setting: int = 5) -> list[str]:
        """Run the script, and return the names of the functions that have new results."""
        self.runs += 1
        elsewhere = self.folder / f"cwd{self.runs}"
        elsewhere.mkdir()
        before = self._results()
        done = subprocess.run(
            [sys.executable, self.home / "script.py", self.folder / "cache", str(setting)],
            env={**os.environ, "PYTHONHASHSEED": str(self.runs)},
            cwd=elsewhere,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        cache = Cache(self.folder / "cache", create=False)
        return sorted(cache.attributes(key)["function"] for key in self._results() - before)

    def _results(self) -> set[str]:
        return {path.stem for path in self.folder.glob("cache/results/*/*.h5")}

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.home / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def move(self) -> None:
        self.home = self.home.rename(self.folder / "elsewhere")


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    user = User(tmp_path_factory.mktemp("user"))
    assert len(user.run()) == 23
    yield user
    assert user.run() == []  # whatever the tests have done to it, it is in the cache


def test_another_process_seed_and_directory(user: User) -> None:
    assert user.run() == []


def test_script_and_package_may_move(user: User) -> None:
    user.move()
    assert user.run() == []


def test_comments_docstrings_and_moved_lines_do_not_count(user: User) -> None:
    user.edit(
        "model/deep/bottom.py", "'''Return a multiple.'''", "'''Multiply.\n\n    More.\n    '''"
    )
    user.edit("model/deep/bottom.py", "FACTOR = 3", "# how much\n\n\nFACTOR = 3")
    user.edit(
        "model/front.py", "from model import middle", "'''Doc.'''\n\nfrom model import middle"
    )
    user.edit("late.py", "return x - 1", "return (\n        x  # less\n        - 1\n    )")
    user.edit("script.py", "def even(n):", "# A comment.\n\n\ndef even(n):")
    user.edit("script.py", "    x: int\n", "    x: int  # across\n")
    assert user.run() == []


def test_an_edit_three_modules_away(user: User) -> None:
    user.edit("model/deep/bottom.py", "return x * FACTOR", "return x * FACTOR + 1")
    assert user.run() == ["chain", "entry"]


def test_a_constant_three_modules_away(user: User) -> None:
    user.edit("model/deep/bottom.py", "FACTOR = 3", "FACTOR = 4")
    assert user.run() == ["aliased", "chain", "entry"]


def test_a_base_class_in_another_module(user: User) -> None:
    user.edit("model/deep/bottom.py", "scale = 2", "scale = 3")
    assert user.run() == ["sized", "subclass"]


def test_what_a_function_imports_in_its_body(user: User) -> None:
    user.edit("late.py", "- 1", "- 2")
    assert user.run() == ["importing"]
    user.edit("model/front.py", "return x * 7", "return x * 8")
    assert user.run() == ["importing", "unrelated"]


def test_a_global_that_is_set_at_run_time(user: User) -> None:
    assert user.run(setting=6) == ["setting"]
    assert user.run(setting=5) == []


def test_one_of_two_that_call_each_other(user: User) -> None:
    user.edit("script.py", "return n != 0 and even", "return n > 0 and even")
    assert user.run() == ["even"]
