"""Teacher forcing compared with full forward passes of the reference, without a cache."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from mod_edge.config import MoDConfig, read_config
from mod_edge.data.dialogue import Script, Shown, Text, Turn
from mod_edge.data.stream_metrics import TurnOutcome
from mod_edge.evaluation.eval_model import open_model
from mod_edge.evaluation.teacher_forcing import late_frames, summarize, teacher_forced
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.presets import write_random_checkpoint
from mod_edge.plan.layout import FRAME, step_layout
from mod_edge.runtime.cpu.torch_model import TorchModel, TorchStream
from tests.frame_layouts import OTHER_LAYOUTS

pytestmark = pytest.mark.numeric

# Measured 2e-5 (losses are about 8); frames left in MoD layers by a wrong trim give 0.6 to 2.2.
ATOL_LOSS = 1e-4
# Decisions and tokens are compared exactly: none is near a tie. The likeliest token leads the next
# by 0.013 or more, router logits differ by 9.4e-3 or more at the cut; rounding changes them by
# 1e-4. With these thresholds the tiny model is early, on time and late.
THRESHOLDS = (0.0, 0.3, 0.6)


class WholeStreams:
    """Reference implementation: full forward passes over growing streams, without a cache."""

    def __init__(self, model, tokenizer, pixels, threshold):
        self.config = model.config
        self.model = model
        self.threshold = threshold
        self.script = Script(self.config.stream_config, tokenizer)
        self.frames = model(torch.from_numpy(pixels))
        self.pieces = []

    def logits(self, pieces):
        """(T, V) of a whole stream, and its layout."""
        embeds = [
            self.model.model.embed_tokens(torch.tensor(piece.ids, dtype=torch.int64))
            if isinstance(piece, Text)
            else self.frames[piece.frame]
            for piece in pieces
        ]
        lengths = tuple(
            len(piece.ids) if isinstance(piece, Text) else FRAME
            for piece in pieces
            if not isinstance(piece, Text) or piece.ids
        )
        layout = step_layout(lengths, self.config.frame_num_tokens, self.config.num_kept)
        return self.model.full_forward(torch.cat(embeds), layout), layout

    def speaks(self, pieces):
        """Whether the model speaks at each frame of the stream."""
        logits, layout = self.logits(pieces)
        probabilities = logits[layout.last_frame_rows.tolist()].softmax(dim=1)
        silent_id = self.config.stream_config.silent_id
        probabilities[probabilities[:, silent_id] < self.threshold] = 0  # as in the published code
        probabilities[:, 0] += 1e-30  # so that the argmax of zeros is not the silent token
        return (probabilities.argmax(dim=1) != silent_id).tolist()

    def turn(self, turn, following):
        self.pieces += self.script.frames(turn)
        shown = [piece for piece in self.pieces if isinstance(piece, Shown)][-turn.num_frames :]
        spoken = self.speaks(self.pieces)[-turn.num_frames :]
        decided = [
            each for each, piece in zip(spoken, shown, strict=True) if piece.decision is not None
        ]
        difference = None
        if any(decided):
            difference = turn.num_frames - 1 - decided.index(True)
        elif decided:
            difference = self.lateness(turn, following)
        reply = self.script.reply(turn)
        self.pieces.append(reply)
        learned = torch.tensor(reply.ids[-reply.num_learned :])
        logits = self.logits(self.pieces)[0][-reply.num_learned - 1 : -1]
        losses = cross_entropy(logits, learned, reduction="none")
        is_right = (logits.argmax(dim=1) == learned).tolist()
        num_right = [*is_right, False].index(False)
        return TurnOutcome(len(decided), difference, losses.numpy(), num_right)

    def lateness(self, turn, following):
        if following is None or turn.query is not None:
            return 0
        count = min(following.num_frames, turn.num_frames - 1)
        if count == 0:
            return 0
        pieces = list(self.pieces)
        for number in range(count):
            interval = Text(self.config.stream_config.interval_ids)
            pieces += [interval, Shown(following.first_frame + number, None)]
        spoken = self.speaks(pieces)[-count:]
        return -(spoken.index(True) + 1) if any(spoken) else -count


def whole_stream_outcomes(model, tokenizer, dialogue, pixels, threshold):
    with torch.inference_mode():
        whole = WholeStreams(model, tokenizer, pixels, threshold)
        following = [*dialogue.turns[1:], None]
        return [whole.turn(*pair) for pair in zip(dialogue.turns, following, strict=True)]


@pytest.fixture(scope="module")
def reference(tiny_checkpoint):
    return Checkpoint(tiny_checkpoint).load_model()


def outcomes_of(model, clip_frames, threshold=0.0):
    return [
        teacher_forced(model, dialogue, frames.pixels, threshold=threshold, seed=0)
        for dialogue, frames in clip_frames
    ]


@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_outcomes_of_other_frame_layouts_equal_those_of_whole_streams(
    make_eval_model, tiny_checkpoint, clip_frames, tmp_path, layout
):
    write_random_checkpoint(
        OTHER_LAYOUTS[layout](read_config(tiny_checkpoint / "config.json")), tmp_path, seed=1
    )
    source = open_model(tmp_path, backend="auto", device="auto")
    model = Checkpoint(tmp_path).load_model()
    ours = outcomes_of(make_eval_model(source), clip_frames, threshold=0.3)
    theirs = [
        whole_stream_outcomes(model, source.tokenizer, dialogue, frames.pixels, 0.3)
        for dialogue, frames in clip_frames
    ]
    assert decisions_of(ours) == decisions_of(theirs)
    np.testing.assert_allclose(losses_of(ours), losses_of(theirs), atol=ATOL_LOSS)


def decisions_of(outcomes):
    """The values that must be equal."""
    return [
        [(turn.num_decisions, turn.frame_diff, turn.num_right) for turn in turns]
        for turns in outcomes
    ]


def losses_of(outcomes):
    return np.concatenate([turn.losses for turns in outcomes for turn in turns])


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_outcomes_equal_those_of_whole_streams(
    make_eval_model, tiny_source, reference, clip_frames, threshold
):
    ours = outcomes_of(make_eval_model(), clip_frames, threshold)
    theirs = [
        whole_stream_outcomes(reference, tiny_source.tokenizer, dialogue, frames.pixels, threshold)
        for dialogue, frames in clip_frames
    ]
    assert decisions_of(ours) == decisions_of(theirs)
    np.testing.assert_allclose(losses_of(ours), losses_of(theirs), atol=ATOL_LOSS)


SMALL_STEPS = {"frames_per_step": 3, "max_step_tokens": 40}


@pytest.mark.parametrize("limits", [{"frames_per_step": 1}, SMALL_STEPS], ids=["one", "three"])
def test_outcomes_do_not_depend_on_the_step_size(make_eval_model, clip_frames, limits):
    one, other = (
        outcomes_of(make_eval_model(), clip_frames),
        outcomes_of(make_eval_model(**limits), clip_frames),
    )
    assert decisions_of(one) == decisions_of(other)
    np.testing.assert_allclose(losses_of(one), losses_of(other), atol=ATOL_LOSS)


class DenseTrim(TorchStream):
    """Removes frames like the published code: as many rows in MoD layers as in dense ones."""

    def _rows(self, rows, layer):
        return min(rows.dense, len(self._caches[layer].positions))


class DenseTrimModel(TorchModel):
    """A model with such streams."""

    def open_stream(self):
        return DenseTrim(self, self._model)


def test_removing_as_many_rows_in_mod_layers_as_in_dense_ones_is_detected(
    make_eval_model, tiny_source, reference, clip_frames
):
    wrong = replace(tiny_source, load=lambda _limits: (DenseTrimModel(reference), "planted"))
    ours, theirs = (
        outcomes_of(make_eval_model(), clip_frames),
        outcomes_of(make_eval_model(wrong), clip_frames),
    )
    is_late = [[(turn.frame_diff or 0) < 0 for turn in turns] for turns in ours]
    assert is_late == [[False, True, False], [False, False, False]]
    differences = [
        np.abs(right.losses - faulty.losses).max()
        for right, faulty in zip(ours[0], theirs[0], strict=True)
    ]
    assert differences[0] == 0
    assert min(differences[1:]) > 1000 * ATOL_LOSS  # the late turn's reply and all that follows
    np.testing.assert_array_equal(losses_of(ours[1:]), losses_of(theirs[1:]))


def test_a_reply_longer_than_a_step_is_fed_completely(make_eval_model, clip_frames):
    dialogue, frames = clip_frames[0]
    words = " ".join(["the man walks to the left"] * 9)
    long = replace(dialogue, turns=(replace(dialogue.turns[0], reply=words),))
    pair = [(long, frames)]
    once, pieces = (outcomes_of(make_eval_model(**limits), pair) for limits in ({}, SMALL_STEPS))
    assert len(losses_of(once)) > SMALL_STEPS["max_step_tokens"]
    np.testing.assert_allclose(losses_of(once), losses_of(pieces), atol=ATOL_LOSS)


def test_only_captions_have_late_frames():
    caption, question = Turn(3, 4, None, "x"), Turn(3, 4, "what?", "x")
    following = Turn(7, 2, None, "y")
    assert late_frames(caption, following) == range(7, 9)
    assert not late_frames(question, following)
    assert not late_frames(caption, None)


def test_random_selection_repeats_with_its_seed(make_eval_model, write_tiny, clip_frames):
    folder = write_tiny(MoDConfig(selection="random"))
    source = open_model(folder, backend="auto", device="auto")
    first, again = (outcomes_of(make_eval_model(source), clip_frames[:1]) for _ in range(2))
    np.testing.assert_array_equal(losses_of(first), losses_of(again))


def test_a_turn_without_words_counts_only_for_its_moment():
    wordless = TurnOutcome(2, -1, np.log([1.0]), 1)
    wordy = TurnOutcome(2, 0, np.log([4.0, 4.0]), 0)
    result = summarize([[wordless, wordy]], fps=2.0)
    assert result.lm_ppl == pytest.approx(4)
    assert result.lm_correctness == 0
    assert result.time_diff_s == pytest.approx(0.25)


def test_turns_are_averaged_per_clip_and_then_over_clips():
    def turn(difference, num_right, loss):
        return TurnOutcome(2, difference, np.full(2, np.log(loss)), num_right)

    clips = [
        [turn(0, 2, 2.0), turn(1, 1, 4.0)],
        [TurnOutcome(0, None, np.log([8.0, 8.0]), 0)],
        [turn(-4, 0, 6.0)],
    ]
    result = summarize(clips, fps=2.0)
    assert result.lm_ppl == pytest.approx((3 + 8 + 6) / 3)
    assert result.lm_correctness == pytest.approx((0.75 + 0 + 0) / 3)
    assert result.time_diff_s == pytest.approx((0.25 + 2) / 2)
    assert result.fluency == pytest.approx(((1 + 0.25) / 2 + 0.25) / 2)
