"""The frame encoder around the tower: pixels in, tokens out in the documented order."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from mod_edge.model.checkpoint import tensor_shapes
from mod_edge.model.vision import POOLING_HEAD, FrameEncoder, pooling_matrix

pytestmark = pytest.mark.numeric

ATOL_POOLING = 1e-6  # measured 1e-7; a cell one patch too wide gives over 0.1
RTOL_FRAMES = 5e-6  # measured 3e-7 of the largest value


class NumberedPatches(nn.Module):
    """A tower whose patch i is all i and whose "CLS" is all -1; it stores the pixels given."""

    def __init__(self, size, num_patches):
        super().__init__()
        self.size, self.num_patches = size, num_patches

    def forward(self, pixel_values):
        self.pixel_values = pixel_values
        num_frames = len(pixel_values)
        patches = torch.arange(float(self.num_patches))[None, :, None]
        cls = torch.full((num_frames, 1, self.size), -1.0)
        return patches.expand(num_frames, -1, self.size), cls


@pytest.fixture
def numbered(make_config):
    """`numbered(**changes)`: a frame encoder with numbered patches and no connector."""

    def make(**changes):
        config = replace(make_config(), **changes)
        encoder = FrameEncoder(config).requires_grad_(False)
        vision = config.vision_config
        encoder.vision_model = NumberedPatches(vision.hidden_size, vision.num_patches)
        encoder.connector = nn.Identity()
        return encoder

    return make


@pytest.mark.parametrize(
    ("grid_size", "pooled"),
    [(24, (3, 3)), (14, (3, 3)), (4, (3, 3)), (4, (4, 4)), (7, (2, 5)), (5, (1, 1)), (27, (10, 3))],
)
def test_pooling_equals_adaptive_average_pooling(grid_size, pooled):
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(2, 6, grid_size, grid_size, generator=generator)
    theirs = adaptive_avg_pool2d(grid, pooled).flatten(2).transpose(1, 2)
    ours = pooling_matrix(grid_size, pooled) @ grid.flatten(2).transpose(1, 2)
    assert ours.shape == (2, pooled[0] * pooled[1], 6)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=ATOL_POOLING)


def test_a_frames_tokens_are_cls_first_then_the_grid_row_by_row(numbered):
    frames = torch.zeros(2, 59, 59, 3, dtype=torch.uint8)
    tokens = numbered(frame_token_pooled=(2, 4))(frames)
    # Patches 0..15 are in rows of four; a cell of the 2 x 4 grid is two rows high.
    assert tokens[:, :, 0].tolist() == [[-1, 2, 3, 4, 5, 10, 11, 12, 13]] * 2


def test_a_frame_without_cls_is_the_grid_alone(numbered):
    frames = torch.zeros(1, 59, 59, 3, dtype=torch.uint8)
    tokens = numbered(frame_token_pooled=(2, 2), frame_token_cls=False)(frames)
    assert tokens[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]


def test_a_frame_without_a_grid_is_cls_alone(numbered):
    frames = torch.zeros(2, 59, 59, 3, dtype=torch.uint8)
    assert numbered(frame_token_pooled=None)(frames)[:, :, 0].tolist() == [[-1], [-1]]


def test_a_model_without_cls_has_no_pooling_head(make_config):
    names = tensor_shapes(replace(make_config(), frame_token_cls=False))
    assert not [name for name in names if name.startswith(POOLING_HEAD)]
    others = {name for name in tensor_shapes(make_config()) if not name.startswith(POOLING_HEAD)}
    assert names.keys() == others


def test_bytes_become_minus_one_to_one_with_channels_first(numbered):
    encoder = numbered()
    frames = torch.zeros(1, 59, 59, 3, dtype=torch.uint8)
    frames[0, 2, 5] = torch.tensor([0, 51, 255], dtype=torch.uint8)  # row 2, column 5
    encoder(frames)
    pixel_values = encoder.vision_model.pixel_values
    assert pixel_values.shape == (1, 3, 59, 59)
    torch.testing.assert_close(pixel_values[0, :, 2, 5], torch.tensor([-1.0, -0.6, 1.0]))
    assert (pixel_values[0, :, 5, 2] == -1).all()


def test_each_channel_has_a_mean_and_a_deviation_of_its_own(numbered, make_config):
    vision = replace(
        make_config().vision_config, image_mean=(0.0, 0.2, 1.0), image_std=(0.5, 0.25, 2.0)
    )
    encoder = numbered(vision_config=vision)
    frames = torch.zeros(1, 59, 59, 3, dtype=torch.uint8)
    frames[0, 2, 5] = torch.tensor([51, 51, 255], dtype=torch.uint8)
    encoder(frames)
    pixel_values = encoder.vision_model.pixel_values
    torch.testing.assert_close(pixel_values[0, :, 2, 5], torch.tensor([0.4, 0.0, 0.0]))
    torch.testing.assert_close(pixel_values[0, :, 5, 2], torch.tensor([0.0, -0.8, -0.5]))


def test_frames_are_encoded_independently(make_config, make_model):
    model = make_model(make_config())
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (3, 59, 59, 3), dtype=torch.uint8, generator=generator)
    together = model(frames)
    assert together.shape == (3, 10, 48)
    alone = torch.cat([model(frame[None]) for frame in frames])
    assert (together - alone).abs().max() <= RTOL_FRAMES * alone.abs().max()
    assert (alone[0] - alone[1]).abs().max() > 0.1 * alone.abs().max()  # the frames differ
