"""Job scripts from Jinja2 templates: the built-in ones and those that users bring.

The variables are ``command``, ``working_directory`` (the folder of the job's logs), ``job_name``,
``dependency`` and ``dependency_list``, and every resource; None when unset. A name that is
missing or None is false in a test, and an error when printed.

Templates are code of the user's own, values are not: a value is one line of printable text, is
never rendered itself, and arrives quoted as its place in the script needs it
(:mod:`dask_batch.backends.carried`). Templates run in Jinja2's sandbox, without a loader: they
reach no attribute of Python's inner life and no file.
"""

from __future__ import annotations

import functools
import math
import shlex
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources as package_files
from types import MappingProxyType
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dask_batch.backends.carried import Cargo, Carried
from dask_batch.backends.places import directive_value
from dask_batch.errors import TemplateError

__all__ = [
    "Dependency",
    "builtin_template",
    "render",
    "template_values",
    "template_variables",
]

_LARGEST_SCRIPT = 4 << 20  # Slurm's max_script_size, unless a site has chosen another


class Dependency(list[str]):
    """The ids that must have succeeded, as one element ``A:B:C``.

    Slurm reads ``afterok:A,B`` as "A ok, then B *any*". Templates in use join with a comma, loop,
    or print the name as it is: all come out as ``afterok:A:B``. Empty, and so false, without ids.
    """

    def __init__(self, job_ids: Iterable[str] = ()) -> None:
        joined = ":".join(job_ids)
        super().__init__([joined] if joined else [])

    def __str__(self) -> str:
        return self[0] if self else ""


class _Gigabytes(float):
    """Memory that prints as whole gigabytes, rounded up: ``--mem=1.5G`` is refused by Slurm."""

    def __str__(self) -> str:
        return str(math.ceil(self))


class _Lines(tuple[str, ...]):
    """Shell lines: a template may loop over them, or print them as they are."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(self)


class _Missing(jinja2.Undefined):
    """A name that is not there: false in a test, an error when printed or looped over."""

    def __str__(self) -> str:
        self._fail_with_undefined_error()

    def __iter__(self) -> Iterator[Any]:
        self._fail_with_undefined_error()


def _directive(value: Any) -> Any:
    """Quote for a ``#SBATCH`` line; what is carried gets its quotes when its place is known."""
    return value if isinstance(value, Carried) else directive_value(value)


def _quote(value: Any) -> Any:
    """Quote for the shell; what is carried gets its quotes when its place is known."""
    return value if isinstance(value, Carried) else shlex.quote(str(_printed(value)))


def _default(value: Any, default: Any = "", boolean: bool = False) -> Any:
    """Jinja2's ``default``, for which a resource that is None counts as undefined."""
    if value is None or isinstance(value, jinja2.Undefined) or (boolean and not value):
        return default
    return value


def _printed(value: Any) -> Any:
    """Refuse to print what is not there; print whole floats as integers."""
    if value is None:
        raise _PrintedNoneError
    if isinstance(value, (Carried, _Gigabytes)):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


class _PrintedNoneError(Exception):
    """The template prints a variable that is None."""


class _Generator(CodeGenerator):
    """Compiles ``a ~ b`` so that each operand is looked at as if it were printed alone."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for operand in node.nodes:
            self.visit(operand, frame)
            self.write(", ")
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox, in which None cannot be printed."""

    code_generator_class = _Generator

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Keep templates from what a carried value carries."""
        return not isinstance(obj, Carried) and super().is_safe_attribute(obj, attr, value)

    @staticmethod
    def joined(operands: Iterable[Any]) -> str:
        """Return the operands of ``~`` as one string."""
        return "".join(str(_printed(operand)) for operand in operands)


@functools.cache
def _environment() -> _Environment:
    environment = _Environment(
        undefined=_Missing, finalize=_printed, autoescape=False, keep_trailing_newline=True
    )
    environment.filters["directive"] = _directive
    environment.filters["quote"] = _quote
    environment.filters["default"] = environment.filters["d"] = _default
    return environment


@functools.lru_cache(maxsize=64)
def template_variables(source: str) -> frozenset[str]:
    """Return the names that a template uses.

    Raises
    ------
    TemplateError
        The template does not parse; the message names the line.
    """
    return frozenset(meta.find_undeclared_variables(_parsed(source)))


def _parsed(source: str) -> nodes.Template:
    try:
        return _environment().parse(source)
    except jinja2.TemplateSyntaxError as error:
        lines = source.splitlines()
        shown = lines[error.lineno - 1].strip() if 0 < error.lineno <= len(lines) else ""
        raise TemplateError(
            f"the submission template does not parse: line {error.lineno}: {error.message}"
            + (f"\n    {shown}" if shown else "")
        ) from error


@functools.lru_cache(maxsize=64)
def _compiled(source: str) -> jinja2.Template:
    _parsed(source)
    return _environment().from_string(source)


@functools.cache
def builtin_template(name: str) -> str:
    """Return the text of a template of this package."""
    folder = package_files.files("dask_batch.backends") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def template_values(
    resources: Mapping[str, Any],
    *,
    command: str,
    working_directory: str,
    job_name: str,
    dependency: Sequence[str] = (),
    further: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return what a template sees; ``further`` are variables that a backend adds.

    Slurm counts time in minutes, and templates in use divide ``run_time_max`` by 60 and drop the
    rest: seconds are rounded up to whole minutes. ``memory_max`` prints as whole gigabytes,
    rounded up, and is exact in arithmetic.
    """
    visible = dict(resources)
    if visible.get("run_time_max") is not None:
        visible["run_time_max"] = math.ceil(visible["run_time_max"] / 60) * 60
    if isinstance(visible.get("memory_max"), float):
        visible["memory_max"] = _Gigabytes(visible["memory_max"])
    if visible.get("job_script_prologue") is not None:
        visible["job_script_prologue"] = _Lines(visible["job_script_prologue"])
    joined = Dependency(dependency)
    return {
        **further,
        **visible,
        "command": command,
        "working_directory": working_directory,
        "job_name": job_name,
        "dependency": joined,
        "dependency_list": joined,
    }


