"""`python -m benchmarks.saved_graphs BUNDLE FOLDER`: what ONNX Runtime makes of a bundle's graphs.

Saves each kind of graph as its CUDA provider, or without one its CPU provider, runs it after all
optimizations, and counts its ops. A DequantizeLinear that is left before a MatMul fails: the
weights would be widened in memory in every step.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import onnx
import onnxruntime
import typer

from mod_edge.bundle.bundle import open_bundle
from mod_edge.commands.console import EXIT_ERROR, out, print_error, reports_errors
from mod_edge.native.int8_products import graph_session_options
from mod_edge.plan.graph_kind import GraphKind
from mod_edge.plan.signature import GraphSignature
from mod_edge.plan.weight_forms import WeightForm

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@reports_errors
def save_graphs(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    folder: Annotated[Path, typer.Argument(help="Folder for the saved graphs and ops.json.")],
) -> None:
    """Save a bundle's graphs as ONNX Runtime runs them; fail if one dequantizes before a MatMul."""
    opened = open_bundle(bundle)
    folder.mkdir(parents=True, exist_ok=True)
    first: dict[GraphKind, GraphSignature] = {}
    for signature in opened.signatures():
        first.setdefault(signature.kind, signature)
    ops, faults = {}, []
    for kind, signature in first.items():
        form = opened.lowering.weight_form(kind)
        graph = optimized(bundle / signature.file, folder / f"{signature.name}.onnx", form)
        ops[signature.name] = dict(Counter(node.op_type for node in graph.node).most_common())
        faults += [f"{signature.name}: {name}" for name in dequantized_products(graph)]
    (folder / "ops.json").write_text(json.dumps(ops, indent=1) + "\n", encoding="utf-8")
    for name, counts in ops.items():
        out.print(f"{name}: {', '.join(f'{count} {op}' for op, count in counts.items())}")
    if faults:
        print_error(f"DequantizeLinear is left before MatMul: {', '.join(faults)}")
        raise typer.Exit(EXIT_ERROR)


def optimized(path: Path, saved: Path, form: WeightForm | None) -> Any:
    """The graph at `path` after all optimizations, also written to `saved` with its weights."""
    available = onnxruntime.get_available_providers()
    providers = [name for name in (CUDA, CPU) if name in available]
    options = graph_session_options(form, shares_arena=CUDA not in providers)
    options.optimized_model_filepath = str(saved)
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", f"{saved.name}.data"),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
    ):
        options.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(path, options, providers=providers)
    return onnx.load(saved, load_external_data=False).graph


def dequantized_products(graph: Any) -> list[str]:
    """Names of the MatMul nodes that read the output of a DequantizeLinear."""
    dequantized = {
        name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    products = (node for node in graph.node if node.op_type in ("MatMul", "Gemm"))
    return [node.name for node in products if dequantized & set(node.input)]


if __name__ == "__main__":
    typer.run(save_graphs)
