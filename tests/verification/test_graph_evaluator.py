"""onnx's reference evaluator as a backend of `verify`."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mod_edge.errors import BackendError
from mod_edge.verification.graph_evaluator import EvaluatorRunner

WEIGHTS = np.arange(6, dtype=np.float16).reshape(3, 2)


def saved(path):
    """A graph of one product, with its weights beside it."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, 2])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, path, save_as_external_data=True, location="graph.data", size_threshold=0)
    return path


@pytest.mark.parametrize("is_linked", [False, True])
def test_a_graph_is_computed_with_its_weights_beside_it_or_in_the_hubs_cache(tmp_path, is_linked):
    path, blobs = saved(tmp_path / "graph.onnx"), tmp_path / "blobs"
    if is_linked:
        blobs.mkdir()
        for file in (path, tmp_path / "graph.data"):
            file.rename(blobs / f"{file.suffix[1:]}-sha256")
            file.symlink_to(blobs / f"{file.suffix[1:]}-sha256")
    runner = EvaluatorRunner(path, signature=None)
    runner.activate_impl()
    x = np.array([[1, 0, 2]], dtype=np.float16)
    assert np.array_equal(runner.infer_impl({"x": x})["y"], x @ WEIGHTS)


def test_a_graph_may_not_name_weights_outside_its_folder(tmp_path):
    (tmp_path / "bundle").mkdir()
    path = saved(tmp_path / "bundle" / "graph.onnx")
    (path.parent / "graph.data").rename(tmp_path / "graph.data")
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../graph.data"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BackendError, match=r"weights are in '\.\./graph\.data', outside"):
        EvaluatorRunner(path, signature=None).activate_impl()
