"""`mod-edge eval --text`: the perplexity of a text, in windows of tokens, through a model's graphs.

A window is the bos token, if the model has one, and the next tokens of the text. Windows follow
each other without overlap, and none sees another. Each token is predicted from those before it in
its window, the first of a window (bos, or a token of the text) not at all. The perplexity is exp of
the mean cross entropy of all predicted tokens.
"""

import codecs
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mod_edge.config import ModelConfig
from mod_edge.data.stream_metrics import Float64Array, token_losses
from mod_edge.errors import ConfigError, DataError
from mod_edge.evaluation.eval_model import ModelSource, limits_of, open_model
from mod_edge.plan.kv_window import KvWindow, Rows
from mod_edge.plan.tokenizer import text_ids
from mod_edge.progress import OnStep, not_shown
from mod_edge.runtime.loaded_model import LoadedModel, StreamLimits
from mod_edge.runtime.stepper import Stepper

LEAST_WINDOW = 2  # one token to predict and one before it


@dataclass(frozen=True)
class TextEvaluation:
    """How well a model predicts a text.

    Attributes:
        model: the model's folder.
        backend: the backend and the reason for it.
        text: the text's file.
        window_tokens: tokens of a window, bos included; the last one may be shorter.
        num_windows: windows of the text.
        num_tokens: tokens of the text.
        num_predicted: tokens with a prediction.
        loss: mean cross entropy of the predicted tokens, in nats.
        warnings: one sentence each.
    """

    model: str
    backend: str
    text: str
    window_tokens: int
    num_windows: int
    num_tokens: int
    num_predicted: int
    loss: float
    warnings: list[str]

    @property
    def perplexity(self) -> float:
        """Exp of the loss; infinite if that overflows."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    def to_json(self) -> dict[str, Any]:
        """One JSON document; infinite values, and NaN from a model that overflows, are null."""
        measures = {"loss": self.loss, "perplexity": self.perplexity}
        return asdict(self) | {
            name: value if math.isfinite(value) else None for name, value in measures.items()
        }


def evaluate_text(
    model: Path,
    text: Path,
    *,
    window_tokens: int,
    backend: str = "auto",
    device: str = "auto",
    profile: str | Path | None = None,
    on_step: OnStep = not_shown,
) -> TextEvaluation:
    """The perplexity of a text.

    Args:
        model: folder of a checkpoint, which PyTorch runs in float32, or of a bundle.
        text: a UTF-8 file; a byte order mark at its start is not text.
        window_tokens: tokens of a window, bos included; at least 2.
        backend: see `open_model`.
        device: see `open_model`.
        profile: see `open_model`.
        on_step: progress callback.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or has no token to predict.
        CheckpointError, BundleError: the model is missing or damaged.
        ConfigError: a window is out of range or does not fit in the bundle's fixed one.
        BackendError: the model cannot run here.
    """
    if window_tokens < LEAST_WINDOW:
        raise ConfigError(f"window_tokens={window_tokens}, wanted at least {LEAST_WINDOW}")
    content = _read_text(text)
    source = open_model(model, backend=backend, device=device, profile=profile)
    ids = text_ids(source.tokenizer, content)
    windows = windows_of(ids, source.config.stream_config.bos_token_id, window_tokens)
    if not windows:
        raise DataError(
            f"{text} has no token to predict: its length in tokens is {len(ids)}; give a longer one"
        )
    limits = _limits(source, max(map(len, windows)))
    losses, warnings = list[float](), list[str]()
    loaded, reason = source.load(limits)
    with loaded:
        for number, window in enumerate(windows):
            on_step(f"window {number + 1} of {len(windows)}", number, len(windows))
            found, warned = _window_losses(loaded, source.config, limits, window)
            losses += found
            warnings += [each for each in warned if each not in warnings]
        return TextEvaluation(
            model=str(model),
            backend=f"{loaded.name}: {reason}",
            text=str(text),
            window_tokens=window_tokens,
            num_windows=len(windows),
            num_tokens=len(ids),
            num_predicted=len(losses),
            loss=math.fsum(losses) / len(losses),
            warnings=warnings,
        )


def windows_of(ids: Sequence[int], bos_token_id: int | None, window_tokens: int) -> list[list[int]]:
    """The windows of a text: each has `window_tokens` ids, the last one may have fewer.

    A last window without a token to predict is left out.

    Args:
        ids: of the whole text.
        bos_token_id: opens each window; None if the model has none.
        window_tokens: at least 2.
    """
    opening = [] if bos_token_id is None else [bos_token_id]
    stride = window_tokens - len(opening)
    windows = [[*opening, *ids[start : start + stride]] for start in range(0, len(ids), stride)]
    return [window for window in windows if len(window) >= LEAST_WINDOW]


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as exc:
        raise DataError(f"{path} cannot be read: {exc.strerror}; check the path") from exc
    if not content:
        raise DataError(f"{path} is empty; give a file with text")
    try:
        return content.decode()
    except UnicodeDecodeError as exc:
        raise DataError(
            f"{path} is not UTF-8: byte {exc.start + 1} is 0x{content[exc.start]:02X}; save it as "
            "UTF-8"
        ) from exc


def _limits(source: ModelSource, longest_window: int) -> StreamLimits:
    """Limits of a stream that holds one window."""
    needed = Rows(longest_window, longest_window)
    fixed, profile = source.capacity, source.profile
    if fixed is not None and not needed.fits(fixed):
        raise ConfigError(
            f"window_tokens={longest_window} is more than the bundle's fixed window, which has "
            f"{fixed.dense} rows ({fixed.mod} in MoD layers, where text takes a row per token "
            f"too); lower --window-tokens to {min(fixed)}, or export the checkpoint with a larger "
            "--window"
        )
    return limits_of(source.config, profile, fixed or needed, profile.frames_per_step.max)


def _window_losses(
    model: LoadedModel, config: ModelConfig, limits: StreamLimits, ids: Sequence[int]
) -> tuple[list[float], list[str]]:
    """Losses of a window's ids after the first, on a stream of its own, and its warnings."""
    with model.open_stream() as stream:
        window = KvWindow(limits.capacity, evict_fraction=1.0)
        stepper = Stepper(stream, config, window, limits.max_step_tokens)
        losses = [loss for part in _losses(stepper, limits, ids) for loss in part.tolist()]
        return losses, stream.warnings


def _losses(stepper: Stepper, limits: StreamLimits, ids: Sequence[int]) -> Iterator[Float64Array]:
    """Cross entropy of ids[1:], in order; a stream has room for a step's logits at few rows."""
    for start in range(0, len(ids) - 1, limits.max_step_tokens):
        piece = ids[start : start + limits.max_step_tokens]
        stepper.feed_text(piece, continues=start > 0)
        predicted = ids[start + 1 : start + 1 + len(piece)]
        for row in range(0, len(predicted), limits.frames_per_step):
            wanted = predicted[row : row + limits.frames_per_step]
            logits = stepper.state.logits(range(row, row + len(wanted)))
            yield token_losses(logits, wanted)
