"""One MoD layer at a time: skipped tokens, scaling of kept ones, and the cache."""

import pytest
import torch

from mod_edge.config import BASELINES, ROUTER_SCALINGS, SELECTIONS, MoDConfig
from mod_edge.model.layers import LayerCache, rotate
from mod_edge.plan.layout import FRAME, step_layout
from mod_edge.plan.rope import inverse_frequencies

pytestmark = pytest.mark.numeric

PIECES = (3, FRAME, 1, FRAME, 2)
SATURATED = 40.0  # a router logit whose sigmoid is exactly 1 in float32 and float64

every_scaling = pytest.mark.parametrize("router_scaling", ROUTER_SCALINGS)


@pytest.fixture
def run_layer(make_config, make_model):
    """`run(mod, change=None)`: hidden states in and out, kept, cache, layout of one MoD layer."""

    def run(mod, change=None):
        config = make_config(num_layers=2, mod=mod)
        model = make_model(config, seed=3)
        layer = model.model.layers[1]
        if change is not None:
            change(layer)
        layout = step_layout(PIECES, config.frame_num_tokens, config.num_kept)
        generator = torch.Generator().manual_seed(4)
        hidden = torch.randn(layout.num_tokens, 48, generator=generator)
        cache = LayerCache.empty(config.text_config)
        positions = torch.arange(layout.num_tokens) + 100
        new_hidden, kept = layer(hidden, layout, positions, cache)
        return hidden, new_hidden, kept, cache, layout

    return run


def force_weight_one(layer):
    layer.router.bias.fill_(SATURATED)


def kept_rows(layout, kept):
    return torch.tensor(layout.frame_index).gather(1, kept).flatten()


@every_scaling
def test_keeping_every_token_with_weight_one_equals_the_dense_layer(run_layer, router_scaling):
    mod = MoDConfig(keep_ratio=1.0, router_scaling=router_scaling)
    _, theirs, *_ = run_layer(None)
    _, ours, *_ = run_layer(mod, force_weight_one)
    # Measured 0: the same operations on the same rows. A weight of 0.99 gives 0.2.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@every_scaling
def test_skipped_tokens_pass_unchanged(run_layer, router_scaling):
    hidden, new_hidden, kept, _, layout = run_layer(MoDConfig(router_scaling=router_scaling))
    is_skipped = torch.zeros(len(hidden), dtype=torch.bool)
    is_skipped[torch.tensor(layout.frame_index).flatten()] = True
    is_skipped[kept_rows(layout, kept)] = False
    assert is_skipped.sum() == 2 * 8
    assert torch.equal(new_hidden[is_skipped], hidden[is_skipped])
    assert (new_hidden[~is_skipped] != hidden[~is_skipped]).any(dim=1).all()


@pytest.mark.parametrize("selection", SELECTIONS)
def test_skipped_tokens_write_no_cache_row_and_the_others_keep_their_positions(
    run_layer, selection
):
    _, _, kept, cache, layout = run_layer(MoDConfig(selection=selection))
    written = sorted([*layout.text_index.tolist(), *kept_rows(layout, kept).tolist()])
    assert cache.positions.tolist() == [100 + row for row in written]  # with gaps
    assert cache.key.shape == cache.value.shape == (6 + 2 * 2, 2, 16)


@every_scaling
def test_text_rows_are_never_scaled(run_layer, router_scaling):
    mod = MoDConfig(router_scaling=router_scaling)
    _, weighted, _, _, layout = run_layer(mod)
    _, unweighted, *_ = run_layer(mod, force_weight_one)
    text, frames = torch.tensor(layout.text_index), torch.tensor(layout.frame_index).flatten()
    assert torch.equal(weighted[text], unweighted[text])
    assert not torch.equal(weighted[frames], unweighted[frames])


