"""The page of precision belongs to the bundled checkpoint; what its command measures is right.

The slow tests hold what the page says. Two of them need folders of published weights, named by
environment variables.
"""

import os
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn.functional import cosine_similarity

from benchmarks import figures, precision
from mod_edge.errors import ModEdgeError
from mod_edge.evaluation.evaluate import evaluate
from mod_edge.evaluation.text_perplexity import evaluate_text
from mod_edge.export.bundle_writer import export_bundle
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.importing.import_plan import ImportSources
from mod_edge.model.importing.importer import import_checkpoint
from mod_edge.model.quantized import quantize_model
from mod_edge.model.shipped import FOLDER
from mod_edge.native.onnx_session import session_options
from mod_edge.plan.layout import step_layout
from mod_edge.plan.targets import CPU_FP32, Lowering
from mod_edge.plan.weight_forms import DEQUANTIZED_INT4, INT8, INT8_ROWS, NBITS_INT4_CPU, NBITS_INT8
from mod_edge.toy_scenes.scenes import write_scenes
from tests.hugging_face_folders import write_llm, write_vision

INT8_ON_CPU = Lowering("cpu", "fp32", weight_format=INT8)
WEIGHT_ONLY = [row for row in precision.ROWS if row.computed_with == precision.DEQUANTIZED]
# Measured 1.010 with rows in parts, 1.027 with whole rows; rounding in another order moves it by
# 0.002.
MAX_PERPLEXITY_RATIO = 1.02
# Measured 0.9987 and 0.9894 through the exported graph.
LEAST_MEAN_COSINE, LEAST_COSINE = 0.995, 0.95
MAX_F1_CHANGE = 0.02


# ---- the page ----


def test_the_page_has_a_block_for_every_table():
    text = precision.PAGE.read_text(encoding="utf-8")
    found = [match["name"] for match in figures.MARKED.finditer(text)]
    assert found == ["text", "pictures", "bundled-model"]


def test_the_bundled_models_table_belongs_to_the_bundled_checkpoint():
    text = precision.PAGE.read_text(encoding="utf-8")
    blocks = {match["name"]: match["fingerprint"] for match in figures.MARKED.finditer(text)}
    assert blocks["bundled-model"] == figures.shipped_fingerprint(), "run: make precision"


def test_only_the_given_blocks_are_rewritten(tmp_path):
    page = tmp_path / "page.md"
    kept = "<!-- figures: text, checkpoint 1a -->\nold\n<!-- end of figures -->\n"
    page.write_text(
        f"a\n{kept}b\n<!-- figures: pictures, checkpoint 1a -->\n<!-- end of figures -->\n"
    )
    precision.rewrite_blocks(page, {"pictures": precision.Block("2b", "new\n")})
    assert page.read_text() == (
        f"a\n{kept}b\n<!-- figures: pictures, checkpoint 2b -->\nnew\n<!-- end of figures -->\n"
    )
    with pytest.raises(ModEdgeError, match="no markers for the figures other"):
        precision.rewrite_blocks(page, {"other": precision.Block("2b", "new\n")})


def test_bits_per_weight_count_a_blocks_scale_and_zero_point():
    assert precision.bits_per_weight(None, "float32") == 32
    assert precision.bits_per_weight(INT8_ROWS, "float32") == 8
    assert precision.bits_per_weight(NBITS_INT8, "float16") == 8.5
    assert precision.bits_per_weight(DEQUANTIZED_INT4, "float16") == 4.5
    assert precision.bits_per_weight(NBITS_INT4_CPU, "float32") == 5.125


# ---- the measurements ----


