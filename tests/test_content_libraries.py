"""The content of what libraries hold: frames, columns, sparse matrices, compiled functions."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dask_batch.graph.content import ContentHasher

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")
xr = pytest.importorskip("xarray")
sparse = pytest.importorskip("sparse")
matrices = pytest.importorskip("scipy.sparse")


def digest(obj: Any) -> bytes:
    found = ContentHasher().content(obj, "argument 'x'")
    assert found.problems == ()
    return found.digest


def frame() -> Any:
    return pd.DataFrame({"a": [1, 2], "b": [1.0, 2.0], "c": ["x", None]})


def labelled(**options: Any) -> Any:
    values = (("t", "x"), np.arange(12.0).reshape(3, 4))
    return xr.Dataset({"v": values}, coords={"t": np.arange(3)}, **options)


def with_attribute() -> Any:
    made = frame()
    made.attrs["unit"] = "m"
    return made


MADE: dict[str, Callable[[], Any]] = {
    "frame": frame,
    "empty frame": lambda: pd.DataFrame(),
    "frame with attributes": with_attribute,
    "frame of objects": lambda: pd.DataFrame({"a": pd.Series([1, "a", None], dtype=object)}),
    "named index": lambda: frame().rename_axis("i"),
    "unique labels": lambda: frame().set_flags(allows_duplicate_labels=False),
    "series": lambda: frame().a,
    "named series": lambda: frame().a.rename("z"),
    "columns in another order": lambda: frame()[["b", "a", "c"]],
    "other types in the same blocks": lambda: frame().astype({"a": "float64", "b": "int64"}),
    "multi index": lambda: pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["x", "y"]),
    "index": lambda: pd.Index([1, 2]),
    "range index": lambda: pd.RangeIndex(1, 3),
    "dates": lambda: pd.date_range("2020", periods=3, freq="D"),
    "dates without frequency": lambda: pd.DatetimeIndex(list(pd.date_range("2020", periods=3))),
    "dates of a zone": lambda: pd.date_range("2020", periods=3, tz="Europe/Berlin"),
    "dates of another zone": lambda: pd.date_range("2020", periods=3, tz="Europe/Paris"),
    "durations": lambda: pd.timedelta_range("1s", periods=3),
    "periods": lambda: pd.period_range("2020-01", periods=3, freq="M"),
    "intervals": lambda: pd.interval_range(0, 3),
    "closed intervals": lambda: pd.interval_range(0, 3, closed="both"),
    "categories": lambda: pd.Categorical(["a", "b"]),
    "ordered categories": lambda: pd.Categorical(["a", "b"], ordered=True),
    "categories in another order": lambda: pd.Categorical(["a", "b"], categories=["b", "a"]),
    "sparse column": lambda: pd.arrays.SparseArray([0, 0, 1]),
    "integers with gaps": lambda: pd.array([1, None], dtype="Int64"),
    "floats with gaps": lambda: pd.array([1, None], dtype="Float64"),
    "booleans with gaps": lambda: pd.array([True, None], dtype="boolean"),
    "strings": lambda: pd.array(["a", None], dtype="string[python]"),
    "strings of Arrow": lambda: pd.array(["a", None], dtype="string[pyarrow]"),
    "integers of Arrow": lambda: pd.Series([1, None], dtype="int64[pyarrow]"),
    "lists of Arrow": lambda: pd.Series([[1], None], dtype=pd.ArrowDtype(pa.list_(pa.int64()))),
    "timestamp": lambda: pd.Timestamp("2020-01-01", tz="Europe/Berlin"),
    "timedelta": lambda: pd.Timedelta("1s"),
    "period": lambda: pd.Period("2020-01"),
    "interval": lambda: pd.Interval(0, 1),
    "not a time": lambda: pd.NaT,
    "not available": lambda: pd.NA,
    "offset": lambda: pd.offsets.MonthEnd(2),
    "other offset": lambda: pd.offsets.MonthEnd(3),
    "business days": lambda: pd.offsets.CustomBusinessDay(2),
    "relative offset": lambda: pd.DateOffset(months=3),
    "zoned type": lambda: pd.DatetimeTZDtype("ns", "UTC"),
    "period type": lambda: pd.PeriodDtype("M"),
    "categorical type": lambda: pd.CategoricalDtype(["a"]),
    "arrow type": lambda: pd.ArrowDtype(pa.decimal128(5, 2)),
    "table": lambda: pa.table(
        {"a": [1, 2], "b": ["x", None], "c": [[1], [2]], "d": [{"q": 1}, None]}
    ),
    "schema": lambda: pa.schema([("a", pa.int64())], metadata={"a": "b"}),
    "decimals of Arrow": lambda: pa.array([None, 1], pa.decimal128(5, 2)),
    "times of Arrow": lambda: pa.array([datetime.datetime(2020, 1, 1), None]),
    "dictionary of Arrow": lambda: pa.array(["a", "b"]).dictionary_encode(),
    "array of Arrow": lambda: pa.array([1, 2]),
    "short array of Arrow": lambda: pa.array([1, 2], pa.int8()),
    "binary of Arrow": lambda: pa.array([b"1", None]),
    "scalar of Arrow": lambda: pa.scalar(3),
    "csr": lambda: matrices.csr_matrix(np.eye(3)),
    "csr array": lambda: matrices.csr_array(np.eye(3)),
    "csc": lambda: matrices.csc_matrix(np.eye(3)),
    "other csr": lambda: matrices.csr_matrix(2 * np.eye(3)),
    "coo": lambda: matrices.coo_array(np.eye(3)),
    "bsr": lambda: matrices.bsr_array(np.eye(4)),
    "dia": lambda: matrices.dia_array(np.eye(3)),
    "dok": lambda: matrices.dok_matrix(np.eye(3)),
    "lil": lambda: matrices.lil_matrix(np.eye(3)),
    "COO": lambda: sparse.COO(np.eye(3)),
    "COO with another fill": lambda: sparse.COO(np.eye(3) - 1, fill_value=-1.0),
    "GCXS": lambda: sparse.GCXS(np.eye(3)),
    "DOK": lambda: sparse.DOK.from_numpy(np.eye(3)),
    "dataset": labelled,
    "dataset with attributes": lambda: labelled(attrs={"a": 1}),
    "renamed dimension": lambda: labelled().rename_dims(x="y"),
    "dropped index": lambda: labelled().drop_indexes("t"),
    "data array": lambda: labelled().v,
    "renamed data array": lambda: labelled().v.rename("q"),
    "variable": lambda: labelled().v.variable,
    "stacked": lambda: labelled().stack(z=("t", "x")),
    "tree": lambda: xr.DataTree.from_dict({"/": labelled(), "/a": labelled()}),
    "other tree": lambda: xr.DataTree.from_dict({"/": labelled(), "/b": labelled()}),
    "chunked": lambda: labelled().chunk(t=1),
    "chunked otherwise": lambda: labelled().chunk(t=2),
    "grouper": lambda: labelled().groupby("t"),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_made_twice(make: Callable[[], Any]) -> None:
    assert digest(make()) == digest(make())


def test_all_differ() -> None:
    digests: dict[bytes, str] = {}
    for name, make in MADE.items():
        other = digests.setdefault(digest(make()), name)
        assert other == name, f"{name} and {other}"


def _under_nulls(filling: int) -> Any:
    return pd.arrays.IntegerArray(np.array([1, filling]), np.array([False, True]))


def _in_blocks() -> Any:
    one = pd.DataFrame({"a": [1], "b": [1]})
    two = pd.DataFrame({"a": [1]})
    two["b"] = 1
    return one, two


def _looked_at() -> Any:
    matrix = matrices.csr_matrix(np.eye(3))
    assert matrix.has_sorted_indices
    assert matrix.has_canonical_format
    return matrix


ALIKE: dict[str, tuple[Any, Any]] = {
    "blocks": _in_blocks(),
    "under a mask": (_under_nulls(5), _under_nulls(6)),
    "chunks": (pa.chunked_array([["a"], ["b"]]), pa.chunked_array([["a", "b"]])),
    "slices of strings": (pa.array(["a", "b", "c"])[1:], pa.array(["b", "c"])),
    "slices with gaps": (pa.array([1, None, 3])[1:], pa.array([None, 3])),
    "slices of lists": (pa.array([[1], None, [3]])[1:], pa.array([None, [3]])),
    "slices of tables": (
        frame().iloc[1:].reset_index(drop=True),
        frame()[1:].reset_index(drop=True),
    ),
    "what a matrix knows of itself": (_looked_at(), matrices.csr_matrix(np.eye(3))),
    "source of a dataset": (labelled(), _sourced := labelled()),
}
_sourced.encoding["source"] = "/somewhere/a.nc"


@pytest.mark.parametrize(("one", "other"), ALIKE.values(), ids=ALIKE)
def test_alike(one: Any, other: Any) -> None:
    assert digest(one) == digest(other)


def test_path_into_a_frame() -> None:
    made = pd.DataFrame({"a": pd.Series([1, object()], dtype=object)})
    (problem,) = ContentHasher().content(made, "argument 'x'").problems
    assert problem.path.startswith("argument 'x'['a']")


def test_frozen_distribution_reaches_no_hidden_state() -> None:
    stats = pytest.importorskip("scipy.stats")
    before = digest(stats.norm(1, 2))
    np.random.random()
    assert digest(stats.norm(1, 2)) == before != digest(stats.norm(1, 3))


def test_compiled_functions() -> None:
    numba = pytest.importorskip("numba")

    def made(k: int, **options: Any) -> Any:
        @numba.njit(**options)
        def f(x: int) -> int:
            return x + k

        return f

    assert digest(made(1)) != digest(made(2))
    assert digest(made(1)) != digest(made(1, fastmath=True))
    called = made(1)
    assert called(3) == 4
    assert digest(called) == digest(made(1))
    vectors = [numba.vectorize(lambda x: x + 1), numba.vectorize(lambda x: x + 2)]
    vectors += [numba.vectorize(["f8(f8)"])(f) for f in (lambda x: x + 1, lambda x: x + 2)]
    general = [
        numba.guvectorize(["f8[:],f8[:]"], "(n)->(n)")(f)
        for f in (lambda x, y: None, lambda x, y: y.fill(1))
    ]
    c = [numba.cfunc("f8(f8)")(f) for f in (lambda x: x + 1, lambda x: x + 2)]
    everything = [*vectors, *general, *c]
    assert len({digest(f) for f in everything}) == len(everything)


def test_helper_of_a_compiled_function(tmp_path: Path) -> None:
    numba = pytest.importorskip("numba")

    def made(constant: int) -> Any:
        namespace = {"numba": numba, "__name__": "__main__"}
        source = f"def g(x): return x + {constant}\n@numba.njit\ndef f(x): return g(x)\n"
        exec(source, namespace)
        return namespace["f"]

    assert digest(made(1)) == digest(made(1)) != digest(made(2))
