"""The streaming protocol: exact ids at every turn, the decision rule, whole scripted streams.

Expected ids are written here as strings and encoded by the tokenizer, and again as a plain loop
like VideoLLM-online's demo (`LiveInfer`), which shares no code with the session.
"""

from collections import deque
from dataclasses import replace

import numpy as np
import pytest

from mod_edge.model.presets import preset_config
from mod_edge.plan.kv_budget import KvPlan
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.layout import FRAME
from mod_edge.plan.protocol import Decision, Protocol
from mod_edge.plan.tokenizer import prepared, preset_tokenizer
from mod_edge.runtime.capture.source import Frame
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.events import FrameEvent, ReplyEvent
from mod_edge.runtime.loaded_model import StreamState
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import Session
from tests.byte_fallback import byte_fallback_tokenizer
from tests.frame_layouts import without_interval

CONFIG = preset_config("tiny")
STREAM = CONFIG.stream_config
TOKENIZER = preset_tokenizer(CONFIG.text_config.vocab_size)
BOS, EOS = STREAM.bos_token_id, STREAM.eos_token_id
SILENT, SPEAK = STREAM.frame_token_interval_id, STREAM.stream_end_id
WITHOUT_INTERVAL = without_interval(CONFIG).stream_config
WORD, OTHER = 300, 301  # two tokens without a meaning in the protocol
QUESTION = "What happens?"


def encode(text):
    return TOKENIZER.encode(text, add_special_tokens=False).ids


@pytest.fixture
def protocol():
    return Protocol(STREAM, TOKENIZER, threshold=0.725)


# ---- ids ----


def test_the_stream_opens_with_bos_the_system_prompt_and_a_bracket(protocol):
    wanted = [BOS, *encode(STREAM.system_prompt + "\n\n[")]
    assert protocol.opening_ids() == wanted
    assert protocol.frame_prefix() == wanted


def test_the_interval_alone_stands_between_two_frames(protocol):
    protocol.note_frame()
    assert protocol.frame_prefix() == encode(",") == [SILENT]


def test_without_an_interval_nothing_stands_between_two_frames_and_a_reply_is_framed_as_ever():
    protocol = Protocol(WITHOUT_INTERVAL, TOKENIZER, threshold=0.725)
    assert protocol.frame_prefix() == [BOS, *encode(STREAM.system_prompt + "\n\n[")]
    protocol.note_frame()
    assert protocol.frame_prefix() == []
    assert protocol.response_prompt(None) == encode("]\nAssistant:")
    protocol.note_reply([EOS])
    assert protocol.frame_prefix() == [EOS, *encode("\n[")]
    protocol.note_frame()
    assert protocol.frame_prefix() == []


def test_speaking_closes_the_bracket_and_prompts_the_assistant(protocol):
    protocol.note_frame()
    wanted = encode("]\nAssistant:")
    assert protocol.response_prompt(None) == wanted
    assert wanted[0] == SPEAK  # the prompt begins with the predicted token


def test_a_query_between_frames_closes_the_bracket(protocol):
    protocol.note_frame()
    assert protocol.response_prompt(QUESTION) == encode(f"]\nUser: {QUESTION}\nAssistant:")
    assert protocol.query_ids(QUESTION) == protocol.response_prompt(QUESTION)


def test_after_a_reply_its_end_and_a_new_bracket_precede_the_next_frame(protocol):
    protocol.note_frame()
    protocol.note_reply([EOS])
    assert protocol.frame_prefix() == [EOS, *encode("\n[")]
    protocol.note_frame()
    assert protocol.frame_prefix() == [SILENT]


def test_a_query_right_after_a_reply_has_no_bracket_to_close(protocol):
    protocol.note_frame()
    protocol.note_reply([EOS])
    wanted = [EOS, *encode(f"\nUser: {QUESTION}\nAssistant:")]
    assert protocol.response_prompt(QUESTION) == wanted


def test_a_cut_reply_is_closed_after_its_last_token(protocol):
    protocol.note_frame()
    protocol.note_reply([WORD, EOS])
    assert protocol.frame_prefix() == [WORD, EOS, *encode("\n[")]
    wanted = [WORD, EOS, *encode(f"\nUser: {QUESTION}\nAssistant:")]
    assert protocol.response_prompt(QUESTION) == wanted


