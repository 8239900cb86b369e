"""Rows of the embedding table: as stored, or int8 codes times their scale, in every precision."""

import numpy as np
import pytest
import torch

from mod_edge.bundle.manifest import EMBEDDING_FILE, EMBEDDING_SCALES_FILE
from mod_edge.config import EMBEDDING_WEIGHT
from mod_edge.errors import BackendError, ExportError
from mod_edge.export.bundle_writer import write_embedding
from mod_edge.model.weight_codes import weight_codes
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.targets import DTYPES, Lowering
from mod_edge.plan.weight_forms import EMBEDDING_INT8
from mod_edge.runtime.embedding import Embedding

TOKENS = [3, 0, 66, 3]


@pytest.fixture
def config(make_config):
    return make_config()


@pytest.fixture
def table(config):
    text = config.text_config
    generator = torch.Generator().manual_seed(0)
    return torch.randn(text.vocab_size, text.hidden_size, generator=generator) * 5


def lowering(precision, weights):
    return Lowering("rtx", precision, Rows(8, 8), weights)


def as_float(rows):
    """Rows as float32: bfloat16 comes as uint16 bits."""
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("precision", DTYPES)
def test_quantized_rows_are_codes_times_scale_in_the_precision(
    config, table, tmp_path, precision, stored
):
    table = table.to(getattr(torch, stored))
    chosen = lowering(precision, "int8-weight-only")
    write_embedding(table, chosen, tmp_path)
    rows = Embedding(tmp_path, config, chosen).rows(TOKENS)
    codes = weight_codes(EMBEDDING_WEIGHT, table, EMBEDDING_INT8)
    theirs = codes.values()[TOKENS].to(getattr(torch, DTYPES[precision]))
    assert rows.shape == (len(TOKENS), config.text_config.hidden_size)
    assert np.array_equal(as_float(rows), theirs.float().numpy())
    step = table[TOKENS].float().abs().amax(1, keepdim=True) / 127
    # Half a step, and bfloat16's rounding: 127 steps times 2^-9.
    assert (theirs.float() - table[TOKENS].float()).abs().div(step).max() < 0.76


@pytest.mark.parametrize("precision", DTYPES)
def test_other_rows_are_the_stored_ones(config, table, tmp_path, precision):
    chosen = lowering(precision, "as-dtype")
    write_embedding(table, chosen, tmp_path)
    rows = Embedding(tmp_path, config, chosen).rows(TOKENS)
    theirs = table[TOKENS].to(getattr(torch, DTYPES[precision])).float().numpy()
    assert np.array_equal(as_float(rows), theirs)
    assert not (tmp_path / EMBEDDING_SCALES_FILE).exists()


def test_bfloat16_rounds_ties_to_even_as_torch_does(config, tmp_path):
    text = config.text_config
    codes = np.zeros((text.vocab_size, text.hidden_size), np.int8)
    codes[:, 0] = codes[:, 1] = 1
    codes[:, 1] = -1
    # Around values that lie halfway between two bfloat16 numbers, and the largest finite ones.
    halves = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-23, 1 + 2**-8 - 2**-23, 3.3e38, 1e-40]
    scales = np.resize(np.array(halves, np.float32), (text.vocab_size, 1))
    np.save(tmp_path / EMBEDDING_FILE, codes)
    np.save(tmp_path / EMBEDDING_SCALES_FILE, scales)
    rows = Embedding(tmp_path, config, lowering("bf16", "int4")).rows(range(6))
    theirs = torch.from_numpy(codes[:6] * scales[:6]).to(torch.bfloat16)
    assert np.array_equal(rows, theirs.view(torch.uint16).numpy())


@pytest.mark.parametrize("weights", ["as-dtype", "int8-weight-only"])
def test_values_that_the_precision_cannot_hold_are_an_export_error(table, tmp_path, weights):
    table[3, 5] = 1e5
    with pytest.raises(ExportError, match=r"embed_tokens.weight' has values up to 1e\+05"):
        write_embedding(table, lowering("fp16", weights), tmp_path)


def test_a_quantized_table_is_a_quarter_of_a_float32_one(config, table, tmp_path):
    sizes = {}
    for weights in ("as-dtype", "int4"):
        folder = tmp_path / weights
        folder.mkdir()
        write_embedding(table, lowering("fp32", weights), folder)
        sizes[weights] = (folder / EMBEDDING_FILE).stat().st_size - 128  # numpy's header
    assert sizes["int4"] * 4 == sizes["as-dtype"]


def test_a_table_without_its_scales_or_of_another_dtype_is_an_error(config, table, tmp_path):
    write_embedding(table, lowering("fp32", "int4"), tmp_path)
    with pytest.raises(BackendError, match=r"holds int8 .*wants float32"):
        Embedding(tmp_path, config, lowering("fp32", "as-dtype"))
    (tmp_path / EMBEDDING_SCALES_FILE).unlink()
    with pytest.raises(BackendError, match=r"embedding_scales\.npy cannot be read"):
        Embedding(tmp_path, config, lowering("fp32", "int4"))
