"""The evaluated model: a checkpoint on PyTorch or a bundle on a backend, loaded once."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from mod_edge.bundle.bundle import open_bundle
from mod_edge.bundle.manifest import MANIFEST_FILE
from mod_edge.config import ModelConfig
from mod_edge.data.clips import Clip
from mod_edge.data.dialogue import Text, dialogue_of_clip, pieces_of_dialogue
from mod_edge.errors import ConfigError
from mod_edge.evaluation.clip_frames import num_clip_frames
from mod_edge.evaluation.frame_memory import FrameMemory, KnownFrames
from mod_edge.model.checkpoint_folder import read_checkpoint_config
from mod_edge.native.package_faults import explained_imports
from mod_edge.plan.kv_budget import most_frames_per_step, plan_capacity, rows_of
from mod_edge.plan.kv_window import NO_ROWS, Rows
from mod_edge.plan.protocol import text_minimum
from mod_edge.profiles import Profile, load_profile
from mod_edge.runtime.backends import BackendChoice, load_model
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.loaded_model import LoadedModel, StreamLimits, StreamState
from mod_edge.runtime.session import Session

REFERENCE_PROFILE = "cpu"
# A reply longer than this many times the longest true one is wrong, and may never end.
REPLY_LIMIT = 2
# A model may say this many times the text of the true dialogue before its window rolls.
TEXT_ROOM = 2


@dataclass(frozen=True)
class ModelSource:
    """A model that was read and checked, and how to load it.

    Attributes:
        config: its config.
        tokenizer: its tokenizer.
        profile: its profile.
        capacity: rows of the cache if its graphs fix them; None if they are dynamic.
        dtype: of keys and values.
        load: loads it, and returns the reason for its backend.
        seed: seeds its random numbers.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    profile: Profile
    capacity: Rows | None
    dtype: str
    load: Callable[[StreamLimits], tuple[LoadedModel, str]]
    seed: Callable[[int], object] = lambda _seed: None


class EvalModel(AbstractContextManager["EvalModel"]):
    """A loaded model with a window that holds the longest clip; opens any number of streams.

    Attributes:
        config, tokenizer: the model's.
        limits: the limits of a stream.
        backend: the backend and the reason for it.
        warnings: warnings about how it runs, one sentence each.
    """

    def __init__(self, source: ModelSource, clips: Sequence[Clip]) -> None:
        """Plan a window that holds each of the clips, and load the model.

        Raises:
            SourceError: a clip's video cannot be read.
            ConfigError: the graphs' fixed window is too small for a clip.
            BackendError: the model cannot run here.
        """
        config = source.config
        self.config, self.tokenizer = config, source.tokenizer
        needs = _Needs(config, source.tokenizer, clips)
        if source.capacity is not None and not needs.dialogue.fits(source.capacity):
            raise ConfigError(
                f"a clip's dialogue needs {needs.dialogue.dense} tokens ({needs.dialogue.mod} rows "
                f"in MoD layers), the bundle has a fixed window of {source.capacity.dense} "
                f"({source.capacity.mod}); export the checkpoint with a larger --window, or use "
                "shorter clips"
            )
        capacity = source.capacity or needs.capacity
        self._plan = plan_capacity(config, capacity, needs.least_text, dtype=source.dtype)
        self._max_new_tokens = needs.max_new_tokens
        self._source = source
        self.limits = limits_of(config, source.profile, capacity, needs.num_frames)
        self._model, reason = source.load(self.limits)
        self._known_frames = KnownFrames()
        self.warnings: list[str] = []
        self.backend = f"{self._model.name}: {reason}"

    def __exit__(self, *_exc: object) -> None:
        self._model.close()

    def open_stream(self, seed: int) -> StreamState:
        """A new stream, which the caller closes; `seed` seeds the model's random numbers."""
        self._source.seed(seed)
        return FrameMemory(self._model.open_stream(), self._known_frames)

    def open_session(self, threshold: float, seed: int) -> Session:
        """A session on a new stream; the caller closes it."""
        options = SessionOptions(
            threshold=threshold,
            max_new_tokens=self._max_new_tokens,
            frames_per_step=self.limits.frames_per_step,
            max_step_tokens=self.limits.max_step_tokens,
            evict_fraction=self._source.profile.evict_fraction,
        )
        stream = self.open_stream(seed)
        return Session(stream, self.config, self.tokenizer, self._plan, options)

    def note_warnings(self, stream: StreamState) -> None:
        """Add a stream's warnings, each sentence once."""
        self.warnings += [each for each in stream.warnings if each not in self.warnings]


