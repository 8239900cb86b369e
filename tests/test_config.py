"""config.json: read back as written, rejected with every fault named."""

import json
from dataclasses import asdict, replace

import pytest

from mod_edge.config import (
    BASELINES,
    ROUTER_SCALINGS,
    ChatTemplate,
    MoDConfig,
    RopeScaling,
    config_from_dict,
    config_to_dict,
    read_config,
    write_config,
)
from mod_edge.errors import ConfigError
from mod_edge.plan.chat import TEMPLATES
from tests.frame_layouts import one_token, without_interval

LLAMA3 = RopeScaling(32.0, 1.0, 4.0, 8192)
LINEAR = RopeScaling(2.0, rope_type="linear")


@pytest.fixture
def document(make_config):
    """The odd config's config.json, parsed, for a test to change."""
    return json.loads(json.dumps(config_to_dict(make_config())))


def message_of(document):
    with pytest.raises(ConfigError) as caught:
        config_from_dict(document, "my/config.json")
    message = str(caught.value)
    assert message.startswith("my/config.json: ")
    return message


@pytest.mark.parametrize(
    "mod",
    [
        None,
        MoDConfig("all_deep", 0.3, "uniform", "delta"),
        MoDConfig("all", selection="random"),
        MoDConfig("early_exit", exit_layer=3),
        MoDConfig("layer_skip"),
    ],
)
@pytest.mark.parametrize("rope_scaling", [None, LLAMA3, LINEAR])
def test_a_written_config_reads_back_equal(make_config, tmp_path, mod, rope_scaling):
    text = {"tie_word_embeddings": True, "attention_bias": True, "qk_norm": True}
    config = make_config(mod=mod, rope_scaling=rope_scaling, **text)
    config = replace(config, frame_token_pooled=(2, 3), frame_token_cls=False, dtype="bfloat16")
    config = replace(config, untrained_parts=("router",))
    path = tmp_path / "config.json"
    write_config(config, path)
    assert read_config(path) == config
    assert path.read_text().endswith("}\n")


def test_a_vision_tower_of_others_reads_back_equal(make_config, tmp_path):
    config = make_config()
    vision = replace(
        config.vision_config,
        hidden_act="quick_gelu",
        image_mean=(0.48145466, 0.4578275, 0.0),
        image_std=(0.26862954, 0.26130258, 1.0),
        frame_resize="stretch",
        frame_resample="bilinear",
    )
    path = tmp_path / "config.json"
    write_config(replace(config, vision_config=vision), path)
    assert read_config(path).vision_config == vision


def test_a_vision_tower_without_later_fields_is_siglips(document, make_config):
    later = ("hidden_act", "image_mean", "image_std", "frame_resize", "frame_resample")
    for name in later:
        del document["vision_config"][name]
    assert config_from_dict(document) == make_config()


def test_a_config_from_before_a_field_was_known_is_llamas(document):
    for field in ("attention_bias", "qk_norm", "rope_scaling", "tie_word_embeddings"):
        del document["text_config"][field]
    text = config_from_dict(document).text_config
    assert not text.attention_bias
    assert not text.qk_norm


def test_an_unknown_name_gets_the_nearest_known_one(document):
    document["mod_config"]["insertion"] = "interleave"
    message = message_of(document)
    assert "mod_config.insertion='interleave'" in message
    known = "interleaved, all, interleaved_deep, all_deep, early_exit, layer_skip"
    assert f"one of {known}" in message
    assert "did you mean 'interleaved'?" in message
    document["mod_config"]["insertion"] = "xyz"
    assert "did you mean" not in message_of(document)


def test_values_that_are_not_positive_are_all_named(document):
    document["text_config"] |= {"hidden_size": -1, "vocab_size": 0}
    message = message_of(document)
    assert "text_config.hidden_size=-1, wanted above 0" in message
    assert "text_config.vocab_size=0, wanted above 0" in message


