"""Every value comes back as it was: type, shape, order, bytes."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dask_batch.cache import dtypes
from dask_batch.cache.serialise import deserialise, serialise
from dask_batch.cache.store import Cache
from dask_batch.errors import SerializationError

KEY = "0" * 64


def round_trip(value: Any) -> Any:
    taken = serialise(value)
    return deserialise(taken.form, [memoryview(bytearray(part.data)) for part in taken.parts])


def assert_same_array(back: Any, value: Any) -> None:
    assert type(back) is type(value)
    assert back.dtype == value.dtype
    assert back.dtype.str == value.dtype.str
    assert back.shape == value.shape
    assert in_memory(back) == in_memory(value)


def in_memory(value: Any) -> bytes:
    """Return the bytes as they lie; a copy into another order would lose what pads fields."""
    fortran = isinstance(value, np.ndarray) and value.flags.f_contiguous
    return bytes(value.T.tobytes() if fortran else value.tobytes())


NESTED = np.dtype(
    {
        "names": ["when", "größe", "who", "inner"],
        "formats": ["M8[ns]", ("f2", (2, 3)), "<U5", [("flag", "?"), ("z", ">c16")]],
        "offsets": [8, 16, 32, 60],
        "itemsize": 100,
    }
)
DTYPES = [
    "?", "i1", ">i2", "<u4", ">u8", "f2", ">f4", "f8", "g", "c8", ">c16", "G", "S3", "<U4", ">U2",
    "M8[D]", ">M8[ns]", "m8[25s]", "M8", "V5", NESTED, np.dtype("i1,f8", align=True),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (4, 3)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_typed_and_exact(dtype: Any, shape: tuple[int, ...], order: Any) -> None:
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    kind = np.dtype(dtype).kind
    raw = bytes(i % (2 if kind == "?" else 250) for i in range(count)) if kind != "U" else None
    value = np.zeros(shape, dtype, order=order)
    if raw is not None and kind != "b":
        value = np.frombuffer(raw, dtype).reshape(shape, order=order) if count else value
    assert serialise(value).form["form"] == "array"
    back = round_trip(value)
    assert_same_array(back, value)
    assert back.flags.f_contiguous == value.flags.f_contiguous
    assert back.flags.writeable


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(npst.scalar_dtypes(), npst.array_dtypes(allow_subarrays=True)).flatmap(
        lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=4, min_side=0))
    )
)
def test_any_array(value: Any) -> None:
    if isinstance(value, np.ndarray):
        assert_same_array(round_trip(value), value)


@pytest.mark.parametrize(
    "value",
    [
        np.arange(24).reshape(2, 3, 4)[:, ::2],
        np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
        np.broadcast_to(np.float32(1), (3, 3)),
        np.arange(5)[::-1],
        np.zeros((1,) * 32),
        np.array([1, "a", None], object),
        np.zeros(2, np.dtype([(("title", "a"), "i4")])),
        np.zeros(2, np.dtype([(f"f{i}", "i4") for i in range(900)])),
        np.zeros(2, np.dtype([])),
    ],
    ids=range(9),
)
def test_arrays_that_are_laid_out_or_typed_otherwise(value: Any) -> None:
    back = round_trip(value)
    assert back.dtype == value.dtype
    assert back.shape == value.shape
    assert np.array_equal(back, value)


@pytest.mark.parametrize(
    "value",
    [
        np.float16(1.5), np.bool_(True), np.datetime64("NaT"), np.timedelta64(3, "ms"),
        np.longdouble(1) / 3, np.complex64(1j), np.str_("a\ud800"), np.bytes_(b"ab"),
        np.int64(-5), np.array([(1, 2.0)], "i4,f8")[0], np.void(b"ab\0"),
    ],
    ids=repr,
)  # fmt: skip
def test_scalars_come_back_as_their_type(value: Any) -> None:
    back = round_trip(value)
    assert (type(back), back.dtype) == (type(value), value.dtype)
    assert repr(back) == repr(value)


@pytest.mark.parametrize(
    "value",
    [
        None, 0, 2**70, 1.5, "text\0\ud800", b"bytes", bytearray(b"x"), [1, (2, {3})],
        {"a": range(3)}, datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), True, 1j,
    ],
    ids=repr,
)  # fmt: skip
def test_other_values_are_pickled(value: Any) -> None:
    back = round_trip(value)
    assert back == value
    assert type(back) is type(value)


def test_arrays_inside_other_values_are_not_copied_into_the_pickle() -> None:
    value = {"a": np.arange(1000.0), "f": np.asfortranarray(np.ones((20, 30)))}
    taken = serialise(value)
    assert [part.name for part in taken.parts] == ["pickle", "buffers/0", "buffers/1"]
    assert taken.parts[0].data.nbytes < 1000
    assert np.shares_memory(np.asarray(taken.parts[1].data), value["a"])
    back = round_trip(value)
    assert np.array_equal(back["a"], value["a"])
    assert back["f"].flags.f_contiguous


def test_an_array_is_not_copied_on_its_way_out() -> None:
    for value in (np.arange(1000.0), np.asfortranarray(np.ones((20, 30)))):
        assert np.shares_memory(np.asarray(serialise(value).parts[0].data), value)


def test_a_memmap_comes_back_as_an_array(tmp_path: Path) -> None:
    value = np.memmap(tmp_path / "data", np.int32, "w+", shape=(4,))
    value[:] = 7
    back = round_trip(value)
    assert type(back) is np.ndarray
    assert back.tolist() == [7] * 4


def test_subclasses_are_kept() -> None:
    value = np.ma.masked_array([1, 2], [False, True])
    back = round_trip(value)
    assert type(back) is np.ma.MaskedArray
    assert back.tolist() == [1, None]


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("I will not travel")


def test_what_cannot_be_pickled_is_said_with_its_cause(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with pytest.raises(SerializationError, match="cannot be pickled") as raised:
        cache.publish(KEY, [Unpicklable()], {})
    chain = [raised.value.__cause__, getattr(raised.value.__cause__, "__cause__", None)]
    assert any(isinstance(link, RuntimeError) and "not travel" in str(link) for link in chain)
    assert cache.present([KEY]) == set()
    assert list((cache.path).glob("results/*/*")) == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_as_json(dtype: Any) -> None:
    described = dtypes.describe(np.dtype(dtype))
    assert dtypes.restore(described) == np.dtype(dtype)
    assert dtypes.storage(np.dtype(dtype)).itemsize == np.dtype(dtype).itemsize


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype(object),
        np.dtype([("a", object)]),
        np.dtype("S0"),
        np.dtype("f8", metadata={"unit": "m"}),
        np.dtype([(("title", "a"), "i4")]),
    ],
    ids=str,
)
def test_dtypes_that_only_pickle_keeps(dtype: Any) -> None:
    assert dtypes.describe(dtype) is None


def test_plain_h5py_reads_what_there_is(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    values = {
        "1" * 64: np.array(["2026-01-01", "NaT"], "M8[s]"),
        "2" * 64: np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "3" * 64: np.array([(1, 2.5)], [("n", "i4"), ("x", "f8")]),
        "4" * 64: {"a": np.arange(5)},
    }
    for key, value in values.items():
        cache.publish(key, value, {"function": "größe", "resources": {"cores": 2}, "runtime": 0.5})
    with h5py.File(cache.path_of("1" * 64)) as file:
        assert file.attrs["function"] == "größe"
        assert file.attrs["runtime"] == 0.5
        assert file.attrs["resources_json"] == '{"cores": 2}'
        assert file["value"].attrs["dtype"] == "<M8[s]"
        dates = file["value"][()].view(file["value"].attrs["dtype"])
        assert np.array_equal(dates, values["1" * 64], equal_nan=True)
    with h5py.File(cache.path_of("2" * 64)) as file:
        assert file["value"].attrs["order"] == "F"
        assert np.array_equal(file["value"][()].T, values["2" * 64])
    with h5py.File(cache.path_of("3" * 64)) as file:
        assert file["value"]["x"].tolist() == [2.5]
    with h5py.File(cache.path_of("4" * 64)) as file:
        assert file["pickle"].chunks is None
        assert bytes(file["buffers/0"][()]) == np.arange(5).tobytes()
