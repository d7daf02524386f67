"""Executors that draw their calls, or export them, and run nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dask_batch
from bodies import add, noted
from dask_batch import SingleNodeExecutor, get_item_from_future, split_future
from dask_batch.errors import ConfigurationError, GraphError, ResourceError


def get_prod_and_div(x: float, y: float) -> dict[str, float]:
    return {"prod": x * y, "div": x / y}


def get_square(x: float) -> float:
    return x**2


def merge(parts: Any, scale: int = 1) -> Any:
    return parts, scale


def exported(path: Path) -> tuple[dict[int, Any], set[tuple[Any, ...]]]:
    """Return the nodes by id, and the edges."""
    content = json.loads(path.read_text())
    assert content["version"] == "0.1.0"
    assert content.keys() == {"version", "nodes", "edges"}
    nodes = {node["id"]: node for node in content["nodes"]}
    assert list(nodes) == list(range(len(nodes)))
    order = ("source", "sourcePort", "target", "targetPort")
    assert all(edge.keys() == set(order) for edge in content["edges"])
    return nodes, {tuple(edge[name] for name in order) for edge in content["edges"]}


def test_a_workflow_is_exported_and_nothing_runs(tmp_path: Path) -> None:
    file = tmp_path / "workflow.json"
    with SingleNodeExecutor(
        export_workflow_filename=file, cache_directory=tmp_path / "cache"
    ) as exe:
        both = exe.submit(get_prod_and_div, x=1, y=2)
        product = get_item_from_future(both, key="prod")
        total = exe.submit(add, product, b=get_item_from_future(both, key="div"))
        square = exe.submit(get_square, total)
        assert (square.done(), square.result(), product.result()) == (True, None, None)
        assert not file.exists()
    nodes, edges = exported(file)
    module = get_square.__module__
    assert nodes == {
        0: {"id": 0, "type": "function", "value": f"{module}.get_prod_and_div"},
        1: {"id": 1, "type": "function", "value": "bodies.add"},
        2: {"id": 2, "type": "function", "value": f"{module}.get_square"},
        3: {"id": 3, "type": "input", "value": 1, "name": "x"},
        4: {"id": 4, "type": "input", "value": 2, "name": "y"},
        5: {"id": 5, "type": "output", "name": "result"},
    }
    assert edges == {
        (3, None, 0, "x"), (4, None, 0, "y"), (0, "prod", 1, "a"), (0, "div", 1, "b"),
        (1, None, 2, "x"), (2, None, 5, None),
    }  # fmt: skip
    assert not (tmp_path / "cache").exists()


def test_lists_and_dictionaries_of_results_are_nodes_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "workflow.json"
    with SingleNodeExecutor(export_workflow_filename=str(file)) as exe:
        one, two = split_future(exe.submit(divmod, 7, 2), 2)
        exe.submit(merge, [one, 5, {"two": two}], scale=5)
        exe.submit(add, np.array([1, 2]), np.int64(5))
        exe.submit(add, np.array([1, 2]), np.int64(5))  # an equal call is the same
    nodes, edges = exported(file)
    names = [node["value"] for node in nodes.values() if node["type"] == "function"]
    shared = "python_workflow_definition.shared"
    assert sorted(names) == sorted(
        [f"{shared}.get_list", f"{shared}.get_dict", "builtins.divmod", "bodies.add",
         f"{merge.__module__}.merge"]
    )  # fmt: skip
    in_list = {(source, port) for source, _, target, port in edges
               if nodes[target].get("value") == f"{shared}.get_list"}  # fmt: skip
    assert {port for _, port in in_list} == {"0", "1", "2"}
    fives = [node for node in nodes.values() if node.get("value") == 5]
    assert len(fives) == 2  # Python's own in the list and as scale, and NumPy's
    assert [1, 2] in [node.get("value") for node in nodes.values()]
    assert {node["name"] for node in nodes.values() if node["type"] == "output"} == {
        "result_1", "result_2"
    }  # fmt: skip


def test_a_picture_in_graphvizs_language_needs_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    file = tmp_path / "graph.dot"
    with SingleNodeExecutor(plot_dependency_graph_filename=file) as exe:
        whole = exe.submit(get_prod_and_div, 1, 'a "quoted" \\ text that is long')
        exe.submit(add, get_item_from_future(whole, "div"), [whole])
    text = file.read_text()
    assert 'label="get_prod_and_div"' in text
    assert r'label="a \"quoted\" \\ text th..."' in text
    assert "label=\"a['div']\"" in text
    assert text.count("->") == 5
    for name in ("graph.svg", "graph.png"):
        with pytest.raises(ConfigurationError, match="no Graphviz here"):
            SingleNodeExecutor(plot_dependency_graph_filename=tmp_path / name)


@pytest.mark.skipif(shutil.which("dot") is None, reason="there is no Graphviz here (no dot)")
def test_graphviz_draws(tmp_path: Path) -> None:
    file = tmp_path / "graph.svg"
    with SingleNodeExecutor(
        plot_dependency_graph_filename=file, export_workflow_filename=tmp_path / "workflow.json"
    ) as exe:
        exe.submit(add, exe.submit(add, 1, 2), "<&\"'\\n")
    assert "</svg>" in file.read_text()
    assert (tmp_path / "workflow.json").exists()
    with pytest.raises(ConfigurationError, match=r"graph\.nonsense.*recognized"):
        SingleNodeExecutor(plot_dependency_graph_filename=tmp_path / "graph.nonsense")


def test_a_batch_system_need_not_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with dask_batch.SlurmClusterExecutor(export_workflow_filename=tmp_path / "w.json") as exe:
        assert exe.submit(add, 1, 2).result() is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"plot_dependency_graph_filename": "graph"}, "suffix"),
        ({"plot_dependency_graph_filename": 3}, "plot_dependency_graph_filename"),
        ({"export_workflow_filename": "/nowhere/at/all/w.json"}, "/nowhere/at/all"),
        ({"plot_dependency_graph": "yes"}, "plot_dependency_graph"),
        ({"plot_dependency_graph": True}, "plot_dependency_graph_filename="),
    ],
)
def test_what_cannot_be_drawn_is_said_before_the_first_call(
    options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no notebook
    with pytest.raises(ConfigurationError, match=said):
        SingleNodeExecutor(**options)


def test_what_cannot_be_exported_is_said_by_submit(tmp_path: Path) -> None:
    exe = SingleNodeExecutor(export_workflow_filename=tmp_path / "w.json")
    whole = exe.submit(get_prod_and_div, 1, 2)
    with SingleNodeExecutor(cache_directory=tmp_path / "cache") as other:
        foreign = other.submit(add, 1, 2)
    deep = get_item_from_future(get_item_from_future(whole, "a"), "b")
    for call, said in (
        ((lambda x: x, 1), "<lambda>"),
        ((add, object(), 1), "'a', of type object"),
        ((add, foreign, 1), "future of none of the calls"),
        ((add, {whole}, 1), "in a set"),
        ((add, deep, 1), "item of an item"),
    ):
        with pytest.raises(GraphError, match=said):
            exe.submit(*call)
    with pytest.raises(TypeError, match="missing a required argument: 'b'"):
        exe.submit(add, 1)
    with pytest.raises(ResourceError, match="cores"):
        exe.submit(add, 1, 2, resource_dict={"cores": 0})
    exe.shutdown()
    nodes, _ = exported(tmp_path / "w.json")
    assert len(nodes) == 4  # nothing of those that were refused


def test_an_executor_that_draws_computes_no_graphs(tmp_path: Path) -> None:
    import dask

    with SingleNodeExecutor(export_workflow_filename=tmp_path / "w.json") as exe:
        lazy = dask.delayed(noted)(tmp_path, "never")
        with pytest.raises(ConfigurationError, match=r"dask\.visualize"):
            dask.compute(lazy, scheduler=exe)
        with pytest.raises(ConfigurationError, match=r"dask\.visualize"):
            exe.compute(lazy)
    assert [path.name for path in tmp_path.iterdir()] == ["w.json"]


def test_dependencies_that_are_disabled_cannot_be_drawn(tmp_path: Path) -> None:
    file = tmp_path / "graph.dot"
    with pytest.raises(ConfigurationError, match="disable_dependencies=True"):
        SingleNodeExecutor(plot_dependency_graph_filename=file, disable_dependencies=True)
