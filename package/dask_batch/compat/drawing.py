"""An executor that draws its calls instead of running them."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from dask_batch.compat.workflow import Edge, Node, Workflow
from dask_batch.errors import ConfigurationError
from dask_batch.future import BatchFuture

__all__ = ["Drawing", "wanted_drawing"]

_TEXT: Final = (".dot", ".gv")
"""Files that are Graphviz's own language: they need no program."""
_TIMEOUT_S: Final = 120.0
_LONGEST_LABEL: Final = 20


def wanted_drawing(*, plot: bool, picture: Path | None, workflow: Path | None) -> Drawing | None:
    """Return what draws, as it was asked for; None if nothing is to be drawn.

    Parameters
    ----------
    plot
        Whether to draw, where no file says so.
    picture, workflow
        Files for a picture, and for the export.

    Raises
    ------
    ConfigurationError
        There is nothing here to draw with.
    """
    if not plot and picture is None and workflow is None:
        return None
    shown = picture is None and workflow is None
    if shown and importlib.util.find_spec("IPython") is None:
        raise ConfigurationError(
            "plot_dependency_graph=True shows the graph in a notebook, and there is no IPython "
            "here: name a file, plot_dependency_graph_filename='graph.svg'"
        )
    if picture is not None and not picture.suffix:
        raise ConfigurationError(
            f"plot_dependency_graph_filename={str(picture)!r}: its suffix says which kind of file "
            "it is to be, and it has none: .svg, .pdf, .png, or .dot"
        )
    if (shown or (picture is not None and picture.suffix not in _TEXT)) and not shutil.which("dot"):
        raise ConfigurationError(
            "there is no Graphviz here to draw with (no program 'dot'): install graphviz, or name "
            "a file of its language, plot_dependency_graph_filename='graph.dot', or an export, "
            "export_workflow_filename='workflow.json'"
        )
    if picture is not None and picture.suffix not in _TEXT:
        _check_kind(picture)
    return Drawing(picture=picture, workflow=workflow, shown=shown)


def _check_kind(picture: Path) -> None:
    """Refuse a kind of file that Graphviz does not know, before anything is taken."""
    try:
        _drawn("digraph {}", picture.suffix[1:])
    except ConfigurationError as error:
        raise ConfigurationError(
            f"plot_dependency_graph_filename={str(picture)!r}: its suffix is to say which kind of "
            f"file it is to be, as .svg, .pdf, .png, or .dot do: {error}"
        ) from None


class Drawing:
    """Takes calls, and draws them in the end. Nothing runs: every future has the value None.

    Parameters
    ----------
    picture, workflow
        Files for a picture, and for the export; None: not wanted.
    shown
        Whether to show the picture in a notebook.
    """

    def __init__(self, *, picture: Path | None, workflow: Path | None, shown: bool) -> None:
        self._picture, self._export, self._shown = picture, workflow, shown
        self._workflow = Workflow(exportable=workflow is not None)

    def call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> BatchFuture:
        """Take a call.

        Raises
        ------
        TypeError, GraphError
            It is none, or it cannot be drawn or exported.
        """
        if not callable(function):
            raise TypeError(f"{function!r} is not callable")
        future = BatchFuture()
        self._workflow.add(future, function, args, kwargs)
        future._resolve(None)
        return future

    def finish(self) -> None:
        """Write, or show, what has been taken."""
        if self._export is not None:
            self._export.write_text(self._workflow.as_json(), encoding="utf-8")
        if self._picture is not None:
            text = _dot(self._workflow)
            if self._picture.suffix not in _TEXT:
                self._picture.write_bytes(_drawn(text, self._picture.suffix[1:]))
            else:
                self._picture.write_text(text, encoding="utf-8")
        if self._shown:
            notebook = importlib.import_module("IPython.display")
            notebook.display(notebook.SVG(_drawn(_dot(self._workflow), "svg")))


def _drawn(text: str, kind: str) -> bytes:
    """Have Graphviz draw.

    Raises
    ------
    ConfigurationError
        It does not know that kind of file.
    """
    argv = ["dot", f"-T{kind}"]
    done = subprocess.run(
        argv, input=text.encode(), capture_output=True, timeout=_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise ConfigurationError(f"{' '.join(argv)}: {done.stderr.decode(errors='replace')}")
    return done.stdout


def _dot(workflow: Workflow) -> str:
    """Return a workflow in Graphviz's language."""
    names = {node: f"n{number}" for number, node in enumerate(workflow.nodes)}
    lines = ["digraph {"]
    lines += [f"  {names[node]} [{_looks(node)}];" for node in workflow.nodes]
    lines += [
        f"  {names[edge.source]} -> {names[edge.target]} [label={_quoted(_label(edge))}];"
        for edge in workflow.edges
    ]
    return "\n".join([*lines, "}", ""])


def _looks(node: Node) -> str:
    if node.kind == "function":
        return f"shape=box, label={_quoted(node.name)}"
    return f"shape=ellipse, label={_quoted(_short(node.value))}"


def _label(edge: Edge) -> str:
    """Return the argument, and which item of the source's result it is."""
    return edge.target_port + "".join(f"[{selector!r}]" for selector in edge.source_port)


def _short(value: Any) -> str:
    """Return a value as there is room for it."""
    text = " ".join(str(value).split()) if isinstance(value, (str, bytes)) else repr(value)
    if "\n" in text or " object at 0x" in text or " at 0x" in text:
        text = f"{getattr(value, '__name__', type(value).__name__)}()"
    return text if len(text) <= _LONGEST_LABEL else text[:_LONGEST_LABEL] + "..."


def _quoted(text: str) -> str:
    """Quote for Graphviz, in whose strings a backslash begins an escape."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
