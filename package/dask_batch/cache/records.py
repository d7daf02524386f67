"""Small JSON records that are written once, with a checksum over their text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from dask_batch.cache.files import read_owned
from dask_batch.errors import DamagedEntryError

__all__ = ["read_record", "seal", "unseal"]

_BEGIN = b'{"xxh3_64": "'
_MIDDLE = b'", "record": '
_END = b"}\n"
_DIGITS = 16
_REMEDY = "dask_batch.verify mends what can be; else remove it once no job of its run is left"


def seal(record: Mapping[str, Any]) -> bytes:
    """Return a record as the text of a file; what JSON does not know is written as its ``str``.

    The text is ASCII: any string comes back, lone surrogates included.
    """
    body = json.dumps(record, default=str).encode("ascii")
    digest = xxhash.xxh3_64_hexdigest(body).encode("ascii")
    return b"".join((_BEGIN, digest, _MIDDLE, body, _END))


def unseal(data: bytes) -> dict[str, Any]:
    """Return the record in a file's text.

    Raises
    ------
    DamagedEntryError
        The text is not what was written.
    """
    start = len(_BEGIN) + _DIGITS + len(_MIDDLE)
    body = data[start : -len(_END)]
    digest = xxhash.xxh3_64_hexdigest(body).encode("ascii")
    if data != b"".join((_BEGIN, digest, _MIDDLE, body, _END)):
        raise DamagedEntryError("a record's text does not match its checksum")
    record = json.loads(body)
    if not isinstance(record, dict):
        raise DamagedEntryError("a record is not a JSON object")
    return record


def read_record(path: Path) -> dict[str, Any]:
    """Return the record in a file of ours.

    Raises
    ------
    FileNotFoundError
        There is none.
    DamagedEntryError
        It is not what was written: says which file, and what to do.
    CacheError
        Others may have written it.
    """
    data = read_owned(path)
    try:
        return unseal(data)
    except DamagedEntryError as error:
        raise DamagedEntryError(f"{path} is damaged ({error}): {_REMEDY}") from error