def open_model(
    path: Path, *, backend: str, device: str, profile: str | Path | None = None
) -> ModelSource:
    """The checkpoint or the bundle at `path`.

    Args:
        path: the folder of a checkpoint or a bundle.
        backend: one of `backends.BACKENDS`: `torch` for a checkpoint, the others for a bundle,
            `auto` for both.
        device: ONNX Runtime's device, one of `backends.DEVICES`.
        profile: of a bundle, see `Bundle.profile`.

    Raises:
        CheckpointError: `path` is neither a checkpoint nor a bundle, or a damaged checkpoint.
        BundleError: a damaged or partial bundle.
        ConfigError: the backend or device does not fit the model.
        BackendError: PyTorch is not installed, or does not load.
    """
    is_bundle = (path / MANIFEST_FILE).exists()
    if is_bundle and backend == "torch":
        raise ConfigError(
            f"{path} is a bundle, and backend torch runs checkpoints only; give the folder of the "
            "checkpoint that it was exported from"
        )
    choice = BackendChoice("auto" if backend == "torch" else backend, device)
    if is_bundle:
        return _open_bundle(path, choice, profile)
    if choice != BackendChoice() or profile is not None:
        raise ConfigError(
            f"{path} is not a bundle, and backend {backend} on device {device} runs bundles only; "
            "export it first, or omit --backend, --device and --profile to evaluate it with PyTorch"
        )
    return _open_checkpoint(path)


def limits_of(config: ModelConfig, profile: Profile, capacity: Rows, longest: int) -> StreamLimits:
    """Limits with the most frames per step: decisions are the same, and fewer steps are faster.

    Args:
        config: the model's.
        profile: the model's.
        capacity: rows of the cache.
        longest: frames of the longest clip; the window may be too small for a step of more.
    """
    most_frames = most_frames_per_step(config, profile.max_step_tokens)
    num_frames = min(profile.frames_per_step.max, max(1, most_frames), longest)
    return StreamLimits(capacity, profile.max_step_tokens, num_frames)


def _open_bundle(path: Path, choice: BackendChoice, profile: str | Path | None) -> ModelSource:
    bundle = open_bundle(path)
    bundle.require_whole()
    return ModelSource(
        bundle.config,
        bundle.tokenizer,
        bundle.profile(profile),
        bundle.lowering.capacity,
        bundle.lowering.dtype,
        lambda limits: load_model(bundle, limits, choice),
    )


def _open_checkpoint(path: Path) -> ModelSource:
    read_checkpoint_config(path)  # first: PyTorch does not help with a mistyped path
    with explained_imports(f"{path} is not a bundle, and a checkpoint needs PyTorch"):
        import torch

        from mod_edge.model.checkpoint import Checkpoint
        from mod_edge.runtime.cpu.torch_model import TorchModel

    checkpoint = Checkpoint(path)
    model = checkpoint.load_model()
    return ModelSource(
        checkpoint.config,
        checkpoint.tokenizer,
        load_profile(REFERENCE_PROFILE),
        None,
        "float32",
        lambda _limits: (TorchModel(model), "for a checkpoint"),
        torch.manual_seed,
    )


class _Needs:
    """The window that the clips need.

    Attributes:
        num_frames: of the longest clip.
        dialogue: rows of the longest true dialogue, in each geometry.
        max_new_tokens: limit of a reply's length.
        least_text: see `plan_capacity`.
        capacity: rows of a window of dynamic size.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, clips: Sequence[Clip]) -> None:
        stream = config.stream_config
        self.dialogue = roomy = NO_ROWS
        longest_reply = self.num_frames = 1
        for clip in clips:
            num_frames = num_clip_frames(clip, stream.frame_fps)
            self.num_frames = max(self.num_frames, num_frames)
            dialogue = dialogue_of_clip(clip, stream.frame_fps, num_frames)
            pieces = pieces_of_dialogue(dialogue, stream, tokenizer)
            texts = [piece for piece in pieces if isinstance(piece, Text)]
            num_text = sum(len(text.ids) for text in texts)
            longest_reply = max([longest_reply, *(text.num_learned for text in texts)])
            self.dialogue = _largest(self.dialogue, rows_of(config, num_text, num_frames))
            roomy = _largest(roomy, rows_of(config, TEXT_ROOM * num_text, num_frames))
        self.max_new_tokens = REPLY_LIMIT * longest_reply
        self.least_text = text_minimum(stream, tokenizer, self.max_new_tokens)
        self.capacity = roomy.plus(Rows(self.least_text, self.least_text))


def _largest(first: Rows, second: Rows) -> Rows:
    return Rows(max(first.dense, second.dense), max(first.mod, second.mod))
