"""Whose code a module is: the user's, which travels by value, or a library's, by reference.

:func:`is_user_module` is the one predicate. The content hash, the pickler and the check in a job
all ask it, so that what entered a key by value is what travels by value.

Notes
-----
A library installed in development mode (``pip install -e``) lies outside ``site-packages`` and
counts as the user's own code: it is what the user edits. A module tree of a cluster counts as a
library if it has a ``site-packages`` or ``dist-packages`` directory, as they do; a folder of any
name that was filled by ``pip install --target``, for what pip has put there.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from types import FunctionType, ModuleType
from typing import Any, Literal, TypeAlias

from dask_batch.code.namespaces import TravelledModule

__all__ = [
    "Granularity",
    "cut_version",
    "distribution",
    "find_spec",
    "is_user_module",
    "library_label",
    "library_of_namespace",
    "travels_by_value",
]

Granularity: TypeAlias = Literal["minor", "exact", "none"]

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_OWN = __name__.partition(".")[0]
_MAIN = frozenset({"__main__", "__mp_main__"})
_BINDINGS = ("_cython_", "pybind11_builtins", "nanobind", "Boost.Python", "shibokensupport")
"""Modules without a file in which generators of extension modules keep their own types."""

_LIBRARY_DIRECTORIES = frozenset({"site-packages", "dist-packages"})
_ARCHIVES = (".egg", ".zip", ".whl", ".pex")
_EXTENSIONS = (*importlib.machinery.EXTENSION_SUFFIXES, ".so", ".pyd", ".dylib")


def is_user_module(name: str | None) -> bool:
    """Tell whether a module is the user's own code, which is hashed and travels by value.

    Parameters
    ----------
    name
        The module's absolute name. It need not have been imported; asking does not import it,
        nor the packages that it lies in.

    Returns
    -------
    bool
        True for ``__main__``, for None, for modules that cannot be found or have no file and
        are not built in, and for files outside the standard library, outside every
        ``site-packages`` and ``dist-packages``, and not put by pip where they are. False for
        extension modules and archives, which cannot travel, and for this package.
    """
    if name is None or name in _MAIN:
        return True
    if name.partition(".")[0] == _OWN or name.startswith(_BINDINGS):
        return False
    module = sys.modules.get(name)
    if isinstance(module, TravelledModule):
        return True
    file = None if module is None else getattr(module, "__file__", None)
    if isinstance(file, str):
        return _is_user_file(file)
    return _is_user_spec(name, module)


def _is_user_spec(name: str, module: ModuleType | None) -> bool:
    """Decide for a module without a file, or one that has not been imported."""
    spec = find_spec(name) if module is None else getattr(module, "__spec__", None)
    if spec is not None:
        if spec.origin in ("built-in", "frozen"):
            return False
        if spec.has_location and isinstance(spec.origin, str):
            return _is_user_file(spec.origin)
    places = getattr(module, "__path__", None) or getattr(spec, "submodule_search_locations", None)
    if places:
        return any(_is_user_file(os.path.join(place, "__init__.py")) for place in places)
    parent, _, _ = name.rpartition(".")
    if parent:
        # Libraries make modules on the fly and hang them below their own names (six.moves).
        return is_user_module(parent)
    return name not in sys.stdlib_module_names


@functools.cache
def _is_user_file(file: str) -> bool:
    """Decide by where a module's file lies."""
    if file.endswith(_EXTENSIONS):
        return False
    path = os.path.abspath(file)
    directories = path.split(os.sep)[:-1]
    if any(d in _LIBRARY_DIRECTORIES or d.endswith(".egg") for d in directories):
        return False
    if any(d.endswith(_ARCHIVES) for d in directories) and not os.path.exists(path):
        return False
    if path.endswith(".zip") or _is_installed(path):
        return False
    spellings = {path, os.path.realpath(path)}
    return not any(p.startswith(place) for p in spellings for place in _standard_library())


def _is_installed(path: str) -> bool:
    """Whether pip has put a file where it is, in a folder from which modules are imported."""
    for place in (os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)):
        below = os.path.join(place, "")
        if path.startswith(below) and path.removeprefix(below) in _installed(place):
            return True
    return False


@functools.cache
def _installed(place: str) -> frozenset[str]:
    """Return the files that pip has put into a folder, as it has recorded them there."""
    try:
        names = [name for name in os.listdir(place) if name.endswith(".dist-info")]
    except OSError:  # an archive, or not there
        return frozenset()
    if not names:
        return frozenset()
    import csv  # most folders never ask

    found: set[str] = set()
    for name in names:
        try:
            with open(os.path.join(place, name, "RECORD"), newline="", encoding="utf-8") as record:
                found.update(os.path.normpath(row[0]) for row in csv.reader(record) if row)
        except (OSError, UnicodeDecodeError, csv.Error):
            continue  # without a record nobody can tell what is whose
    return frozenset(found)


@functools.cache
def _standard_library() -> tuple[str, ...]:
    """Directories (with a separator behind) and the archive of the standard library."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    places = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    places.add(os.path.join(sys.base_prefix, "lib", version))
    places.add(os.path.dirname(os.__file__))
    places |= {os.path.realpath(place) for place in places}
    return tuple(sorted(os.path.join(place, "") for place in places))


def library_of_namespace(namespace: Mapping[str, Any]) -> str | None:
    """Name the library module whose globals a namespace is; None if it is the user's."""
    name = namespace.get("__name__")
    module = sys.modules.get(name) if isinstance(name, str) else None
    if module is None or module.__dict__ is not namespace or is_user_module(name):
        return None
    return module.__name__


