"""Opening a bundle: its checks, graphs, profile and window."""

import json
import random
import re
import shutil
from dataclasses import replace

import pytest

from mod_edge.bundle.bundle import Bundle, open_bundle
from mod_edge.bundle.engine_manifest import EngineManifest, EngineSettings, write_engine_manifest
from mod_edge.bundle.manifest import (
    CONFIG_FILE,
    EMBEDDING_FILE,
    SMALL_FILE_BYTES,
    TOKENIZER_FILE,
    Manifest,
    read_manifest,
    record_file,
    write_manifest,
)
from mod_edge.bundle.shape_ranges import step_limits
from mod_edge.config import read_config
from mod_edge.errors import BundleError, ConfigError
from mod_edge.model.presets import preset_config
from mod_edge.plan.kv_budget import plan_budget, plan_capacity, plan_window
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.protocol import text_minimum
from mod_edge.plan.signature import bundle_signatures
from mod_edge.plan.targets import CPU_FP32, TARGETS, Lowering
from mod_edge.plan.tokenizer import preset_tokenizer, tokenizer_of_corpus
from mod_edge.profiles import load_profile
from mod_edge.runtime.backends import BackendChoice, load_model
from mod_edge.runtime.loaded_model import StreamLimits
from mod_edge.runtime.open_session import open_session
from tests.conftest import CAPACITY

CONFIG = preset_config("tiny")
TOKENIZER = preset_tokenizer(CONFIG.text_config.vocab_size)
MAX_NEW_TOKENS = 12
LEAST_TEXT = text_minimum(CONFIG.stream_config, TOKENIZER, MAX_NEW_TOKENS)


@pytest.fixture
def copied(tiny_bundle, tmp_path):
    """A copy of the tiny bundle that a test may change."""
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def change_manifest(folder, **changes):
    write_manifest(replace(read_manifest(folder), **changes), folder)


def record_in_manifest(folder, name):
    """Record the current file in the manifest."""
    files = read_manifest(folder).files | {name: record_file(folder / name)}
    change_manifest(folder, files=files)


# ---- opening ----


def test_weights_in_a_form_of_another_version_are_refused(copied):
    graphs = read_manifest(copied).graphs
    other = {"op": "MatMulInteger", "bits": 8, "row_parts": 8}
    change_manifest(copied, graphs=graphs | {"head": replace(graphs["head"], weights=other)})
    with pytest.raises(BundleError, match=r"head.onnx has weights .*; export the checkpoint again"):
        open_bundle(copied)


def test_a_bundle_has_the_contents_of_its_files(bundle_for):
    folder = bundle_for("cuda", "fp32")
    bundle = open_bundle(str(folder))
    assert bundle.folder == folder
    assert bundle.manifest == read_manifest(folder)
    assert bundle.config == read_config(folder / CONFIG_FILE) == CONFIG
    assert bundle.tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert bundle.lowering == Lowering("cuda", "fp32", CAPACITY)
    assert bundle.target is TARGETS["cuda"]
    assert bundle.engines == []
    bundle.require_whole()


def test_a_tokenizer_of_another_protocol_is_an_error_wherever_the_bundle_is_opened(copied):
    corpus = ["A man walks to the left."] * 9  # in which "]\n" is two tokens
    other = tokenizer_of_corpus(corpus, 300, CONFIG.text_config.vocab_size)
    other.save(str(copied / TOKENIZER_FILE))
    record_in_manifest(copied, TOKENIZER_FILE)
    says = r"does not fit config\.json: .*stream_end.* is tokens .*; export the checkpoint again"
    for opens in (open_bundle, open_session):
        with pytest.raises(BundleError, match=says):
            opens(copied)


def test_a_token_without_a_row_is_an_error_wherever_the_bundle_is_opened(copied):
    document = json.loads(TOKENIZER.to_str())
    vocabulary = document["model"]["vocab"]
    vocabulary["Ġ<9999>"] = vocabulary.pop("Ġ<500>") + 9499
    (copied / TOKENIZER_FILE).write_text(json.dumps(document))
    record_in_manifest(copied, TOKENIZER_FILE)
    for opens in (open_bundle, open_session):
        with pytest.raises(BundleError, match=r"vocab_size is \d+, .*: 'Ġ<9999>' is 9999"):
            opens(copied)


