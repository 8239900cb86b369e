"""The perplexity of a text: transformers' on the same windows, on every backend."""

import math
from pathlib import Path

import pytest
import torch

from mod_edge import profiles
from mod_edge.errors import ConfigError, DataError
from mod_edge.evaluation.text_perplexity import TextEvaluation, evaluate_text, windows_of
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.plan.tokenizer import text_ids
from tests.conftest import CAPACITY
from tests.model.test_reference import hugging_face_llama

# Measured 6e-7 at most; windows without bos give 0.3, windows shorter by one token 0.1.
RTOL_PERPLEXITY = 1e-5
WINDOW = 97  # two steps of 64 tokens; the last window of the text is shorter
TEXT = "A man walks on the path, é 日本.\r\n<|eot_id|>, and stops.\n\n" * 5


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    return path


@pytest.fixture(scope="module")
def short_steps(tmp_path_factory):
    """Profile cpu with steps of 64 tokens and logits of at most 3 rows at once."""
    path = tmp_path_factory.mktemp("profile") / "short.toml"
    shipped = (Path(profiles.__file__).parent / "cpu.toml").read_text()
    path.write_text(shipped.replace("= 256", "= 64").replace("max = 8", "max = 3"))
    return path


def loss_of_transformers(llama, windows):
    """Mean cross entropy of the ids after the first of each window."""
    losses = []
    for window in windows:
        ids = torch.tensor(window)
        logits = llama(ids[None]).logits[0, :-1].double()
        losses += torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").tolist()
    return math.fsum(losses) / len(losses)


@pytest.fixture(scope="module")
def theirs(write_tiny):
    """The perplexity of `TEXT` by transformers.

    Its weights are those of the tiny checkpoint: MoD layers compute all text, as dense ones do.
    """
    checkpoint = Checkpoint(write_tiny(None))
    ids = text_ids(checkpoint.tokenizer, TEXT)
    bos = checkpoint.config.stream_config.bos_token_id
    windows = [[bos, *ids[start : start + WINDOW - 1]] for start in range(0, len(ids), WINDOW - 1)]
    assert 1 < len(windows[-1]) < WINDOW == len(windows[-2])
    return math.exp(loss_of_transformers(hugging_face_llama(checkpoint.load_model()), windows))


@pytest.mark.numeric
@pytest.mark.parametrize(
    "lowering", [None, ("cpu", "fp32"), ("cuda", "fp32")], ids=["reference", "delta", "in_place"]
)
def test_the_perplexity_is_that_of_transformers_on_every_backend(
    theirs, text, tiny_checkpoint, any_bundle, short_steps, lowering
):
    steps = []
    where = {"backend": "onnx", "device": "cpu", "profile": short_steps} if lowering else {}
    model = any_bundle(*lowering) if lowering else tiny_checkpoint
    ours = evaluate_text(
        model, text, window_tokens=WINDOW, on_step=lambda *step: steps.append(step), **where
    )
    assert ours.perplexity == pytest.approx(theirs, rel=RTOL_PERPLEXITY)
    assert ours.num_predicted == ours.num_tokens
    assert steps[-1] == (f"window {ours.num_windows} of {ours.num_windows}", len(steps) - 1, 2)
    assert ours.backend.startswith("onnx" if lowering else "torch")
    assert ours.warnings == []


# ---- windows ----


def test_every_token_is_in_one_window_after_bos():
    assert windows_of([5, 6, 7, 8, 9], 0, 3) == [[0, 5, 6], [0, 7, 8], [0, 9]]


def test_without_bos_a_last_window_of_one_token_is_left_out():
    assert windows_of([5, 6, 7, 8, 9], None, 2) == [[5, 6], [7, 8]]
    assert windows_of([5, 6, 7, 8, 9], None, 3) == [[5, 6, 7], [8, 9]]
    assert windows_of([5], None, 3) == []


def test_a_window_shorter_than_two_tokens_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match="window_tokens=1, wanted at least 2"):
        evaluate_text(tmp_path, text, window_tokens=1)


def test_a_window_larger_than_the_graphs_is_refused_with_the_largest_that_fits(
    bundle_for, tmp_path
):
    path = tmp_path / "long.txt"
    path.write_text(TEXT * 4)
    with pytest.raises(ConfigError, match=rf"lower --window-tokens to {CAPACITY.mod}, or export"):
        evaluate_text(bundle_for("cuda", "fp32"), path, window_tokens=CAPACITY.mod + 1)


def test_a_short_text_fits_whatever_the_window(bundle_for, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("A man walks.")
    found = evaluate_text(bundle_for("cuda", "fp32"), path, window_tokens=10**6, device="cpu")
    assert found.num_windows == 1


# ---- files ----


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; give a file with text"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"caf\xe9 au lait", "is not UTF-8: byte 4 is 0xE9; save it as UTF-8"),
        (None, "cannot be read: No such file"),
    ],
    ids=["empty", "only a byte order mark", "latin-1", "missing"],
)
def test_a_bad_file_is_named_before_the_model_is_opened(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        evaluate_text(tmp_path / "no model", path, window_tokens=8)


def test_infinite_and_missing_numbers_are_null_in_json():
    found = TextEvaluation("m", "b", "t", 8, 1, 7, 7, 1e6, [])
    assert found.perplexity == math.inf
    assert found.to_json()["perplexity"] is None
    assert found.to_json()["loss"] == 1e6
    overflowed = TextEvaluation("m", "b", "t", 8, 1, 7, 7, math.nan, [])
    assert (overflowed.to_json()["loss"], overflowed.to_json()["perplexity"]) == (None, None)