def render(source: str, variables: Mapping[str, Any]) -> str:
    """Return the script that a template makes of its variables.

    Raises
    ------
    TemplateError
        The template does not parse, prints a name that is missing or None, fails, or a value
        cannot be part of a script.
    """
    template = _compiled(source)
    cargo = Cargo()
    visible = {name: cargo.load(name, value) for name, value in variables.items()}
    try:
        script = _bounded(template.generate(visible))
    except TemplateError:
        raise
    except jinja2.UndefinedError as error:
        raise TemplateError(
            f"the submission template prints a name that is missing: {error.message}. "
            "Set it in resource_dict, or put {% if name %} ... {% endif %} around it."
        ) from error
    except Exception as error:  # a template is a program: it may fail in any way
        raise TemplateError(_failure(source, variables, error)) from error
    script = cargo.deliver(script)
    return script if script.endswith("\n") else script + "\n"


def _bounded(pieces: Iterable[str]) -> str:
    """Join what a template prints, up to the size of a script that Slurm takes."""
    kept: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > _LARGEST_SCRIPT:
            raise TemplateError(
                f"the submission template prints more than {_LARGEST_SCRIPT >> 20} MiB: Slurm "
                "takes no such script"
            )
        kept.append(piece)
    return "".join(kept)


def _failure(source: str, variables: Mapping[str, Any], error: Exception) -> str:
    unset: dict[str, int] = {}
    for name in _printed_names(_parsed(source)):
        if variables.get(name.name, 0) is None:
            unset.setdefault(name.name, name.lineno)
    printed_none = isinstance(error, _PrintedNoneError)
    if not unset:
        what = "it prints None" if printed_none else f"{type(error).__name__}: {error}"
        return f"the submission template fails{_line_of(source, error)}: {what}"
    names = ", ".join(f"{name!r} (line {line})" for name, line in unset.items())
    what = "" if printed_none else f" ({type(error).__name__}: {error})"
    return (
        f"the submission template prints what is not set: {names}{what}. Set it in "
        f"resource_dict, or put {{% if {next(iter(unset))} %}} ... {{% endif %}} around it."
    )


def _printed_names(
    node: nodes.Node, tested: frozenset[str] = frozenset(), *, printing: bool = False
) -> Iterator[nodes.Name]:
    """Yield the names that a template prints, but for those that a test around them is about."""
    if isinstance(node, nodes.Name) and printing and node.name not in tested:
        yield node
    printing = printing or isinstance(node, nodes.Output)
    condition = node.test if isinstance(node, (nodes.If, nodes.CondExpr)) else None
    if condition is not None:
        names = [condition] if isinstance(condition, nodes.Name) else condition.find_all(nodes.Name)
        tested |= {name.name for name in names}
    for child in node.iter_child_nodes():
        if child is not condition:
            yield from _printed_names(child, tested, printing=printing)


def _line_of(source: str, error: Exception) -> str:
    """Say at which line of a template it fails; Jinja2 calls it a file of this name."""
    numbers = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == "<template>" and frame.lineno
    ]
    lines = source.splitlines()
    if not numbers or numbers[-1] > len(lines):
        return ""
    return f" at line {numbers[-1]} ({lines[numbers[-1] - 1].strip()})"