@pytest.mark.parametrize("row", WEIGHT_ONLY, ids=lambda row: row.name)
def test_the_checkpoint_of_dequantized_weights_computes_as_the_quantized_reference(
    row, tiny_checkpoint, tmp_path
):
    precision.write_dequantized(Checkpoint(tiny_checkpoint), row.lowering, tmp_path / "values")
    ours = Checkpoint(tmp_path / "values").load_model()
    theirs = quantize_model(Checkpoint(tiny_checkpoint).load_model(), row.lowering)
    frames = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    layout = step_layout((5, 0, 2), ours.config.frame_num_tokens, ours.config.num_kept)
    hidden = theirs.model.embed_tokens(torch.arange(layout.num_tokens))
    hidden[torch.tensor(layout.frame_index)] = theirs(frames)
    assert torch.equal(ours(frames), theirs(frames))
    assert torch.equal(ours.full_forward(hidden, layout), theirs.full_forward(hidden, layout))
    original = Checkpoint(tiny_checkpoint).load_model()
    assert not torch.equal(original(frames), theirs(frames))


def test_six_pictures_fill_the_towers_frames(make_config):
    frames = precision.frames_of_pictures(make_config().vision_config)
    assert frames.shape == (6, 59, 59, 3)
    assert all(frame.std() > 5 for frame in frames)


# ---- published weights, and the bundled model ----


def folder_of(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"needs {variable}, a folder of published weights (see docs/import.md)")
    return Path(os.environ[variable])


@pytest.mark.slow
def test_int8_perplexity_is_within_two_percent(tmp_path):
    sources = ImportSources(folder_of("MOD_EDGE_REAL_LLM"), write_vision(tmp_path / "vision"))
    checkpoint = import_checkpoint(sources, tmp_path / "checkpoint").folder
    export_bundle(Checkpoint(checkpoint), tmp_path / "bundle", lowering=INT8_ON_CPU)
    text = precision.text_of_measurement(tmp_path)
    ours, theirs = (
        evaluate_text(model, text, window_tokens=1024).perplexity
        for model in (tmp_path / "bundle", checkpoint)
    )
    assert ours / theirs < MAX_PERPLEXITY_RATIO


@pytest.mark.slow
def test_the_tokens_of_a_trained_tower_keep_their_direction_in_int8(tmp_path):
    llm = write_llm(tmp_path / "llm")
    sources = ImportSources(llm, folder_of("MOD_EDGE_REAL_VIT"))
    checkpoint = Checkpoint(import_checkpoint(sources, tmp_path / "checkpoint").folder)
    export_bundle(checkpoint, tmp_path / "bundle", lowering=INT8_ON_CPU, layers=())
    ours = hidden_of_graph(tmp_path / "bundle" / "vision.onnx", checkpoint)
    theirs = precision.hidden_of_pictures(checkpoint, CPU_FP32)
    cosines = cosine_similarity(ours, theirs)
    assert cosines.mean() >= LEAST_MEAN_COSINE
    assert cosines.min() >= LEAST_COSINE


def hidden_of_graph(path, checkpoint):
    """(pictures * patches, Dv), the last hidden states inside a vision graph."""
    proto = onnx.load(str(path), load_external_data=False)
    name = "vision_model.post_layernorm.weight"
    (norm,) = (node for node in proto.graph.node if name in node.input)
    proto.graph.output.append(
        helper.make_tensor_value_info(norm.output[0], TensorProto.FLOAT, None)
    )
    tapped = path.with_name("tapped.onnx")
    tapped.write_bytes(proto.SerializeToString())
    session = onnxruntime.InferenceSession(
        str(tapped), session_options(), providers=["CPUExecutionProvider"]
    )
    frames = precision.frames_of_pictures(checkpoint.config.vision_config)
    (hidden,) = session.run([norm.output[0]], {"frames": frames})
    return torch.from_numpy(hidden).flatten(0, 1)


@pytest.mark.slow
def test_the_bundled_model_narrates_as_well_in_int8(tmp_path, clip):
    write_scenes(
        tmp_path / "data",
        {"test": precision.NUM_CLIPS},
        seed=0,
        force=False,
        photographs=clip,
    )
    f1 = []
    for lowering in (INT8_ON_CPU, CPU_FP32):
        folder = tmp_path / lowering.weight_format
        export_bundle(Checkpoint(FOLDER), folder, lowering=lowering)
        f1.append(evaluate(folder, tmp_path / "data").rows[0].free_running.f1)
    assert f1[0] == pytest.approx(f1[1], abs=MAX_F1_CHANGE)
