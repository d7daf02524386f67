"""pyarrow: values, wherever chunks begin and whatever lies under a null; and what reads files."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from dask_batch.graph.shape import Shape

if TYPE_CHECKING:
    from dask_batch.graph.handlers.choice import Handler, Shaper

__all__ = ["choose"]


def choose(cls: type) -> Handler | None:
    """Return the handler of a pyarrow type."""
    pa = sys.modules["pyarrow"]
    for base, handler in (
        (pa.Table, _table),
        (pa.RecordBatch, _table),
        (pa.ChunkedArray, _chunked),
        (pa.Array, _array),
        (pa.Scalar, _scalar),
        (pa.Schema, _schema),
        (pa.Field, _field),
        (pa.ExtensionType, None),
        (pa.DataType, _type),
        (pa.Buffer, _buffer),
    ):
        if issubclass(cls, base):
            return handler
    names = {base.__name__ for base in cls.__mro__}
    if "ParquetFileFragment" in names:
        return _parquet_fragment
    if "FileFragment" in names:
        return _file_fragment
    if "FileSystemDataset" in names:
        return _dataset
    return None


def _type(obj: Any, _: Shaper) -> Shape:
    return Shape("arrow type", (str(obj),), (type(obj),))


def _field(obj: Any, _: Shaper) -> Shape:
    return Shape("arrow field", (), (obj.name, obj.type, obj.nullable, obj.metadata))


def _schema(obj: Any, _: Shaper) -> Shape:
    return Shape("arrow schema", (), (*obj, obj.metadata))


def _table(obj: Any, _: Shaper) -> Shape:
    columns = [obj.column(position) for position in range(obj.num_columns)]
    return Shape("arrow table", (str(obj.num_rows),), (type(obj), obj.schema, *columns))


def _scalar(obj: Any, _: Shaper) -> Shape:
    return Shape("arrow scalar", (), (obj.type, obj.as_py()))


def _buffer(obj: Any, _: Shaper) -> Shape:
    return Shape("arrow buffer", (memoryview(obj),))


def _chunked(obj: Any, _: Shaper) -> Shape:
    return Shape("arrow chunked array", (), (_combined(obj),))


def _combined(obj: Any) -> Any:
    import pyarrow as pa

    combined = obj.combine_chunks()
    # With more than 2 GB of strings they do not fit into one array.
    return combined.chunks if isinstance(combined, pa.ChunkedArray) else combined


def _array(obj: Any, _: Shaper) -> Shape:
    import numpy as np

    nulls = obj.is_null().to_numpy(zero_copy_only=False) if obj.null_count else None
    parts = [np.packbits(nulls) if nulls is not None else None, *_parts(obj)]
    return Shape("arrow array", (str(len(obj)),), (obj.type, *parts))


def _parts(obj: Any) -> list[Any]:
    """Return the values of an array, those under nulls made equal."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = obj.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _strings(obj.cast(pa.large_string()).fill_null(""))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _strings(obj.cast(pa.large_binary()).fill_null(b""))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        zero = pa.scalar(0, pa.int8()).cast(kind)
        return [(obj.fill_null(zero) if obj.null_count else obj).to_numpy(zero_copy_only=False)]
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind) or pa.types.is_date(kind):
        return _parts(obj.view(pa.int32() if pa.types.is_date32(kind) else pa.int64()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [pc.list_value_length(obj), obj.flatten()]
    if pa.types.is_struct(kind):
        return list(obj.flatten())
    if pa.types.is_dictionary(kind):
        return [obj.indices, obj.dictionary]
    return [obj.to_pylist()]


def _strings(obj: Any) -> list[Any]:
    """Return lengths and characters of an array of strings without nulls."""
    import numpy as np

    _, places, characters = obj.buffers()
    if not len(obj) or places is None:
        return [b""]
    offsets = np.frombuffer(places, dtype=np.int64)[obj.offset : obj.offset + len(obj) + 1]
    if characters is None:
        return [np.diff(offsets), b""]
    return [np.diff(offsets), memoryview(characters)[int(offsets[0]) : int(offsets[-1])]]


def _file_fragment(obj: Any, shaper: Shaper) -> Shape:
    parts = (_file_of(obj, shaper), obj.format, str(obj.partition_expression))
    return Shape("fragment", (), (type(obj), *parts))


def _parquet_fragment(obj: Any, shaper: Shaper) -> Shape:
    groups = None if obj.row_groups is None else [group.id for group in obj.row_groups]
    parts = (_file_of(obj, shaper), obj.format, str(obj.partition_expression), groups)
    return Shape("parquet fragment", (), (type(obj), *parts))


def _file_of(obj: Any, shaper: Shaper) -> Any:
    if obj.buffer is not None:
        return obj.buffer
    return shaper.remote_file(obj.filesystem, obj.path)


def _dataset(obj: Any, _: Shaper) -> Shape:
    return Shape("dataset", (), (type(obj), obj.schema, list(obj.get_fragments())))
