"""The graphs with which a CPU's matrix rates are measured."""

import pytest

pytestmark = pytest.mark.numeric


def test_the_shipped_graphs_are_those_that_the_script_writes():
    onnx = pytest.importorskip("onnx")
    from tests.native.matmul_graphs import FOLDER, GRAPHS, matmul_graph

    for name, arguments in GRAPHS.items():
        graph = matmul_graph(*arguments)
        onnx.checker.check_model(graph, full_check=True)
        assert onnx.load(FOLDER / name) == graph