@pytest.mark.parametrize("tokenizer", [TOKENIZER, prepared(byte_fallback_tokenizer())])
def test_no_prefix_of_a_frame_is_longer_than_after_a_cut_reply(tokenizer):
    protocol = Protocol(STREAM, tokenizer, threshold=0.725)
    protocol.note_frame()
    protocol.note_reply([WORD, EOS])
    assert len(protocol.frame_prefix()) == protocol.longest_prefix()


def test_reading_ids_does_not_change_the_state(protocol):
    protocol.note_frame()
    protocol.note_reply([EOS])
    for _ in range(2):
        assert protocol.response_prompt(None) == [EOS, *encode("\nAssistant:")]
        assert protocol.frame_prefix() == [EOS, *encode("\n[")]


@pytest.mark.parametrize("query", ["a\nb", "{query}", "100 %", "Was läuft?", "]\nAssistant: no"])
def test_any_query_is_fed_unchanged(protocol, query):
    protocol.note_frame()
    assert protocol.response_prompt(query) == encode("]\nUser: " + query + "\nAssistant:")


@pytest.mark.parametrize("written", ["<|eot_id|>", "a<|eot_id|><|begin_of_text|>b"])
def test_control_tokens_in_written_text_are_fed_as_text(written):
    protocol = Protocol(replace(STREAM, system_prompt=written), TOKENIZER, threshold=0.725)
    opening = protocol.opening_ids()
    assert opening[0] == BOS
    assert TOKENIZER.decode(opening[1:]) == f"{written}\n\n["
    protocol.note_frame()
    ids = protocol.response_prompt(written)
    assert TOKENIZER.decode(ids) == f"]\nUser: {written}\nAssistant:"
    assert protocol.query_ids(written) == ids
    assert not {BOS, EOS} & {*opening[1:], *ids}


# ---- the decision ----


def published_decision(logits, threshold):
    """Step 5 of the published loop, in float64; it crashes on a third token: "undecided" here."""
    exponentials = np.exp(np.float64(logits) - np.float64(logits).max())
    probabilities = exponentials / exponentials.sum()
    if probabilities[SILENT] < threshold:
        probabilities[SILENT] = 0
    chosen = int(probabilities.argmax())
    return {SILENT: Decision.SILENT, SPEAK: Decision.SPEAK}.get(chosen, Decision.UNDECIDED)


def logits_of(**probabilities):
    """Logits with these probabilities of the named tokens; all others share the rest."""
    ids = {"silent": SILENT, "speak": SPEAK, "word": WORD}
    size = CONFIG.text_config.vocab_size
    rest = (1 - sum(probabilities.values())) / (size - len(probabilities))
    values = np.full(size, max(rest, 1e-30))
    for name, probability in probabilities.items():
        values[ids[name]] = probability
    return np.log(values).astype(np.float32)


@pytest.mark.parametrize(
    ("threshold", "probabilities", "wanted"),
    [
        (0.725, {"silent": 0.73, "speak": 0.2}, Decision.SILENT),
        (0.725, {"silent": 0.72, "speak": 0.2}, Decision.SPEAK),
        (0.725, {"silent": 0.72, "speak": 0.1, "word": 0.15}, Decision.UNDECIDED),
        (0.725, {"silent": 0.1, "speak": 0.6, "word": 0.2}, Decision.SPEAK),
        (0.725, {"silent": 0.1, "speak": 0.2, "word": 0.6}, Decision.UNDECIDED),
        (0.2, {"silent": 0.3, "speak": 0.6}, Decision.SPEAK),  # above it, but not the most likely
        (0.0, {"silent": 0.02, "speak": 0.01}, Decision.SILENT),
        (1.0, {"silent": 0.99, "speak": 0.005}, Decision.SPEAK),
    ],
)
def test_silence_below_the_threshold_does_not_count(threshold, probabilities, wanted):
    logits = logits_of(**probabilities)
    assert Protocol(STREAM, TOKENIZER, threshold).decide(logits) == wanted
    assert published_decision(logits, threshold) == wanted


