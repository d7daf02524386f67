"""What a module offers under a name, looked up without running anything."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, Final

from dask_batch.code.origin import is_user_module

__all__ = ["is_offered", "library_part", "name_of"]

_MISSING: Final = object()


def is_offered(obj: Any, module: str, qualname: str) -> bool:
    """Tell whether an object is what a module has under a dotted name."""
    found: Any = sys.modules.get(module, _MISSING)
    for name in qualname.split("."):
        found = _member(found, name)
        if found is _MISSING:
            return False
    return found is obj or getattr(found, "__func__", _MISSING) is obj


def name_of(obj: Any) -> tuple[str | None, str | None]:
    """Return an object's module and qualified name, as far as it has them."""
    try:
        module, qualname = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    except Exception:  # a __getattr__ of the user's may raise anything
        return None, None
    return (
        (module, qualname)
        if isinstance(module, str) and isinstance(qualname, str)
        else (None, None)
    )


def _member(owner: Any, name: str) -> Any:
    """Look a name up in a module or class, without its descriptors or ``__getattr__``."""
    if isinstance(owner, ModuleType):
        return vars(owner).get(name, _MISSING)
    if isinstance(owner, type):
        for base in owner.__mro__:
            if name in vars(base):
                return vars(base)[name]
    return _MISSING


def library_part(label: str, namespace: dict[str, Any]) -> tuple[str, tuple[str, ...]] | None:
    """Find where a dotted path leads into a library.

    Parameters
    ----------
    label
        As :func:`dask_batch.code.reach.reached` gives it: ``"helper.np.linalg.svd"``, or
        ``"import package.module.attribute"``.
    namespace
        The globals of the function that the path starts from.

    Returns
    -------
    tuple or None
        The library's module and the rest of the path; None if the path stays with the user, or
        if it ends at the module itself.
    """
    if label.startswith("import "):
        names = label.removeprefix("import ").split(".")
        # As much of it as is a module; what follows are attributes.
        ends = range(len(names), 0, -1)
        end = next((e for e in ends if ".".join(names[:e]) in sys.modules), 0)
        owner: Any = sys.modules.get(".".join(names[:end]))
        rest = names[end:]
    else:
        first, *rest = label.split(".")
        owner = namespace.get(first)
    while rest and isinstance(owner, ModuleType):
        if not is_user_module(owner.__name__):
            return owner.__name__, tuple(rest)
        owner, rest = vars(owner).get(rest[0]), rest[1:]
    return None
