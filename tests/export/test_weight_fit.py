"""Weights whose sizes do not fit their form are refused before anything is written."""

import functools
from dataclasses import replace

import pytest

from mod_edge.config import MoDConfig
from mod_edge.errors import ExportError
from mod_edge.export import bundle_writer as bundle_module
from mod_edge.export.bundle_writer import export_bundle
from mod_edge.export.weight_fit import require_fitting_weights
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.presets import GEOMETRIES, preset_config, write_random_checkpoint
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.signature import bundle_signatures
from mod_edge.plan.targets import TARGETS, Lowering

CPU_INT8 = Lowering("cpu", "fp32", weight_format="int8")
CPU_INT4 = Lowering("cpu", "fp32", weight_format="int4")


def lowerings():
    """Every weight format of every target."""
    return [
        Lowering(
            name,
            target.precisions[0],
            Rows(260, 148) if target.dialect == "in_place" else None,
            each.name,
        )
        for name, target in TARGETS.items()
        for each in target.weight_formats
    ]


@functools.cache
def config_of(preset):
    """The preset's config, whose tokenizer takes a second to make."""
    return preset_config(preset)


def require(config, lowering):
    require_fitting_weights(config, lowering, bundle_signatures(config, lowering))


@pytest.mark.parametrize("preset", GEOMETRIES)
@pytest.mark.parametrize(
    "lowering", lowerings(), ids=lambda each: f"{each.target}-{each.weight_format}"
)
def test_every_preset_fits_every_format(preset, lowering):
    require(config_of(preset), lowering)


def test_576_inputs_are_18_blocks_and_80_are_not():
    config = config_of("135m")
    assert config.text_config.hidden_size == 576
    require(config, CPU_INT4)
    odd = replace(config, text_config=replace(config.text_config, intermediate_size=80))
    with pytest.raises(ExportError, match=r"mlp\.down_proj\.weight has 80 inputs"):
        require(odd, CPU_INT4)


def test_all_weights_that_do_not_fit_are_named_at_once_with_the_formats_that_do(make_config):
    config = make_config()  # D=48, intermediate size 80, six heads of 16; vision 32 and 40
    with pytest.raises(ExportError) as caught:
        require(config, Lowering("cuda", "fp32", Rows(64, 32), "int8-weight-only"))
    message = str(caught.value)
    assert message.startswith(
        "weights int8-weight-only of target cuda do not fit this model: "
        "vision_model.encoder.layers.*.mlp.fc2.weight has 40 inputs, wanted a multiple of 32; "
    )
    for fault in (
        "connector.2.weight has 48 inputs",
        "model.layers.*.self_attn.q_proj.weight has 48 inputs",
        "model.layers.*.mlp.down_proj.weight has 80 inputs",
        "lm_head.weight has 48 inputs",
    ):
        assert message.count(fault) == 1
    assert "o_proj" not in message  # 96 inputs
    assert message.endswith("; export with --weights as-dtype")
    with pytest.raises(ExportError, match=r"--weights as-dtype or int8$") as caught:
        require(config, CPU_INT4)
    assert "vision" not in str(caught.value)  # 8 bits with a scale per channel


MOST_INPUTS = 66_311  # 255 x 127 x 66,311 = 2^31 - 1 - 1,912


def test_inputs_whose_sum_could_overflow_int32_are_refused():
    tiny = config_of("tiny")
    config = replace(tiny, text_config=replace(tiny.text_config, hidden_size=MOST_INPUTS + 9))
    with pytest.raises(ExportError) as caught:
        require(config, CPU_INT8)
    message = str(caught.value)
    assert (
        "model.layers.*.mlp.gate_proj.weight has 66320 inputs, wanted at most 66,311, which "
        "MatMulInteger sums in int32 without an overflow; "
    ) in message
    assert "down_proj" not in message  # its inputs are the intermediate size
    assert message.endswith("; export with --weights as-dtype")


def test_rows_cut_into_parts_may_have_as_many_inputs_in_each_part():
    tiny = config_of("tiny")
    text = replace(tiny.text_config, intermediate_size=4 * MOST_INPUTS)
    require(replace(tiny, text_config=text), CPU_INT8)
    text = replace(text, intermediate_size=4 * (MOST_INPUTS + 9))
    with pytest.raises(ExportError, match=r"down_proj\.weight has 265280 inputs") as caught:
        require(replace(tiny, text_config=text), CPU_INT8)
    assert str(caught.value).endswith("; export with --weights as-dtype or int4")


def test_an_export_that_does_not_fit_does_no_work(tmp_path, monkeypatch):
    config = config_of("tiny")
    config = replace(
        config,
        text_config=replace(config.text_config, intermediate_size=80),
        mod_config=MoDConfig(),
    )
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_random_checkpoint(config, folder, seed=0)
    monkeypatch.setattr(bundle_module, "trace", lambda *_: pytest.fail("traced"))
    monkeypatch.setattr(Checkpoint, "require_finite", lambda _: pytest.fail("read the weights"))
    with pytest.raises(ExportError, match=r"down_proj\.weight has 80 inputs"):
        export_bundle(Checkpoint(folder), tmp_path / "bundle", lowering=CPU_INT4)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint"}