@pytest.mark.parametrize(
    "name", [CONFIG_FILE, TOKENIZER_FILE, EMBEDDING_FILE, "head.data", "layers/03.onnx"]
)
def test_a_file_that_the_manifest_does_not_list_is_not_opened(copied, name):
    files = read_manifest(copied).files
    change_manifest(copied, files={each: files[each] for each in files if each != name})
    with pytest.raises(BundleError, match=rf"does not list {re.escape(name)}; export"):
        open_bundle(copied)


def test_a_changed_byte_of_a_large_file_is_found_if_every_file_is_hashed(copied, monkeypatch):
    path = copied / "layers" / "03.data"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"layers/03\.data has changed since"):
        open_bundle(copied, hash_all=True)
    monkeypatch.setattr("mod_edge.bundle.manifest.SMALL_FILE_BYTES", len(data))
    assert len(data) < SMALL_FILE_BYTES
    open_bundle(copied)


def test_any_changed_byte_of_a_bundle_is_refused(copied):
    add_engines(copied, CPU_FP32, "cpu")
    assert len(open_bundle(copied, hash_all=True).engines) == 1
    files = sorted(path for path in copied.rglob("*") if path.is_file())
    generator = random.Random(0)
    for path in [*files, *(copied.rglob("manifest.json"))] * 2:
        written = path.read_bytes()
        position, bits = generator.randrange(len(written)), generator.randrange(1, 256)
        changed = bytearray(written)
        changed[position] ^= bits
        path.write_bytes(changed)
        with pytest.raises(BundleError):
            _ = open_bundle(copied, hash_all=True).engines
        path.write_bytes(written)


# ---- a part of a model ----


def test_a_partial_model_can_be_opened_but_not_run(copied):
    change_manifest(copied, layers=[1, 2])
    bundle = open_bundle(copied)
    assert not bundle.is_whole
    assert [each.name for each in bundle.signatures()] == ["vision", "layer-01", "layer-02", "head"]
    says = "has 2 of 6 layers; export the checkpoint without --layers to run it"
    limits = StreamLimits(CAPACITY, 64, 3)
    for runs in (
        bundle.require_whole,
        lambda: load_model(bundle, limits, BackendChoice()),
        lambda: open_session(bundle),
    ):
        with pytest.raises(BundleError, match=says):
            runs()


# ---- graphs ----


@pytest.mark.parametrize("lowering", [CPU_FP32, Lowering("rtx", "fp16", CAPACITY)])
def test_a_bundles_graphs_follow_from_its_lowering(tmp_path, lowering):
    bundle = bundle_of(tmp_path, lowering)
    assert bundle.signatures() == bundle_signatures(CONFIG, lowering)
    (layer,) = bundle.signatures("layer-03")
    assert layer == bundle.signatures()[4]


def test_an_unknown_graph_lists_the_known_ones_and_hints_the_nearest(tmp_path):
    bundle = bundle_of(tmp_path, CPU_FP32)
    says = r"no graph 'layer-3' \(did you mean 'layer-03'\?\); it has vision, layer-00, .*, head"
    with pytest.raises(ConfigError, match=says):
        bundle.signatures("layer-3")
    with pytest.raises(ConfigError, match=r"no graph 'rebase'; it has vision"):
        bundle.signatures("rebase")


def bundle_of(folder, lowering):
    """A bundle of the tiny preset without files."""
    manifest = Manifest({}, lowering, list(range(6)), {}, {}, {})
    return Bundle(folder, manifest, CONFIG, TOKENIZER)


# ---- profile ----


def add_engines(folder, lowering, profile):
    """Write the manifest of engines, without any, into the bundle at `folder`."""
    limits = step_limits(load_profile("cpu"), Rows(300, 180))
    target, precision = lowering.target, lowering.precision
    settings = EngineSettings(
        target, "tensorrt_rtx", "1.7", "89", precision, profile, limits, 64, 3
    )
    (folder / settings.folder).mkdir(parents=True)
    write_engine_manifest(EngineManifest(settings, {}), folder)


