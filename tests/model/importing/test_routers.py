"""LayerExperts from files of both spellings, and those that have learned nothing."""

import math

import pytest
import torch
from safetensors.torch import save_file

from mod_edge.errors import CheckpointError
from mod_edge.model.importing.routers import RouterFile, initial_router

SIZE = 12
LAYERS = (1, 3)
SPELLINGS = [
    "model.layers.{}.router.{}",
    "model.layers.{}.router.router.{}",
    "layers.{}.router.router.{}",
    "base_model.model.model.layers.{}.router.{}",
    "base_model.model.model.layers.{}.router.modules_to_save.default.{}",
    "base_model.model.model.layers.{}.router.modules_to_save.mine.router.{}",
]


def some_routers(spelling=SPELLINGS[0], layers=LAYERS, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    return {
        spelling.format(layer, kind): torch.randn(shape, generator=generator).to(dtype)
        for layer in layers
        for kind, shape in (("weight", (1, SIZE)), ("bias", (1,)))
    }


def written(folder, tensors):
    path = folder / "routers.safetensors"
    save_file(tensors, path)
    return path


def message_of(path):
    with pytest.raises(CheckpointError) as caught:
        RouterFile(path, LAYERS, SIZE)
    return str(caught.value)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_routers_are_read_in_every_spelling(tmp_path, spelling):
    routers = RouterFile(written(tmp_path, some_routers(spelling)), LAYERS, SIZE)
    for name, tensor in some_routers().items():
        assert torch.equal(routers.read(name), tensor)


def test_routers_without_biases_have_biases_of_zero(tmp_path):
    tensors = {n: tensor for n, tensor in some_routers().items() if n.endswith("weight")}
    routers = RouterFile(written(tmp_path, tensors), LAYERS, SIZE)
    assert torch.equal(routers.read("model.layers.3.router.bias"), torch.zeros(1))


def test_all_faults_of_a_router_file_are_in_one_message(tmp_path):
    tensors = some_routers(layers=(1, 2))
    del tensors["model.layers.2.router.bias"]
    tensors["model.layers.1.router.weight"] = torch.ones(1, SIZE + 1)
    tensors["model.norm.weight"] = torch.ones(SIZE)
    path = written(tmp_path, tensors)
    message = message_of(path)
    assert message.startswith(
        f"{path}: its routers do not fit the model: 'model.norm.weight' is not a router's tensor; "
        "it has those of layers 1, 2, the MoD layers are 1, 3; 'model.layers.1.router.weight' is "
        f"F32 [1, {SIZE + 1}] in routers.safetensors, wanted [1, {SIZE}]; no "
        "'model.layers.2.router.bias'; "
    )


def test_a_bias_that_one_router_lacks_is_missing(tmp_path):
    tensors = some_routers()
    del tensors["model.layers.3.router.bias"]
    assert "no 'model.layers.3.router.bias'" in message_of(written(tmp_path, tensors))


def test_one_router_in_two_spellings_is_refused(tmp_path):
    tensors = some_routers() | some_routers(SPELLINGS[1], layers=(3,))
    message = message_of(written(tmp_path, tensors))
    assert (
        "'model.layers.3.router.weight' and 'model.layers.3.router.router.weight' are the same "
        "router's"
    ) in message


def test_routers_with_nan_are_refused_by_name(tmp_path):
    tensors = some_routers()
    tensors["model.layers.3.router.weight"][0, 4] = math.nan
    path = written(tmp_path, tensors)
    assert "'model.layers.3.router.weight' (1 NaN, 0 infinite of 12)" in message_of(path)


# ---- routers that have learned nothing ----

NAMES = [f"model.layers.{layer}.router." for layer in range(1, 32, 2)]


def initial_logits(name, hidden, dtype):
    weight, bias = (
        initial_router(name + kind, hidden.shape[-1], dtype).float() for kind in ("weight", "bias")
    )
    return torch.nn.functional.linear(hidden, weight, bias)[..., 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("size", "scale"), [(576, 0.1), (576, 35.0), (4096, 0.05), (4096, 4.0)])
def test_kept_tokens_pass_unscaled_and_do_not_tie_with_dropped_ones(size, scale, dtype):
    """At the sizes of SmolLM2 and Llama-3-8B, with most of each hidden state shared by all."""
    generator = torch.Generator().manual_seed(1)
    for name in NAMES:
        shared = torch.randn(size, generator=generator)
        own = torch.randn(8, 10, size, generator=generator)
        logits = initial_logits(name, scale * (0.9 * shared + 0.44 * own), dtype)
        falling = logits.sort(dim=1, descending=True).values
        assert (falling[:, :2].sigmoid() == 1).all()
        assert (falling[:, 1] > falling[:, 2]).all()


def test_initial_routers_are_the_same_every_time_and_differ_between_layers():
    first, again, other = (
        initial_router(f"{name}weight", 64, torch.float32) for name in (NAMES[0], *NAMES[:2])
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (1, 64)
    assert initial_router(f"{NAMES[0]}bias", 64, torch.bfloat16).dtype == torch.bfloat16