@every_scaling
def test_kept_rows_are_scaled_by_their_own_weight(run_layer, router_scaling):
    mod = MoDConfig(router_scaling=router_scaling)
    router = {}
    hidden, weighted, kept, _, layout = run_layer(
        mod, lambda layer: router.update(layer.router.state_dict())
    )
    _, unweighted, their_kept, *_ = run_layer(mod, force_weight_one)
    assert torch.equal(kept, their_kept)  # all sigmoids are 1 there: selected by logits
    rows = kept_rows(layout, kept)
    weights = 1 / (1 + torch.exp(-(hidden[rows] @ router["weight"].T + router["bias"])))
    if router_scaling == "full":
        theirs = weights * unweighted[rows]
    else:
        theirs = hidden[rows] + weights * (unweighted[rows] - hidden[rows])
    # Measured 1e-6; the other formula gives 1.1.
    torch.testing.assert_close(weighted[rows], theirs, rtol=0, atol=1e-5)


def test_tokens_of_every_frame_of_a_step_are_kept(run_layer):
    """The published code's random and uniform selections keep tokens of the first frame only."""
    for selection in SELECTIONS:
        hidden, new_hidden, kept, _, layout = run_layer(MoDConfig(selection=selection))
        assert kept.shape == (2, 2)
        for frame, chosen in zip(torch.tensor(layout.frame_index), kept, strict=True):
            is_changed = (new_hidden[frame] != hidden[frame]).any(dim=1)
            assert is_changed.nonzero()[:, 0].tolist() == chosen.tolist()


def test_the_uniform_selection_has_no_router_and_no_scaling(run_layer):
    outputs = {
        scaling: run_layer(MoDConfig(selection="uniform", router_scaling=scaling))
        for scaling in ROUTER_SCALINGS
    }
    _, full, kept, *_ = outputs["full"]
    assert torch.equal(full, outputs["delta"][1])
    assert kept.tolist() == [[0, 5], [0, 5]]


def test_the_random_selection_scales_nothing(run_layer, make_config, make_model):
    hidden, new_hidden, kept, _, layout = run_layer(MoDConfig(selection="random"))
    uniform = make_model(make_config(num_layers=2, mod=MoDConfig(selection="uniform")), seed=3)
    cache = LayerCache.empty(uniform.config.text_config)
    positions = torch.arange(layout.num_tokens) + 100
    theirs, _ = uniform.model.layers[1](hidden, layout, positions, cache, forced_kept=kept)
    assert torch.equal(new_hidden, theirs)


@pytest.mark.parametrize("insertion", BASELINES)
def test_a_baselines_layer_computes_and_caches_text_alone(run_layer, insertion):
    exit_layer = {"exit_layer": 1} if insertion == "early_exit" else {}
    hidden, new_hidden, kept, cache, layout = run_layer(MoDConfig(insertion, **exit_layer))
    assert kept.shape == (2, 0)
    assert kept.dtype == torch.int64
    frames = torch.tensor(layout.frame_index).flatten()
    assert torch.equal(new_hidden[frames], hidden[frames])
    text = torch.tensor(layout.text_index)  # including the interval token between the frames
    assert (new_hidden[text] != hidden[text]).any(dim=1).all()
    assert cache.positions.tolist() == [100 + row for row in text.tolist()]


def test_dropping_rows_keeps_key_value_and_position_together(make_config):
    cache = LayerCache.empty(make_config().text_config)
    rows = torch.arange(5.0)[:, None, None].expand(5, 2, 16)
    cache.append(rows, -rows, torch.arange(5) + 7)
    cache.keep(torch.tensor([0, 3, 4]))
    assert cache.key[:, 0, 0].tolist() == [0, 3, 4]
    assert cache.value[:, 1, 15].tolist() == [0, -3, -4]
    assert cache.positions.tolist() == [7, 10, 11]


def test_rotated_scores_depend_only_on_the_distance(make_config):
    text = make_config().text_config
    frequencies = torch.tensor(inverse_frequencies(text))
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 2, 16, generator=generator, dtype=torch.float64)

    def score(query_at, key_at):
        at = (torch.tensor([query_at]), torch.tensor([key_at]))
        return (rotate(query, at[0], frequencies) * rotate(key, at[1], frequencies)).sum(dim=-1)

    # Measured 1e-8 at a year of frames from the start; one position off gives 3.
    torch.testing.assert_close(score(700_000_009, 700_000_002), score(9, 2), rtol=0, atol=1e-7)
    torch.testing.assert_close(score(2, 2), (query * key).sum(dim=-1), rtol=0, atol=1e-12)