def travels_by_value(thing: FunctionType | type) -> bool:
    """Tell whether a function or a class is hashed and travels by value.

    True for the user's own, and for whatever a library does not offer under its name: local
    classes, lambdas, wrappers that a decorator made.
    """
    if isinstance(thing, type) and not thing.__flags__ & _HEAP_TYPE:
        return False  # a static type of C (NoneType has no name to be found under)
    name = thing.__module__
    if not isinstance(name, str) or is_user_module(name):
        return True
    found: Any = sys.modules.get(name)
    if found is None:
        return True
    for part in thing.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is not thing


def find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Find where a module would come from, without importing it or its packages.

    Differs from :func:`importlib.util.find_spec`, which runs the ``__init__`` of every package on
    the way.
    """
    module = sys.modules.get(name)
    if module is not None:
        return getattr(module, "__spec__", None)
    parent, _, _ = name.rpartition(".")
    path: Iterable[str] | None = None
    if parent:
        package = sys.modules.get(parent)
        path = getattr(package, "__path__", None)
        if path is None:
            found = find_spec(parent)
            path = None if found is None else found.submodule_search_locations
        if path is None:
            return None
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, None if path is None else list(path))
        except (AttributeError, ImportError, ValueError):
            continue  # a finder that is not up to the protocol cannot say where the module is
        if spec is not None:
            return spec
    return None


def distribution(module_name: str) -> tuple[str, str] | None:
    """Find the distribution that a library module was installed by.

    Parameters
    ----------
    module_name
        The absolute name of a module that is not the user's own.

    Returns
    -------
    tuple of str or None
        Normalised name and version; None for the standard library. A module that no installed
        distribution claims has its top-level name and its ``__version__``; without that, a
        digest of its file (``sha256:...``).
    """
    file = _file_of(module_name)
    if file is None:
        spec = find_spec(module_name)
        if module_name in _MAIN or spec is None or spec.origin in ("built-in", "frozen"):
            return None
    elif _is_standard(file):
        return None
    top = module_name.partition(".")[0]
    if _file_of(top) is not None:
        return _distribution(
            top, _file_of(top)
        )  # only a namespace package is shared by distributions
    return _distribution(module_name, file)


def _file_of(module_name: str) -> str | None:
    file: Any = getattr(sys.modules.get(module_name), "__file__", None)
    if not isinstance(file, str):
        spec = find_spec(module_name)
        file = spec.origin if spec is not None and spec.has_location else None
    return file if isinstance(file, str) else None


@functools.cache
def _is_standard(file: str) -> bool:
    path = os.path.abspath(file)
    if any(d in _LIBRARY_DIRECTORIES for d in path.split(os.sep)):
        return False
    spellings = {path, os.path.realpath(path)}
    return any(p.startswith(place) for p in spellings for place in _standard_library())


@functools.cache
def _distribution(module_name: str, file: str | None) -> tuple[str, str] | None:
    """Guess the distribution by the module's name, and search only if the guess does not hold."""
    from importlib import metadata  # slow to import, and most pickles never ask

    top = module_name.partition(".")[0]
    if file is None and top in sys.stdlib_module_names:
        return None
    try:
        guess = metadata.distribution(top)
    except (metadata.PackageNotFoundError, ValueError):
        pass
    else:
        if _claims(guess, module_name):
            return _identity(guess.metadata["Name"], guess.version)
    names = dict.fromkeys(_packages_distributions().get(top, ()))
    found = [metadata.distribution(name) for name in names]
    claiming = [d for d in found if _claims(d, module_name)] or found
    if claiming:
        return _identity(claiming[0].metadata["Name"], claiming[0].version)
    version = getattr(sys.modules.get(top), "__version__", None)
    if isinstance(version, str) and version:
        return _identity(top, version)
    return (_normalised(top), "" if file is None else _digest_of(file))


def _claims(found: Any, module_name: str) -> bool:
    """Whether a distribution's list of files holds a module (several share a namespace package)."""
    record = found.read_text("RECORD") or found.read_text("installed-files.txt")
    if not record:
        tops = (found.read_text("top_level.txt") or "").split()
        return module_name.partition(".")[0] in tops
    path = re.escape(module_name.replace(".", "/"))
    return re.search(rf"(?:^|/){path}(?:/__init__)?\.", record, re.MULTILINE) is not None


@functools.cache
def _packages_distributions() -> dict[str, list[str]]:
    from importlib import metadata

    return dict(metadata.packages_distributions())


def _digest_of(file: str) -> str:
    """Return a digest of a file that has no version, or nothing if it is inside an archive."""
    try:
        with open(file, "rb") as stream:
            return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()[:32]
    except OSError:
        return ""


def _identity(name: str | None, version: str) -> tuple[str, str]:
    return _normalised(name or ""), version


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def library_label(module_name: str, granularity: Granularity = "minor") -> str:
    """Return the version of a library module's distribution, as far as it counts in a key.

    Parameters
    ----------
    module_name
        The absolute name of a module that is not the user's own.
    granularity
        ``"minor"`` gives ``"2.4"``, ``"exact"`` ``"2.4.1"``, ``"none"`` the empty string.
    """
    if granularity == "none":
        return ""
    found = distribution(module_name)
    return "" if found is None else cut_version(found[1], granularity)


def cut_version(version: str, granularity: Granularity = "minor") -> str:
    """Cut a version to what counts in a key; what is not a version stays whole."""
    if granularity == "none":
        return ""
    match = re.match(r"(?:\d+!)?\d+(?:\.\d+)?(?=$|[^0-9])", version)
    return version if granularity == "exact" or match is None else match.group()