@pytest.mark.parametrize(
    ("section", "field", "value", "fault"),
    [
        (
            None,
            "untrained_parts",
            ["vision"],
            "untrained_parts='vision', wanted one of connector, router",
        ),
        (None, "model_type", "llama", "model_type='llama', wanted videollm_mod"),
        (None, "dtype", "fp16", "dtype='fp16', wanted one of float32, bfloat16, float16"),
        (None, "frame_token_pooled", [3, 5], r"frame_token_pooled=.*each 1 to 4"),
        (None, "frame_token_pooled", [], r"frame_token_pooled=\[\], wanted a list of 2 whole"),
        ("mod_config", "keep_ratio", 0, r"keep_ratio=0, wanted in \(0, 1\]"),
        ("mod_config", "keep_ratio", 1.01, r"keep_ratio=1\.01"),
        ("mod_config", "keep_ratio", float("nan"), "keep_ratio=nan"),
        ("mod_config", "selection", "rand", r"one of learned, uniform, random \(did you mean 'ra"),
        ("mod_config", "exit_layer", 0, "exit_layer=0, wanted at least 1"),
        ("mod_config", "exit_layer", 3, "exit_layer=3, wanted only with insertion early_exit"),
        ("mod_config", "router_scaling", "none", "one of full, delta"),
        ("text_config", "num_key_value_heads", 4, "a multiple of num_key_value_heads=4"),
        ("text_config", "head_dim", 15, "head_dim=15, wanted even"),
        ("text_config", "num_hidden_layers", 0, "num_hidden_layers=0, wanted above 0"),
        ("vision_config", "num_attention_heads", 5, "a multiple of num_attention_heads=5"),
        ("vision_config", "patch_size", 60, "at least patch_size=60"),
        ("vision_config", "hidden_act", "gelu_new", "one of gelu_pytorch_tanh, gelu, quick_gelu"),
        ("vision_config", "frame_resize", "crop", "'crop', wanted one of letterbox, stretch"),
        ("vision_config", "frame_resample", "lanczos", "wanted one of bicubic, bilinear"),
        ("vision_config", "image_mean", [0.5, 0.5], r"image_mean=.*wanted a list of 3 finite num"),
        ("vision_config", "image_mean", 0.5, r"image_mean=0\.5, wanted a list of 3"),
        ("vision_config", "image_mean", [124, 116, 104], r"\[124, 116, 104\], wanted each 0 to 1"),
        (
            "vision_config",
            "image_std",
            [0.2, 0, 0.2],
            r"image_std=\[0\.2, 0, 0\.2\], wanted each ab",
        ),
        ("stream_config", "frame_fps", 0, r"frame_fps=0, wanted 0\.001 to 1000"),
        ("stream_config", "frame_fps", 1e9, r"frame_fps=1000000000\.0, wanted 0\.001 to 1000"),
        ("stream_config", "frame_fps", 1e-9, r"frame_fps=1e-09, wanted 0\.001 to 1000"),
        ("stream_config", "frame_token_interval_threshold", 1.5, "a probability, 0 to 1"),
        (
            "stream_config",
            "system_prompt",
            "a\ud800",
            r"'a\\ud800', .* 2 is half a character, U\+D8",
        ),
        ("stream_config", "system_prompt", "a \ud800" * 9000, r"^.{1,300}, wanted Unicode text"),
        ("stream_config", "stream_end", "\udce9", r"stream_end='\\udce9', wanted Unicode text"),
        ("stream_config", "stream_end_id", 2, "silent and speak are the same"),
        ("text_config", "rope_theta", 1e300, r"rope_theta=1e\+300, wanted 1 to 1e\+15"),
        (
            "text_config",
            "num_hidden_layers",
            10**9,
            "num_hidden_layers=1000000000, wanted 1 to 1000",
        ),
        ("vision_config", "num_hidden_layers", 1001, "num_hidden_layers=1001, wanted 1 to 1000"),
        ("text_config", "rope_theta", 0.5, "rope_theta=0.5, wanted 1 to"),
        ("stream_config", "frame_token_interval", "", r"interval_id=2, wanted null if .* empty"),
        (
            "stream_config",
            "frame_token_interval_id",
            None,
            r"interval_id=None, .*its id \(it is ','",
        ),
        ("stream_config", "eos_token_id", 67, r"0 to 66 \(vocab_size is 67\)"),
        ("stream_config", "bos_token_id", -1, "bos_token_id=-1, wanted 0 to 66"),
        ("stream_config", "stop_token_ids", [5, 67], r"ids=\(5, 67\), wanted 0 to 66"),
    ],
)
def test_a_wrong_value_is_named_with_the_allowed_ones(document, section, field, value, fault):
    (document if section is None else document[section])[field] = value
    with pytest.raises(ConfigError, match=fault):
        config_from_dict(document)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"rope_type": "yarn"}, "rope_type='yarn', wanted one of default, linear, llama3"),
        ({"rope_type": None}, "rope_type=None, wanted one of default, linear, llama3"),
        ({"type": "dynamic"}, "rope_type='dynamic', wanted one of default, linear, llama3"),
        (
            {"type": "linear"},
            "low_freq_factor=1.0, wanted none with rope_type linear; .*high_freq.*; .*original_max",
        ),
        (
            {"high_freq_factor": None, "original_max_position_embeddings": None},
            "high_freq_factor=None, wanted a number with rope_type llama3; .*original_max",
        ),
        ({"type": "default", "rope_type": "llama3"}, "type='default', wanted the same as rope_t"),
        ({"rope_type": "default"}, "no factor, high_freq_factor, low_freq_.* rope_type default"),
        ({"factor": 0.5}, r"factor=0.5, wanted 1 to 1e\+06"),
        ({"factor": 1e308}, r"factor=1e\+308, wanted 1 to 1e\+06"),
        ({"factor": float("inf")}, r"factor=inf, wanted a finite number"),
        ({"original_max_position_embeddings": 0}, "position_embeddings=0, wanted at least 1"),
        ({"low_freq_factor": 4.0}, "below high_freq_factor=4.0"),
    ],
)
def test_an_unknown_or_impossible_rope_scaling_is_rejected(document, changes, fault):
    scaling = {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    document["text_config"]["rope_scaling"] = {**scaling, **changes}
    with pytest.raises(ConfigError, match=fault):
        config_from_dict(document)


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_the_default_rope_type_needs_no_factor(document, key):
    document["text_config"]["rope_scaling"] = {key: "default"}
    assert config_from_dict(document).text_config.rope_scaling is None


@pytest.mark.parametrize("keys", [(), ("type",), ("type", "rope_type")])
def test_the_older_spelling_of_the_rope_type_is_read(document, keys):
    scaling = asdict(LLAMA3)
    del scaling["rope_type"]
    document["text_config"]["rope_scaling"] = scaling | dict.fromkeys(keys, "llama3")
    assert config_from_dict(document).text_config.rope_scaling == LLAMA3


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_linear_scaling_needs_a_factor_alone(document, key):
    document["text_config"]["rope_scaling"] = {key: "linear", "factor": 2.0}
    assert config_from_dict(document).text_config.rope_scaling == LINEAR
    del document["text_config"]["rope_scaling"]["factor"]
    assert "missing field 'text_config.rope_scaling.factor'" in message_of(document)


def test_an_unknown_rope_type_is_not_asked_for_the_fields_of_a_known_one(document):
    document["text_config"]["rope_scaling"] = {"type": "yarn", "factor": 2.0}
    assert "missing" not in message_of(document)


@pytest.mark.parametrize("other", ["frame_token_interval_id", "stream_end_id"])
def test_the_end_of_a_reply_is_a_token_of_its_own(document, other):
    stream = document["stream_config"]
    stream["eos_token_id"] = stream[other]
    says = f"stream_config.eos_token_id={stream[other]}, wanted a token other than {other}: "
    assert says in message_of(document)
    stream.update(eos_token_id=1, stop_token_ids=[5, stream[other]])
    assert f"stream_config.stop_token_ids=(5, {stream[other]}), wanted" in message_of(document)


@pytest.mark.parametrize("bos", [None, 1])
def test_a_conversation_may_have_no_first_token_or_begin_with_the_end_token(document, bos):
    document["stream_config"]["bos_token_id"] = bos
    assert config_from_dict(document).stream_config.bos_token_id == bos


# ---- the chat template ----


def test_a_config_without_a_chat_template_has_the_published_strings(document):
    stream = document["stream_config"]
    del stream["chat_template"], stream["stop_token_ids"]
    read = config_from_dict(document).stream_config
    assert read.chat_template == ChatTemplate(
        "{system}\n", "\n[", "\nUser: {query}", "\nAssistant:", " {reply}", ()
    )
    assert read.stop_token_ids == ()


def test_a_chat_template_reads_back_equal(make_config, tmp_path):
    stream = replace(make_config().stream_config, chat_template=TEMPLATES["chatml"])
    config = replace(make_config(), stream_config=replace(stream, stop_token_ids=(7, 66)))
    path = tmp_path / "config.json"
    write_config(config, path)
    assert read_config(path) == config


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("system", "None\n", r"system='None\\n', wanted {system} once"),
        ("query", "{query}{query}", "query='{query}{query}', wanted {query} once"),
        ("reply", "", "reply='', wanted {reply} once"),
        ("stream_start", "", "stream_start='', wanted at least one token"),
        ("generation", "a\ud800", r"generation='a\\ud800', wanted Unicode text"),
        ("control_tokens", ["<|im_start|>"], "control_tokens='<|im_start|>', wanted control token"),
        ("control_tokens", [""], "control_tokens='', wanted control tokens that occur in system, "),
        ("queries", "", "unknown field 'stream_config.chat_template.queries' (did you mean 'query"),
    ],
)
def test_a_wrong_string_of_a_chat_template_is_named(document, field, value, fault):
    document["stream_config"]["chat_template"][field] = value
    assert fault.replace("\\\\", "\\") in message_of(document)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        pytest.param(b"[" * 100_000, r"config\.json is not valid JSON", id="nested"),
        (b"{", r"config\.json is not valid JSON"),
        (b"\xff\xfe{}", r"config\.json is not valid JSON"),
        pytest.param(b"[" * 100_000, "nested in more than 64 levels", id="brackets"),
        pytest.param(b"9" * 400, "999999999999... of more than 300 digits", id="digits"),
        (b"[1]", "contains a list, wanted one JSON object"),
    ],
)
def test_a_file_that_is_not_a_json_object_is_rejected_by_name(tmp_path, content, fault):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=fault):
        read_config(path)