@pytest.mark.parametrize(
    ("probabilities", "wanted"),
    [
        ({EOS: 0.73, SPEAK: 0.2}, Decision.SILENT),
        ({EOS: 0.72, SPEAK: 0.2}, Decision.SPEAK),
        ({SILENT: 0.9, SPEAK: 0.05}, Decision.UNDECIDED),  # a comma is a token like any other
    ],
)
def test_without_an_interval_the_end_token_is_silence(probabilities, wanted):
    logits = np.full(CONFIG.text_config.vocab_size, -30, np.float32)
    for token_id, probability in probabilities.items():
        logits[token_id] = np.log(probability)
    logits[WORD] = np.log(1 - sum(probabilities.values()))
    assert Protocol(WITHOUT_INTERVAL, TOKENIZER, 0.725).decide(logits) == wanted


def test_silence_at_the_threshold_counts():
    size = CONFIG.text_config.vocab_size
    logits = np.full(size, -np.inf, np.float32)
    logits[[SILENT, SPEAK]] = np.log(np.float32(3)), 0  # three quarters and one quarter
    exactly = 1 / (1 + np.exp(logits[SPEAK] - logits[SILENT], dtype=np.float64))
    for threshold, wanted in (
        (exactly - 1e-7, Decision.SILENT),
        (exactly + 1e-7, Decision.SPEAK),
    ):
        assert Protocol(STREAM, TOKENIZER, threshold).decide(logits) == wanted
    logits[SPEAK] = -np.inf  # a probability of one, exactly
    assert Protocol(STREAM, TOKENIZER, 1.0).decide(logits) == Decision.SILENT


def test_random_logits_decide_like_the_published_rule():
    generator = np.random.default_rng(3)
    seen = set()
    for _ in range(600):
        logits = generator.normal(size=CONFIG.text_config.vocab_size).astype(np.float32)
        logits[[SILENT, SPEAK]] += generator.uniform(0, 12, 2)
        threshold = float(generator.choice([0.0, 0.3, 0.725, 0.9]))
        decision = Protocol(STREAM, TOKENIZER, threshold).decide(logits)
        assert decision == published_decision(logits, threshold)
        seen.add((decision, threshold > 0))
    assert len(seen) == 6


def test_decide_does_not_change_the_logits():
    logits = logits_of(silent=0.5, speak=0.4)
    before = logits.copy()
    Protocol(STREAM, TOKENIZER, 0.725).decide(logits)
    np.testing.assert_array_equal(logits, before)


# ---- whole streams ----


class ScriptedStream(StreamState):
    """Replies by a script and records the stream, including frame tokens.

    Args:
        decisions: the most likely token at each frame.
        replies: the tokens of each reply.
    """

    name = "script"
    kept = {}  # noqa: RUF012 - never written
    prompt = encode("\nAssistant:")[-2:]  # two tokens, whatever precedes them

    def __init__(self, decisions, replies):
        self.decisions, self.replies = decisions, replies
        self.stream = []

    def encode(self, frames):
        numbers = frames.reshape(len(frames), -1).mean(axis=1)  # each picture is of one grey
        shape = (len(frames), CONFIG.frame_num_tokens, CONFIG.text_config.hidden_size)
        return np.broadcast_to(numbers[:, None, None], shape).astype(np.float32)

    def step(self, layout, token_ids, frame_embeds, *, position, past):
        assert past.dense == position, "nothing is evicted in these streams"
        del self.stream[position:]  # frames that were taken back
        rows = [None] * layout.num_tokens
        for row, token_id in zip(layout.text_index, token_ids, strict=True):
            rows[row] = token_id
        for number, frame_rows in enumerate(layout.frame_index):
            for place, row in enumerate(frame_rows):
                rows[row] = (FRAME, round(float(frame_embeds[number, place, 0])), place)
        self.first, self.stream = len(self.stream), self.stream + rows

    def logits(self, rows):
        logits = np.zeros((len(rows), CONFIG.text_config.vocab_size), np.float32)
        for row, values in zip(rows, logits, strict=True):
            values[self.next_token(self.stream[: self.first + row + 1])] = 50
        return logits

    def next_token(self, stream):
        if isinstance(stream[-1], tuple):
            _, frame, place = stream[-1]
            assert place == CONFIG.frame_num_tokens - 1, "decisions are read at the last token"
            return self.decisions[frame]
        ends = [n for n in range(len(stream)) if stream[n - 2 : n] == self.prompt]
        ends += [len(stream)] if stream[-2:] == self.prompt else []
        return self.replies[len(ends) - 1][len(stream) - ends[-1]]

    def evict(self, eviction):
        raise AssertionError(eviction)


