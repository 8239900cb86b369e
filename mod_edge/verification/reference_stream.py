"""Records a short stream through the reference, with every kind of step and several rolls."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tokenizers import Tokenizer

from mod_edge.config import ModelConfig
from mod_edge.errors import ConfigError
from mod_edge.model.video_llm import VideoLLM
from mod_edge.plan.kv_budget import KvPlan, plan_capacity, rows_of_frames
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.protocol import Protocol
from mod_edge.plan.targets import Lowering
from mod_edge.runtime.capture.source import Source
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.events import FrameEvent
from mod_edge.runtime.loaded_model import Int64Array
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import Session
from mod_edge.verification.recording import AFTER_ROLL, EvictCall, StreamTrace
from mod_edge.verification.reference_recording import Recorder
from mod_edge.verification.stream_check import replay

INSTRUCTION = "Please narrate the video in real time."
QUESTION = "What is happening?"
MIN_FRAMES, MAX_FRAMES = 16, 120
MIN_ROLLS = 3
FRAMES_PER_STEP = 3
MAX_NEW_TOKENS = 8
WINDOW_FRAMES = 6  # besides the text: few, so that the window rolls soon
MAX_STEP_TOKENS = 64
EVICT_FRACTION = 0.125
# A question falls between the second and the third frame of a batch: the third is a step alone.
FIRST_QUESTION_FRAME, FRAMES_PER_QUESTION = 4.5, 9
WANTED_KINDS = {"first", "prefill", "one frame", "many frames"}


def record_stream(
    model: VideoLLM, tokenizer: Tokenizer, source: Source, lowering: Lowering
) -> tuple[Recorder, StreamTrace]:
    """Run `source` through the reference until every kind of step and enough rolls are recorded.

    Args:
        model: the reference in float32.
        tokenizer: the checkpoint's.
        source: at most `MAX_FRAMES` frames are read.
        lowering: the bundle's, whose cache may be smaller than the planned window.

    Returns:
        The recorded steps by kind, and the trace of all calls.

    Raises:
        ConfigError: the video ended before `MIN_ROLLS` rolls, or the bundle's cache is too small.
    """
    config = model.config
    fps = config.stream_config.frame_fps
    threshold = config.stream_config.frame_token_interval_threshold
    protocol = Protocol(config.stream_config, tokenizer, threshold)
    options = SessionOptions(
        threshold=threshold,
        max_new_tokens=MAX_NEW_TOKENS,
        frames_per_step=FRAMES_PER_STEP,
        max_step_tokens=max(
            MAX_STEP_TOKENS, protocol.longest_prefix() + FRAMES_PER_STEP * config.frame_stride
        ),
        evict_fraction=EVICT_FRACTION,
    )
    plan = _small_plan(config, protocol, lowering, options)
    recorder = Recorder(model)
    queries = [Query(INSTRUCTION)]
    queries += [
        Query(QUESTION, (FIRST_QUESTION_FRAME + first) / fps)
        for first in range(0, MAX_FRAMES, FRAMES_PER_QUESTION)
    ]
    num_frames = 0
    with Session(recorder, config, tokenizer, plan, options) as session:
        for event in session.stream(source, queries):
            num_frames += isinstance(event, FrameEvent)
            if num_frames == MAX_FRAMES or (num_frames >= MIN_FRAMES and _is_enough(recorder)):
                break
    trace = StreamTrace(
        calls=tuple(recorder.calls),
        capacity=plan.capacity,
        max_step_tokens=options.max_step_tokens,
        frames_per_step=options.frames_per_step,
        threshold=options.threshold,
    )
    if trace.count(EvictCall) < MIN_ROLLS:
        raise ConfigError(
            f"the video has {num_frames} frames at {fps:g} frames/s, in which the cache rolled "
            f"{trace.count(EvictCall)} times, wanted {MIN_ROLLS}; give a longer video, or omit "
            "--source to use a generated one"
        )
    return recorder, trace


def follow_stream(
    model: VideoLLM, trace: StreamTrace, selections: Sequence[Mapping[int, Int64Array]]
) -> StreamTrace:
    """The trace with the reference's answers when it uses these selections, step by step."""
    recorder = Recorder(model, selections)
    with recorder:
        replay(trace, recorder, model.config)
    return replace(trace, calls=tuple(recorder.calls))


def _small_plan(
    config: ModelConfig, protocol: Protocol, lowering: Lowering, options: SessionOptions
) -> KvPlan:
    """The smallest window that the session accepts, so that it rolls often."""
    prompts = len(protocol.query_ids(INSTRUCTION)) + len(protocol.query_ids(QUESTION))
    text = len(protocol.opening_ids()) + prompts + protocol.longest_prefix()
    text += options.max_new_tokens
    wanted = rows_of_frames(config, WINDOW_FRAMES, num_before=text + 1)
    largest = lowering.capacity or wanted
    capacity = Rows(min(wanted.dense, largest.dense), min(wanted.mod, largest.mod))
    return plan_capacity(config, capacity, text, dtype="float32")


def _is_enough(recorder: Recorder) -> bool:
    num_rolls = sum(isinstance(call, EvictCall) for call in recorder.calls)
    kinds = {kind.removesuffix(AFTER_ROLL) for kind in recorder.steps}
    has_frames_after_roll = any(
        kind.endswith(AFTER_ROLL) and step.layout.num_frames
        for kind, step in recorder.steps.items()
    )
    return num_rolls >= MIN_ROLLS and has_frames_after_roll and kinds >= WANTED_KINDS