def test_an_exit_after_the_last_layer_is_rejected(make_config):
    assert make_config(mod=MoDConfig("early_exit", exit_layer=3)).mod_layers == (3,)
    with pytest.raises(ConfigError, match="exit_layer=4, wanted below num_hidden_layers=4"):
        make_config(mod=MoDConfig("early_exit", exit_layer=4))


@pytest.mark.parametrize(
    ("keep_ratio", "num_kept"),
    [
        (0.1, 1),
        (0.2, 2),
        (0.3, 3),
        (0.5, 5),
        (0.7, 7),
        (0.21, 3),
        (0.01, 1),
        (1e-9, 1),  # rounding comes before the ceiling and must not leave 0 tokens
        (1.0, 10),
    ],
)
def test_num_kept_is_the_ceiling_of_the_ratio(make_config, keep_ratio, num_kept):
    assert make_config(mod=MoDConfig(keep_ratio=keep_ratio)).num_kept == num_kept


def test_every_whole_share_of_every_frame_size_is_exact(make_config):
    """In floating point 0.28 * 25 is 7.000000000000001, and a bare ceiling gives 8."""
    config = make_config()
    vision = replace(config.vision_config, image_size=14 * 36)
    for columns in range(1, 36):
        frame = replace(config, vision_config=vision, frame_token_pooled=(1, columns))
        num_tokens = columns + 1
        for num_kept in range(1, num_tokens + 1):
            mod = MoDConfig(keep_ratio=num_kept / num_tokens)
            assert replace(frame, mod_config=mod).num_kept == num_kept


