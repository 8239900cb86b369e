"""Connectors: read under either name, refused with both widths, or a stand-in."""

import pytest
import torch
from safetensors.torch import save_file

from mod_edge.errors import CheckpointError
from mod_edge.model.importing.connector import (
    check_connector,
    connector_names,
    connector_shapes,
    stand_in_connector,
)
from mod_edge.model.importing.single_file import open_weight_file

VISION_SIZE, HIDDEN_SIZE = 24, 40


def save_connector(path, prefix="connector.", vision_size=VISION_SIZE, hidden_size=HIDDEN_SIZE):
    shapes = connector_shapes(vision_size, hidden_size)
    tensors = {
        name.replace("connector.", prefix): torch.full(shape, float(number))
        for number, (name, shape) in enumerate(shapes.items())
    }
    save_file(tensors, path)
    return path


def open_connector(path):
    """The opened file, which must fit, and the names in it."""
    weights = open_weight_file(path)
    names = connector_names(path, weights)
    stored = {name: weights.tensors[their_name] for name, their_name in names.items()}
    check_connector(path, stored, VISION_SIZE, HIDDEN_SIZE)
    return weights, names


def message_of(path):
    with pytest.raises(CheckpointError) as caught:
        open_connector(path)
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["connector.", "", "base_model.model.connector."])
def test_a_connector_is_read_with_a_prefix_or_without(tmp_path, prefix):
    weights, names = open_connector(save_connector(tmp_path / "any.safetensors", prefix))
    for number, (name, shape) in enumerate(connector_shapes(VISION_SIZE, HIDDEN_SIZE).items()):
        assert torch.equal(weights.read(names[name]), torch.full(shape, float(number))), name


def test_the_shapes_are_those_of_our_reference(make_model, make_config):
    config = make_config()
    parameters = make_model(config).connector.state_dict()
    sizes = config.vision_config.hidden_size, config.text_config.hidden_size
    assert connector_shapes(*sizes) == {
        f"connector.{name}": tuple(each.shape) for name, each in parameters.items()
    }


def test_a_connector_for_other_widths_is_refused_with_both(tmp_path):
    path = tmp_path / "c.safetensors"
    assert "it takes features of width 32, the vision tower gives 24;" in message_of(
        save_connector(path, vision_size=32)
    )
    message = message_of(save_connector(path, vision_size=32, hidden_size=48))
    assert "width 32, the vision tower gives 24; it gives embeddings of width 48, " in message
    assert "the decoder takes 40" in message


def test_a_file_of_other_tensors_is_refused_by_their_names(tmp_path):
    path = tmp_path / "c.safetensors"
    save_file({"mm_projector.0.weight": torch.ones(2)}, path)
    assert "is not a connector: it has the tensors 'mm_projector.0.weight'" in message_of(path)
    save_file({name: torch.ones(2) for name in ("0.weight", "0.bias", "2.weight", "2.bias")}, path)
    assert "'connector.0.weight' is F32 [2] in c.safetensors, wanted [40, 24]" in message_of(path)
    (tmp_path / "c.bin").touch()
    assert "is pickled and not read" in message_of(tmp_path / "c.bin")
    assert "none.safetensors does not exist" in message_of(tmp_path / "none.safetensors")


def test_the_stand_in_is_the_same_in_every_import_and_gives_small_embeddings():
    shapes = connector_shapes(64, 96)

    def make():
        return {
            name: stand_in_connector(name, shape, torch.float32) for name, shape in shapes.items()
        }

    one, two = make(), make()
    assert all(torch.equal(one[name], two[name]) for name in shapes)
    features = torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    hidden = torch.nn.functional.gelu(
        features @ two["connector.0.weight"].T + two["connector.0.bias"]
    )
    embeddings = hidden @ two["connector.2.weight"].T + two["connector.2.bias"]
    assert 0.005 < embeddings.std() < 0.03  # token embeddings: about 0.02