class Pictures:
    """A source of grey frames at these times."""

    is_live = False
    is_ready = True
    num_dropped = 0
    warnings = ()

    def __init__(self, times):
        self.times = times

    def __iter__(self):
        for number, time_s in enumerate(self.times):
            yield Frame(number, time_s, np.full((64, 64, 3), number, np.uint8))


def session_of(state, *, frames_per_step, max_new_tokens, tokenizer=TOKENIZER, stream=STREAM):
    rows = Rows(100_000, 100_000)
    options = SessionOptions(0.725, max_new_tokens, frames_per_step, 256, 0.125)
    config = replace(CONFIG, stream_config=stream)
    return Session(state, config, tokenizer, KvPlan(rows, 0, 0.0, 0.0), options)


def published_stream(times, decisions, replies, queries, *, max_new_tokens):
    """The ids and frames that the published loop feeds, as a flat list.

    With our two rules: a third token at a frame is silence, and a query or a bracket after a reply
    is preceded by the reply's end token (the demo drops it before a query).
    """
    frames, waiting = deque(enumerate(times)), deque(sorted(queries, key=lambda each: each.time_s))
    replies = iter(replies)
    fed, last, is_open = [], None, False

    def respond(query):
        nonlocal last, is_open
        text = "]" if is_open else ""
        text += "" if query is None else f"\nUser: {query.text}"
        fed.extend(
            encode(text + "\nAssistant:") if is_open else [*last, *encode(text + "\nAssistant:")]
        )
        for count, token_id in enumerate(next(replies), start=1):
            if token_id == EOS:
                last = [EOS]
                break
            if count == max_new_tokens:
                last = [token_id, EOS]
                break
            fed.append(token_id)
        is_open = False

    while frames:
        if last is not None and waiting and waiting[0].time_s < frames[0][1]:
            respond(waiting.popleft())
            continue
        number, time_s = frames.popleft()
        if last is None:
            last = [BOS, *encode(STREAM.system_prompt + "\n\n[")]
        elif not is_open:
            last = [*last, *encode("\n[")]
        fed.extend(last)
        fed.extend((FRAME, number, place) for place in range(CONFIG.frame_num_tokens))
        is_open, last = True, [SILENT]
        if waiting and waiting[0].time_s <= time_s:
            respond(waiting.popleft())
        elif decisions[number] == SPEAK:
            respond(None)
    while waiting and waiting[0].time_s <= times[-1] + 1 / STREAM.frame_fps:
        respond(waiting.popleft())
    return fed


def compare_with_published(times, decisions, replies, queries, *, frames_per_step):
    limit = 4
    state = ScriptedStream(decisions, replies)
    session = session_of(state, frames_per_step=frames_per_step, max_new_tokens=limit)
    events = list(session.stream(Pictures(times), queries))
    wanted = published_stream(times, decisions, replies, queries, max_new_tokens=limit)
    assert state.stream == wanted
    return events


