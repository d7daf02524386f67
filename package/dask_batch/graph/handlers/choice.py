"""Which handler an object gets."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from dask_batch.code.origin import Granularity, cut_version, distribution, is_user_module
from dask_batch.graph.handlers import builtin, code, generic, placeless
from dask_batch.graph.handlers.names import is_offered
from dask_batch.graph.shape import Facts, ReductionError, Shape, unstable
from dask_batch.inputs import InputFile, input_file

__all__ = ["Handler", "Shaper"]

Handler: TypeAlias = Callable[[Any, "Shaper"], Shape]

_OWN: Final = __name__.partition(".")[0]
_LIBRARIES: Final = {
    "numpy": "arrays",
    "scipy": "sparse",
    "sparse": "sparse",
    "pandas": "frames",
    "pyarrow": "arrow",
    "numba": "jitted",
    "xarray": "labelled",
    "dask": "lazy",
    "fsspec": "files",
    "s3fs": "files",
    "gcsfs": "files",
    "adlfs": "files",
    "h5py": "stores",
    "zarr": "stores",
    "netCDF4": "stores",
    "dask_batch": "files",
}
"""Top-level package of a class, and the module here whose ``choose`` knows its types."""


class Shaper:
    """Takes objects apart.

    Parameters
    ----------
    key_versions
        How much of a library's version counts.
    """

    def __init__(self, key_versions: Granularity) -> None:
        self.key_versions = key_versions
        self._handlers: dict[type, Handler] = {}
        self._labels: dict[str, tuple[str, Facts]] = {}
        self._files: dict[tuple[str, bool], InputFile] = {}

    def __call__(self, obj: Any) -> Shape:
        """Take one object apart, one level deep.

        Raises
        ------
        ReductionError
            A method of the user's raised.
        """
        cls = type(obj)
        handler = self._handlers.get(cls)
        if handler is None:
            handler = self._handlers[cls] = _choose(cls)
        try:
            return handler(obj, self)
        except ReductionError:
            raise
        except Exception as error:
            # An object in a state, or of a version of its library, that its handler does not
            # know. Not to recognise the task again is always right; to guess is not.
            name = f"{cls.__module__}.{cls.__qualname__}"
            return unstable(name, f"a {name} could not be read: {type(error).__name__}: {error}")

    def reference(self, module: str, qualname: str) -> Shape:
        """Return the shape of what a library offers under a name."""
        label, facts = self.label(module)
        return Shape("reference", (module, qualname, label), facts=facts)

    def offered(self, obj: Any, module: str | None, qualname: str | None) -> Shape | None:
        """Return the reference to an object that a library offers under a name, if it does."""
        if module is None or qualname is None or is_user_module(module):
            return None
        return self.reference(module, qualname) if is_offered(obj, module, qualname) else None

    def record(self, path: str, *, digest: bool = False) -> InputFile:
        """Look at a file outside, once for every hand-over."""
        known = self._files.get((path, digest))
        if known is None:
            known = self._files[path, digest] = input_file(path, digest=digest)
        return known

    def remote_file(self, filesystem: Any, path: str) -> Any:
        """Return what stands for a file of some file system: a record, or what identifies it."""
        from dask_batch.graph.handlers import files

        return files.file_of(filesystem, path, self)

    def read_by(self, function: Any, arguments: Any) -> Any:
        """Return the files that a library's reader reads when it is called so, or None."""
        from dask_batch.graph.handlers import readers

        return readers.files_of_call(function, arguments, self)

    def label(self, module: str) -> tuple[str, Facts]:
        """Return what counts of a library's version, and the facts about its use."""
        known = self._labels.get(module)
        if known is None:
            known = self._labels[module] = self._find_label(module)
        return known

    def _find_label(self, module: str) -> tuple[str, Facts]:
        if module.partition(".")[0] == _OWN:
            return "this package", Facts()  # a File is a File in every release
        found = distribution(module)
        if found is None:
            return code.PYTHON, Facts()
        label = f"{found[0]} {cut_version(found[1], self.key_versions)}"
        parts = module.split(".")
        preload = ".".join(parts[: 2 if parts[0] == "dask" else 1])
        return label, Facts(libraries=frozenset({found}), preload=frozenset({preload}))


def _choose(cls: type) -> Handler:
    """Choose for a type: the builtin ones exactly, a library's with what is derived from them."""
    handler = builtin.choose(cls) or placeless.choose(cls) or code.choose(cls)
    if handler is not None:
        return handler
    for base in cls.__mro__:
        library = _LIBRARIES.get((base.__module__ or "").partition(".")[0])
        if library is None:
            continue
        chosen = importlib.import_module(f"{__package__}.{library}").choose(cls)
        if chosen is not None:
            found: Handler = chosen
            return found
    return generic.choose(cls)
