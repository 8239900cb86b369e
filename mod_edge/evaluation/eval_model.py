"""A model with a window for the clips, and a fresh stream on it as often as one is wanted."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

from mod_edge.data.clips import Clip
from mod_edge.data.dialogue import Text, dialogue_of_clip, pieces_of_dialogue
from mod_edge.errors import ConfigError
from mod_edge.evaluation.frame_memory import FrameMemory
from mod_edge.evaluation.opened_model import OpenedModel
from mod_edge.plan.kv_budget import plan_capacity, rows_of
from mod_edge.plan.kv_window import NO_ROWS, Rows
from mod_edge.plan.protocol import text_minimum
from mod_edge.runtime.runner import Runner, SessionLimits
from mod_edge.runtime.session import Session, SessionOptions

# A reply that is longer than this many times the longest true one is wrong, and may never end.
REPLY_LIMIT = 2
# A model may say this much for every word of the truth before its window rolls.
TEXT_ROOM = 2


class Subject(AbstractContextManager["Subject"]):
    """One runner, used for one stream after the other; closes it.

    Attributes:
        config, tokenizer: the model's.
        limits: what may be asked of the runner.
        backend: what computes, and why that.
    """

    def __init__(self, model: OpenedModel, clips: Sequence[Clip]) -> None:
        """Plan a window that holds any of the clips, and open the runner.

        Raises:
            ConfigError: the window that the model's graphs have does not hold them.
            BackendError: it cannot run here.
        """
        self.config, self.tokenizer = model.config, model.tokenizer
        needs = _Needs(model, clips)
        if model.capacity is not None and not needs.dialogue.fits(model.capacity):
            raise ConfigError(
                f"a clip's dialogue takes {needs.dialogue.dense} tokens ({needs.dialogue.mod} rows "
                f"in MoD layers), the bundle's graphs have a window of {model.capacity.dense} "
                f"({model.capacity.mod}); export the checkpoint with a larger --window, or take "
                "shorter clips"
            )
        capacity = model.capacity or needs.capacity
        self._plan = plan_capacity(model.config, capacity, needs.least_text, dtype=model.dtype)
        self._max_new_tokens = needs.max_new_tokens
        self._model = model
        self.limits = _limits(model, capacity, needs.num_frames)
        runner, reason = model.open_runner(self.limits)
        self._runner = FrameMemory(runner)
        self._session: Session | None = None
        self.backend = f"{runner.name}: {reason}"

    def __exit__(self, *_exc: object) -> None:
        self._runner.close()

    @property
    def warnings(self) -> list[str]:
        """What the user should know of how it runs, one sentence each."""
        return self._runner.warnings

    def runner(self, seed: int) -> Runner:
        """The runner for another stream; `seed` is of what the model draws by chance."""
        if self._session is not None and self._session.window.num_evicted:
            self._runner.close()  # what it keeps of the sink belongs to the stream that rolled
            self._runner = FrameMemory(self._model.open_runner(self.limits)[0])
        self._session = None
        self._model.seed(seed)
        return self._runner

    def session(self, threshold: float, seed: int) -> Session:
        """A session for another stream on that runner, not to be closed."""
        options = SessionOptions(
            threshold=threshold,
            max_new_tokens=self._max_new_tokens,
            frames_per_step=self.limits.frames_per_step,
            max_step_tokens=self.limits.max_step_tokens,
            evict_fraction=self._model.profile.evict_fraction,
        )
        runner = self.runner(seed)
        self._session = Session(runner, self.config, self.tokenizer, self._plan, options)
        return self._session


class _Needs:
    """What the clips ask of a window.

    Attributes:
        num_frames: of the longest clip.
        dialogue: rows of the longest true dialogue, in each geometry.
        max_new_tokens: longest reply to let a model give.
        least_text: see `plan_capacity`.
        capacity: rows to take where any number will do.
    """

    def __init__(self, model: OpenedModel, clips: Sequence[Clip]) -> None:
        config, stream = model.config, model.config.stream_config
        self.dialogue = roomy = NO_ROWS
        longest_reply = self.num_frames = 1
        for clip in clips:
            num_frames = clip.most_frames(stream.frame_fps)
            self.num_frames = max(self.num_frames, num_frames)
            dialogue = dialogue_of_clip(clip, stream.frame_fps, num_frames)
            pieces = pieces_of_dialogue(dialogue, stream, model.tokenizer)
            texts = [piece for piece in pieces if isinstance(piece, Text)]
            num_text = sum(len(text.ids) for text in texts)
            longest_reply = max([longest_reply, *(text.num_learned for text in texts)])
            self.dialogue = _largest(self.dialogue, rows_of(config, num_text, num_frames))
            roomy = _largest(roomy, rows_of(config, TEXT_ROOM * num_text, num_frames))
        self.max_new_tokens = REPLY_LIMIT * longest_reply
        self.least_text = text_minimum(stream, model.tokenizer, self.max_new_tokens)
        self.capacity = roomy.plus(Rows(self.least_text, self.least_text))


def _limits(model: OpenedModel, capacity: Rows, longest: int) -> SessionLimits:
    """As many frames a step as may be: decisions are the same, and fewer steps are faster.

    But no more than the `longest` clip has, whose window may be too small for such a step.
    """
    profile = model.profile
    most_frames = profile.max_step_tokens // (model.config.frame_num_tokens + 1)
    num_frames = min(profile.frames_per_step.max, max(1, most_frames), longest)
    return SessionLimits(capacity, profile.max_step_tokens, num_frames)


def _largest(first: Rows, second: Rows) -> Rows:
    return Rows(max(first.dense, second.dense), max(first.mod, second.mod))