def test_a_scripted_stream_feeds_the_same_as_the_published_loop():
    """Silence, speech, a cut reply, an empty one, a standing and two later queries."""
    times = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    decisions = [SILENT, SILENT, SPEAK, OTHER, SPEAK, SILENT, SILENT]
    replies = [[WORD, EOS], [WORD, WORD, OTHER, OTHER, WORD], [OTHER, EOS], [EOS], [WORD, EOS]]
    queries = [Query("Please narrate."), Query(QUESTION, 1.2), Query("And now?", 2.5)]
    events = compare_with_published(times, decisions, replies, queries, frames_per_step=1)
    assert [event.decision.value for event in events if isinstance(event, FrameEvent)] == [
        "asked",
        "silent",
        "speak",
        "undecided",
        "speak",
        "asked",
        "silent",
    ]
    shown = [event for event in events if isinstance(event, ReplyEvent)]
    assert [(event.time_s, event.query, event.token_ids, event.is_cut) for event in shown] == [
        (0.0, "Please narrate.", [WORD], False),
        (1.0, None, [WORD, WORD, OTHER, OTHER], True),
        (1.0, QUESTION, [OTHER], False),
        (2.0, None, [], False),
        (2.5, "And now?", [WORD], False),
    ]


def test_a_stream_written_out_token_by_token():
    state = ScriptedStream([SILENT, SPEAK, SILENT], [[WORD, EOS], [OTHER, EOS]])
    session = session_of(state, frames_per_step=1, max_new_tokens=9)
    list(session.stream(Pictures([0.0, 0.5, 1.0]), [Query("Please narrate.")]))
    frames = [[(FRAME, n, place) for place in range(CONFIG.frame_num_tokens)] for n in range(3)]
    assert state.stream == [
        *[BOS, *encode(f"{STREAM.system_prompt}\n\n["), *frames[0]],
        *[*encode("]\nUser: Please narrate.\nAssistant:"), WORD],
        *[EOS, *encode("\n["), *frames[1]],
        *[*encode("]\nAssistant:"), OTHER],
        *[EOS, *encode("\n["), *frames[2]],
    ]


def test_a_further_stop_token_ends_a_reply_and_the_end_token_is_fed_for_it():
    state = ScriptedStream([SPEAK, SILENT], [[WORD, OTHER, WORD]])
    stream = replace(STREAM, stop_token_ids=(OTHER,))
    session = session_of(state, frames_per_step=1, max_new_tokens=9, stream=stream)
    events = list(session.stream(Pictures([0.0, 0.5])))
    (reply,) = [event for event in events if isinstance(event, ReplyEvent)]
    assert (reply.token_ids, reply.is_cut) == ([WORD], False)
    prompt = encode("]\nAssistant:")
    after = [*prompt, WORD, EOS, *encode("\n[")]
    start = state.stream.index(prompt[0], len(encode(STREAM.system_prompt)))
    assert state.stream[start : start + len(after)] == after


@pytest.mark.parametrize("frames_per_step", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(12))
def test_random_scripts_feed_the_same_as_the_published_loop(seed, frames_per_step):
    generator = np.random.default_rng(seed)
    times = [number / STREAM.frame_fps for number in range(12)]
    decisions = generator.choice([SILENT, SILENT, SPEAK, OTHER], len(times)).tolist()
    replies = [
        generator.choice([WORD, OTHER, EOS], 4, p=[0.4, 0.3, 0.3]).tolist() for _ in range(30)
    ]
    asked_s = generator.choice([0.0, 0.3, 1.0, 1.1, 1.1, 2.5, 3.9, 5.5, 5.7], 4)
    queries = [Query(f"Question {number}?", float(at)) for number, at in enumerate(asked_s)]
    compare_with_published(times, decisions, replies, queries, frames_per_step=frames_per_step)


def test_a_query_between_two_frames_of_one_step_is_answered_between_them():
    times, decisions = [0.0, 0.5, 1.0, 1.5], [SILENT] * 4
    queries = [Query(QUESTION, 0.7)]
    events = compare_with_published(times, decisions, [[WORD, EOS]], queries, frames_per_step=4)
    (reply,) = [event for event in events if isinstance(event, ReplyEvent)]
    assert reply.time_s == 0.5


def test_other_protocol_strings_are_read_from_the_config():
    stream = replace(STREAM, system_prompt="Watch.", stream_end="]")
    protocol = Protocol(stream, TOKENIZER, 0.5)
    assert protocol.opening_ids() == [BOS, *encode("Watch.\n\n[")]
    protocol.note_frame()
    assert protocol.response_prompt(None) == encode("]\nAssistant:")
