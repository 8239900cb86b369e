"""What is evaluated: a checkpoint on the reference or a bundle on a backend, loaded once."""

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
from mod_edge.errors import BackendError, ConfigError
from mod_edge.evaluation.frame_memory import FrameMemory, KnownFrames
from mod_edge.native.installed import install_command
from mod_edge.plan.kv_budget import plan_capacity, rows_of
from mod_edge.plan.kv_window import NO_ROWS, Rows
from mod_edge.plan.protocol import text_minimum
from mod_edge.profiles import Profile, load_profile
from mod_edge.runtime.backends import BackendChoice, load_model
from mod_edge.runtime.loaded_model import LoadedModel, StreamLimits, StreamState
from mod_edge.runtime.session import Session, SessionOptions

REFERENCE_PROFILE = "cpu"
# A reply that is longer than this many times the longest true one is wrong, and may never end.
REPLY_LIMIT = 2
# A model may say this much for every word of the truth before its window rolls.
TEXT_ROOM = 2


@dataclass(frozen=True)
class ModelSource:
    """A model that was read and checked, and how to load it.

    Attributes:
        config: its config.
        tokenizer: its tokenizer.
        profile: how it runs.
        capacity: rows of the cache that its graphs have in them; None where they take any.
        dtype: of keys and values.
        load: loads it, and says in some words why on this backend.
        seed: seeds what it draws by chance.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    profile: Profile
    capacity: Rows | None
    dtype: str
    load: Callable[[StreamLimits], tuple[LoadedModel, str]]
    seed: Callable[[int], object] = lambda _seed: None


class EvalModel(AbstractContextManager["EvalModel"]):
    """A model with a window for some clips, and a fresh stream on it as often as one is wanted.

    Attributes:
        config, tokenizer: the model's.
        limits: what may be asked of a stream.
        backend: what computes, and why that.
        warnings: what the user should know of how it runs, one sentence each.
    """

    def __init__(self, source: ModelSource, clips: Sequence[Clip]) -> None:
        """Plan a window that holds any of the clips, and load the model.

        Raises:
            ConfigError: the window that the model's graphs have does not hold them.
            BackendError: it cannot run here.
        """
        config = source.config
        self.config, self.tokenizer = config, source.tokenizer
        needs = _Needs(config, source.tokenizer, clips)
        if source.capacity is not None and not needs.dialogue.fits(source.capacity):
            raise ConfigError(
                f"a clip's dialogue takes {needs.dialogue.dense} tokens ({needs.dialogue.mod} rows "
                f"in MoD layers), the bundle's graphs have a window of {source.capacity.dense} "
                f"({source.capacity.mod}); export the checkpoint with a larger --window, or take "
                "shorter clips"
            )
        capacity = source.capacity or needs.capacity
        self._plan = plan_capacity(config, capacity, needs.least_text, dtype=source.dtype)
        self._max_new_tokens = needs.max_new_tokens
        self._source = source
        self.limits = _limits(config, source.profile, capacity, needs.num_frames)
        self._model, reason = source.load(self.limits)
        self._known_frames = KnownFrames()
        self.warnings: list[str] = []
        self.backend = f"{self._model.name}: {reason}"

    def __exit__(self, *_exc: object) -> None:
        self._model.close()

    def open_stream(self, seed: int) -> StreamState:
        """A stream with an empty cache, to be closed; `seed` is of what the model draws."""
        self._source.seed(seed)
        return FrameMemory(self._model.open_stream(), self._known_frames)

    def open_session(self, threshold: float, seed: int) -> Session:
        """A session on such a stream, to be closed."""
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
        """Keep what a stream warned of, each sentence once."""
        self.warnings += [each for each in stream.warnings if each not in self.warnings]


def open_model(
    path: Path, *, backend: str, device: str, profile: str | Path | None = None
) -> ModelSource:
    """The checkpoint or the bundle at `path`.

    Args:
        path: a checkpoint's or a bundle's folder.
        backend: one of `backends.BACKENDS`: `torch` for a checkpoint, the others for a bundle,
            `auto` for both.
        device: where ONNX Runtime computes, one of `backends.DEVICES`.
        profile: of a bundle, see `Bundle.profile`.

    Raises:
        CheckpointError: no checkpoint and no bundle there, or a damaged checkpoint.
        BundleError: a damaged or partial bundle.
        ConfigError: a backend or device that does not go with it.
        BackendError: the reference cannot run here.
    """
    is_bundle = (path / MANIFEST_FILE).exists()
    if is_bundle and backend == "torch":
        raise ConfigError(
            f"{path} is a bundle, backend torch runs checkpoints; give the folder of the "
            "checkpoint that it was made from"
        )
    choice = BackendChoice("auto" if backend == "torch" else backend, device)
    if is_bundle:
        return _open_bundle(path, choice, profile)
    if choice != BackendChoice() or profile is not None:
        raise ConfigError(
            f"{path} is no bundle, and backend {backend} on device {device} runs bundles; export "
            "it first, or leave --backend, --device and --profile out to evaluate it with PyTorch"
        )
    return _open_checkpoint(path)


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
    try:
        import torch

        from mod_edge.model.checkpoint import Checkpoint
        from mod_edge.runtime.cpu.torch_model import TorchModel
    except ModuleNotFoundError as exc:
        raise BackendError(
            f"{path} is no bundle, and PyTorch, which evaluates checkpoints, is not all here: no "
            f"{exc.name}; install it with: {install_command('export')}, or give a bundle"
        ) from exc
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
    """What the clips ask of a window.

    Attributes:
        num_frames: of the longest clip.
        dialogue: rows of the longest true dialogue, in each geometry.
        max_new_tokens: longest reply to let a model give.
        least_text: see `plan_capacity`.
        capacity: rows to take where any number will do.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, clips: Sequence[Clip]) -> None:
        stream = config.stream_config
        self.dialogue = roomy = NO_ROWS
        longest_reply = self.num_frames = 1
        for clip in clips:
            num_frames = clip.most_frames(stream.frame_fps)
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


def _limits(config: ModelConfig, profile: Profile, capacity: Rows, longest: int) -> StreamLimits:
    """As many frames a step as may be: decisions are the same, and fewer steps are faster.

    But no more than the `longest` clip has, whose window may be too small for such a step.
    """
    most_frames = profile.max_step_tokens // (config.frame_num_tokens + 1)
    num_frames = min(profile.frames_per_step.max, max(1, most_frames), longest)
    return StreamLimits(capacity, profile.max_step_tokens, num_frames)


def _largest(first: Rows, second: Rows) -> Rows:
    return Rows(max(first.dense, second.dense), max(first.mod, second.mod))