@pytest.mark.parametrize(
    ("insertion", "layers"),
    [
        ("interleaved", range(1, 32, 2)),  # 16 layers, the last one among them
        ("all", range(32)),
        ("interleaved_deep", range(3, 32, 2)),  # 15
        ("all_deep", range(2, 32)),  # 30
        ("early_exit", range(2, 32)),
        ("layer_skip", range(1, 32, 2)),
    ],
)
def test_the_insertions_of_32_layers_are_the_papers(make_config, insertion, layers):
    config = make_config(num_layers=32, mod=MoDConfig(insertion))
    assert config.mod_layers == tuple(layers)


def test_a_frame_has_the_cls_token_and_the_grid_or_one_of_the_two(make_config):
    config = make_config()
    assert config.frame_num_tokens == 1 + 3 * 3
    assert replace(config, frame_token_cls=False, frame_token_pooled=(2, 4)).frame_num_tokens == 8
    alone = replace(config, frame_token_pooled=None)
    assert (alone.frame_num_tokens, alone.num_kept) == (1, 1)
    with pytest.raises(ConfigError, match=r"pooled=None, wanted a grid .* frame_token_cls=false"):
        replace(alone, frame_token_cls=False)


def test_without_an_interval_the_end_token_means_silence_and_nothing_is_between_frames(make_config):
    config = make_config()
    stream = config.stream_config
    assert (stream.silent_id, stream.interval_ids, config.frame_stride) == (2, (2,), 11)
    config = without_interval(config)
    stream = config.stream_config
    assert (stream.silent_id, stream.interval_ids, config.frame_stride) == (1, (), 10)
    with pytest.raises(ConfigError, match=r"stream_end_id=1, wanted a token other than eos_token_"):
        replace(stream, stream_end_id=1)


def test_the_published_one_token_model_reads_back_equal(make_config, tmp_path):
    config = one_token(make_config())
    write_config(config, tmp_path / "config.json")
    document = json.loads((tmp_path / "config.json").read_text())
    assert document["frame_token_pooled"] is None
    assert document["stream_config"]["frame_token_interval_id"] is None
    assert read_config(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("mod", "num_kept", "has_router"),
    [
        (None, 10, False),
        *((MoDConfig(keep_ratio=0.5, router_scaling=name), 5, True) for name in ROUTER_SCALINGS),
        (MoDConfig(keep_ratio=0.5, selection="uniform"), 5, False),
        (MoDConfig(keep_ratio=0.5, selection="random"), 5, False),
        *((MoDConfig(name, keep_ratio=0.5), 0, False) for name in BASELINES),
    ],
)
def test_only_learned_selection_has_a_router_and_baselines_keep_no_token(
    make_config, mod, num_kept, has_router
):
    config = make_config(mod=mod)
    assert (config.num_kept, config.has_router) == (num_kept, has_router)
    assert bool(config.mod_layers) == (mod is not None)


def test_pixels_beyond_the_last_whole_patch_are_not_counted(make_config):
    vision = make_config().vision_config
    assert (vision.image_size, vision.patch_size) == (59, 14)
    assert (vision.grid_size, vision.num_patches) == (4, 16)
