"""Pretrains the small vision tower of the bundled model.

The published models start from a pretrained SigLIP. The bundled model's tower is trained on
pictures of synthetic scenes, with linear probes on known targets: each patch predicts the colour
and shape that it shows, each pooled token the amount and place of every colour and shape in its
cell, and the pooled "CLS" token the colours and shapes in the picture and each colour's place and
size. The probes are linear and discarded afterwards, so that a decoder can read the same facts from
the tokens. Held-out combinations are never shown.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from torch.utils.data import DataLoader, IterableDataset

from mod_edge.config import ModelConfig
from mod_edge.errors import DataError
from mod_edge.model.vision import FrameEncoder, pooling_matrix
from mod_edge.native.worker_death import death_of
from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.runtime.preprocess import fit_frame
from mod_edge.toy_scenes.render import PHOTOGRAPH_FPS, Image, Renderer, photographs_of
from mod_edge.toy_scenes.scene import COLOURS, SHAPES, Look
from mod_edge.toy_scenes.scene_generator import write_scene
from mod_edge.toy_scenes.scenes import VIDEO_SIZE

NUM_COLOURS, NUM_SHAPES = len(COLOURS), len(SHAPES)
FIRST_SEED = 500_000_000  # not used by data sets with a seed below 40
SCENE_S = 20.0
PICTURES_A_SCENE = 8
OWNER_CELLS = 4  # samples along a patch's side to find what it shows
IGNORED = -100  # cross_entropy's default ignore_index
# Share of a patch that one class covers: below the first it counts as none, from the second as that
# class, and in between it is ignored.
LEAST_SHARE, SURE_SHARE = 0.05, 0.3
LEAST_OWNED = 3  # an object with more samples than this is present
COVER_GAIN = 10.0  # because shares of a cell are small numbers
PLACE_GAIN = 20.0
NUM_CELL_TARGETS = 3 * NUM_COLOURS + NUM_SHAPES
# For a colour's centre and side in the picture: scaled, each has a deviation of about 1.
WHERE_GAINS, USUAL_SIDE = (4.0, 4.0, 20.0), 0.2
NUM_EVEN_BATCHES = 20  # batches over which the outputs are normalized
DEVIATION, PATCH_DEVIATION = 0.02, 0.05  # of initial weights; larger for pixels, a smaller input
JPEG_QUALITY = (50, 95)  # pictures are compressed like the frames of a video
DEATH_S = 1.0  # its connections break before a dying process has its exit code

Maps = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PretrainingOptions:
    """Settings of the vision tower's training."""

    steps: int = 5000
    batch_pictures: int = 64
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup_ratio: float = 0.05
    seed: int = 0
    dtype: str = "bfloat16"