@pytest.fixture
def make_bundle(tmp_path):
    """`make_bundle(target, *profiles)`: without files, but with engines for these profiles."""

    def make(target, *profiles):
        capacity = Rows(300, 180) if TARGETS[target].dialect == "in_place" else None
        bundle = bundle_of(tmp_path, Lowering(target, TARGETS[target].precisions[0], capacity))
        for name in profiles:
            add_engines(tmp_path, bundle.lowering, name)
        return bundle

    return make


def test_a_named_profile_is_used(make_bundle):
    bundle = make_bundle("rtx", "rtx-ada")
    assert bundle.profile("rtx-blackwell") == load_profile("rtx-blackwell")


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("cpu", "cpu"),
        ("cuda", "rtx-ada"),
        ("rtx", "rtx-ada"),
        ("tensorrt-delta", "jetson-agx-orin"),
    ],
)
def test_a_bundle_without_engines_uses_the_first_profile_for_its_target(make_bundle, target, name):
    assert make_bundle(target).profile() == load_profile(name)


def test_the_profile_of_the_engines_is_the_default(make_bundle):
    bundle = make_bundle("tensorrt-delta", "jetson-orin-nano")
    assert bundle.profile() == load_profile("jetson-orin-nano")


def test_profiles_that_differ_only_in_the_gpu_count_as_one(make_bundle):
    bundle = make_bundle("rtx", "rtx-blackwell", "rtx-ampere", "rtx-ada")
    assert bundle.profile() == load_profile("rtx-ada")


def test_engines_of_several_profiles_require_a_named_one(make_bundle):
    bundle = make_bundle("tensorrt-delta", "jetson-orin-nano", "jetson-agx-orin")
    says = "engines of the profiles jetson-agx-orin, jetson-orin-nano; name one with --profile"
    with pytest.raises(ConfigError, match=says):
        bundle.profile()


def test_engines_of_the_users_own_profile_require_its_file(make_bundle):
    bundle = make_bundle("rtx", "kiosk", "rtx-ada")
    with pytest.raises(ConfigError, match=re.escape("give its file with --profile path/to/kiosk")):
        bundle.profile()


# ---- window ----


def test_the_window_is_the_default_unless_a_window_or_budget_is_given(tmp_path):
    bundle = bundle_of(tmp_path, CPU_FP32)
    for asked, plan in (
        ({}, plan_window(CONFIG, "40s", LEAST_TEXT, dtype="float32")),
        ({"window": "512"}, plan_window(CONFIG, "512", LEAST_TEXT, dtype="float32")),
        ({"kv_budget_mib": 3.0}, plan_budget(CONFIG, 3.0, LEAST_TEXT, dtype="float32")),
    ):
        assert bundle.plan("40s", MAX_NEW_TOKENS, **asked) == plan


def test_graphs_with_a_fixed_capacity_are_planned_with_it(tmp_path):
    bundle = bundle_of(tmp_path, Lowering("rtx", "fp16", CAPACITY))
    plan = plan_capacity(CONFIG, CAPACITY, LEAST_TEXT, dtype="float16")
    assert bundle.plan("40s", MAX_NEW_TOKENS) == plan


@pytest.mark.parametrize("asked", [{"window": "60s"}, {"kv_budget_mib": 3.0}])
def test_another_window_for_graphs_with_a_fixed_capacity_is_an_error(tmp_path, asked):
    bundle = bundle_of(tmp_path, Lowering("rtx", "fp16", CAPACITY))
    with pytest.raises(ConfigError, match="made for a window of 260 tokens; run without --window"):
        bundle.plan("40s", MAX_NEW_TOKENS, **asked)


@pytest.mark.parametrize("capacity", [None, CAPACITY])
def test_a_window_and_a_budget_together_are_an_error(tmp_path, capacity):
    bundle = bundle_of(tmp_path, Lowering("rtx" if capacity else "cpu", "fp32", capacity))
    with pytest.raises(
        ConfigError, match="got both window and kv_budget, which set the same; give one"
    ):
        bundle.plan("40s", MAX_NEW_TOKENS, window="60s", kv_budget_mib=3.0)
