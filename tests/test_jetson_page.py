"""docs/jetson.md: its commands, profiles and pipelines are valid, and its figures add up."""

import math
import re
from pathlib import Path

import pytest
from typer.main import get_command

from mod_edge.commands.app import app
from mod_edge.model.checkpoint import tensor_shapes
from mod_edge.model.presets import preset_config
from mod_edge.profiles import profile_names
from mod_edge.runtime.capture.source_name import is_pipeline

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "jetson.md").read_text()
JOINED = PAGE.replace("\\\n", "")
COMMANDS = get_command(app).commands


def typed_commands():
    """(command, rest of the line) for every mod-edge command on the page."""
    return re.findall(rf"mod-edge ({'|'.join(COMMANDS)})\b([^#`\n]*)", JOINED)


def test_every_option_on_the_page_exists():
    typed = typed_commands()
    assert {name for name, _ in typed} >= {"export", "build", "run", "doctor", "targets"}
    for name, rest in typed:
        known = {option for param in COMMANDS[name].params for option in param.opts}
        used = set(re.findall(r"(?<=\s)--?[a-z][\w-]*", re.sub(r'"[^"]*"', "", rest)))
        assert used <= known, (name, used - known)


def test_the_page_names_every_shipped_jetson_profile():
    named = set(re.findall(r"--profile ([\w-]+)|`(jetson-[\w-]+)`", PAGE))
    assert {one or other for one, other in named} == {
        name for name in profile_names() if name.startswith("jetson")
    }


def test_every_pipeline_on_the_page_is_recognized_as_one():
    pipelines = re.findall(r'--source "([^"]*)"', JOINED)
    assert len(pipelines) == 2
    assert all(is_pipeline(pipeline) for pipeline in pipelines)


@pytest.mark.parametrize("preset", ["1b", "8b"])
def test_the_disk_table_counts_two_bytes_per_parameter(preset):
    (row,) = re.findall(rf"^\| {preset} \|(.*)\|$", PAGE, re.MULTILINE)
    config = preset_config(preset)
    sizes = {name: 2 * math.prod(shape) for name, shape in tensor_shapes(config).items()}
    embedding = sizes.pop("model.embed_tokens.weight")
    # a tied head is a separate graph with its own copy of the weights
    graphs = sum(sizes.values()) + (embedding if config.text_config.tie_word_embeddings else 0)
    expected = (graphs, embedding, graphs, 2 * graphs + embedding)
    assert row.split("|") == [f" {size / 1e9:.1f} GB " for size in expected]