class LinearProbes(nn.Module):
    """The linear probes on patches, cells and CLS."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.patch = nn.Linear(size, NUM_COLOURS + NUM_SHAPES + 2)  # each with "nothing"
        self.cell = nn.Linear(size, NUM_CELL_TARGETS)
        self.cls = nn.Linear(size, NUM_COLOURS + NUM_SHAPES)
        self.where = nn.Linear(size, len(WHERE_GAINS) * NUM_COLOURS)


def pretrain_vision(
    encoder: FrameEncoder,
    config: ModelConfig,
    options: PretrainingOptions,
    *,
    photographs: Path | None = None,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> None:
    """Train the vision tower of `encoder` (float32) from scratch; its connector does not change.

    `photographs` is a video to cut backgrounds from; `on_step` is called with each step's number,
    from 1, and its loss.

    Raises:
        SourceError: the photographs cannot be read.
        DataError: the process that draws the pictures died.
    """
    if photographs:  # checked here, because the drawing process would print a whole traceback
        VideoFile(photographs, fps=PHOTOGRAPH_FPS).close()
    workers: list[BaseProcess] = []
    try:
        _train(encoder, config, options, photographs, on_step, workers)
    except Exception:  # PyTorch reports a dead worker at any line, as errors of many types
        for worker in workers:
            worker.join(DEATH_S)
        if not any(worker.exitcode for worker in workers):
            raise
    else:
        return
    # Outside `except`, whose traceback keeps the loader: it would report its worker again.
    raise DataError(f"the process that draws pictures died: {death_of(workers)}")


def _train(
    encoder: FrameEncoder,
    config: ModelConfig,
    options: PretrainingOptions,
    photographs: Path | None,
    on_step: Callable[[int, float], None],
    workers: list[BaseProcess],
) -> None:
    """Train; appends the processes that draw pictures to `workers`."""
    torch.manual_seed(options.seed)
    vision = encoder.vision_model.requires_grad_(requires_grad=True)
    _initialise(vision)
    probes = LinearProbes(config.vision_config.hidden_size)
    parameters = [*vision.parameters(), *probes.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=options.learning_rate,
        total_steps=options.steps,
        pct_start=options.warmup_ratio,
    )
    pictures = iter(
        DataLoader(
            Pictures(config, options.seed, photographs),
            batch_size=options.batch_pictures,
            num_workers=1,
            prefetch_factor=4,
            multiprocessing_context="spawn",  # OpenCV's threads do not survive a fork
        )
    )
    workers += active_children()
    dtype = getattr(torch, options.dtype)
    for step in range(1, options.steps + 1):
        batch = next(pictures)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            hidden, cls = vision(encoder.pixel_values(batch["picture"]))
        loss = _loss(probes, encoder.pooling, hidden.float(), cls.float()[:, 0], batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        on_step(step, loss.item())
    even_out(encoder, [next(pictures)["picture"] for _ in range(NUM_EVEN_BATCHES)])


@torch.no_grad()
def even_out(encoder: FrameEncoder, pictures: Sequence[Tensor]) -> None:
    """Give every channel of the pooled tokens mean 0 and deviation 1; CLS does not change.

    Otherwise the common part of all pictures outweighs their differences, and a decoder, whose
    norms pass on only a token's direction, hardly sees them.

    Args:
        encoder: its tower's last norm and the pooling head's projections of it are changed.
        pictures: (B, I, I, 3) uint8 each, over which mean and deviation are computed.
    """
    cells = torch.cat([encoder.frame_tokens(each)[:, encoder.has_cls :] for each in pictures])
    deviation, mean = torch.std_mean(cells.flatten(0, 1), dim=0)
    vision = encoder.vision_model
    vision.post_layernorm.weight.div_(deviation)
    vision.post_layernorm.bias.sub_(mean).div_(deviation)
    assert vision.head is not None, "the bundled model has CLS"
    attention = vision.head.attention
    key_value = slice(len(mean), None)  # the query is a learned probe, not a projection
    attention.in_proj_bias[key_value] += attention.in_proj_weight[key_value] @ mean
    attention.in_proj_weight[key_value] *= deviation


def _initialise(vision: nn.Module) -> None:
    for name, parameter in vision.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif "norm" in name:
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=PATCH_DEVIATION if "patch" in name else DEVIATION)


def _loss(
    probes: LinearProbes, pooling: Tensor, hidden: Tensor, cls: Tensor, batch: dict[str, Tensor]
) -> Tensor:
    """The loss of patches (B, patches, Dv), of their pooled cells and of CLS (B, Dv)."""
    patch = probes.patch(hidden).flatten(0, 1)
    colour, shape = patch.split([NUM_COLOURS + 1, NUM_SHAPES + 1], dim=1)
    is_there = ~batch["where"].isnan()
    return (
        cross_entropy(colour, batch["patch_colour"].flatten(), ignore_index=IGNORED)
        + cross_entropy(shape, batch["patch_shape"].flatten(), ignore_index=IGNORED)
        + mse_loss(probes.cell(pooling @ hidden), batch["cell"])
        + 0.3 * binary_cross_entropy_with_logits(probes.cls(cls), batch["present"])
        + 0.5 * mse_loss(probes.where(cls)[is_there], batch["where"][is_there])
    )


class Pictures(IterableDataset[dict[str, Tensor]]):
    """Pictures of an endless series of scenes, with the targets of all probes."""

    def __init__(self, config: ModelConfig, seed: int, photographs: Path | None) -> None:
        self._config, self._seed = config, seed
        self._photographs = photographs

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        cv2.setNumThreads(1)
        photographs = photographs_of(self._photographs) if self._photographs else ()
        rng = np.random.default_rng(self._seed)
        scene_seed = FIRST_SEED + 10_000_000 * self._seed
        vision = self._config.vision_config
        side = vision.image_size
        pooling = pooling_matrix(vision.grid_size, self._config.frame_token_pooled)
        while True:
            scene = write_scene(scene_seed, SCENE_S, held_out=False)
            renderer = Renderer(scene, VIDEO_SIZE, photographs)
            scene_seed += 1
            for time_s in rng.uniform(0, SCENE_S, PICTURES_A_SCENE):
                quality = int(rng.integers(*JPEG_QUALITY))
                picture = np.empty((side, side, 3), np.uint8)
                fit_frame(_compressed(renderer.frame(time_s), quality), picture, vision)
                owners = renderer.owners(time_s, OWNER_CELLS * vision.grid_size)
                yield {
                    "picture": torch.from_numpy(picture),
                    **probe_targets(self._config, pooling, scene.looks(time_s), owners),
                }


def probe_targets(
    config: ModelConfig, pooling: Tensor, looks: list[Look], owners: Image
) -> dict[str, Tensor]:
    """The targets of the probes for one picture.

    Args:
        config: the model's config, for its patches and cells.
        pooling: (cells, patches), see `pooling_matrix`.
        looks: the objects.
        owners: (side, side), a side divisible by the patch grid; see `Renderer.owners`.

    Returns:
        patch_colour, patch_shape (patches,) int64, the number of classes for none, `IGNORED` where
        unclear; cell (rows*columns, targets) float32; present (classes,) float32; where
        (colours*3,) float32, NaN for colours that are not present.
    """
    side = len(owners)
    cover = np.zeros((NUM_COLOURS + NUM_SHAPES, side, side), np.float32)
    for index, look in enumerate(looks):
        is_own = owners == index
        cover[COLOURS.index(_main_colour(look))] += is_own
        cover[NUM_COLOURS + SHAPES.index(look.shape)] += is_own
    y, x = (np.mgrid[0:side, 0:side].astype(np.float32) + 0.5) / side - 0.5
    colours = cover[:NUM_COLOURS]
    places = PLACE_GAIN * np.concatenate([colours * x, colours * y])
    # Means per patch first: cells are pooled from patches and may overlap.
    patches = _means(np.concatenate([cover, places]), config.vision_config.grid_size)
    shares = patches[:, : NUM_COLOURS + NUM_SHAPES].copy()
    patches[:, : NUM_COLOURS + NUM_SHAPES] *= COVER_GAIN
    present = cover.sum(axis=(1, 2)) > LEAST_OWNED
    return {
        "patch_colour": _classes(shares[:, :NUM_COLOURS]),
        "patch_shape": _classes(shares[:, NUM_COLOURS:]),
        "cell": torch.from_numpy(pooling.numpy() @ patches),
        "present": torch.from_numpy(present.astype(np.float32)),
        "where": torch.from_numpy(_where(colours, x, y, present[:NUM_COLOURS])),
    }


def _where(colours: Maps, x: Maps, y: Maps, is_present: npt.NDArray[np.bool_]) -> Maps:
    """(colours*3,): the centre of each colour's visible part, and the side of an equal square."""
    shares = colours.mean(axis=(1, 2))
    with np.errstate(invalid="ignore"):  # 0 / 0 for absent colours
        middles = [(colours * place).mean(axis=(1, 2)) / shares for place in (x, y)]
    wheres = np.stack([*middles, np.sqrt(shares) - USUAL_SIDE], axis=1)
    wheres[~is_present] = np.nan
    return (wheres * np.array(WHERE_GAINS, np.float32)).flatten()


def _means(maps: Maps, grid: int) -> Maps:
    """(patches, maps): the mean of each map (maps, side, side) over each patch."""
    count, side, _ = maps.shape
    cut = maps.reshape(count, grid, side // grid, grid, side // grid)
    means: Maps = cut.mean(axis=(2, 4)).reshape(count, -1).T
    return np.ascontiguousarray(means)


def _classes(shares: Maps) -> Tensor:
    """(patches,): the class that covers most of each patch; the number of classes for none."""
    most, which = shares.max(axis=1), shares.argmax(axis=1)
    classes = np.where(most >= SURE_SHARE, which, IGNORED)
    return torch.from_numpy(np.where(most < LEAST_SHARE, shares.shape[1], classes))


def _main_colour(look: Look) -> str:
    return look.next_colour if look.blend >= 0.5 else look.colour


def _compressed(picture: Image, quality: int) -> Image:
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
