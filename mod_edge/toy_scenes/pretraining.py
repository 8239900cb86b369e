"""Pretrains the small vision tower of the bundled model.

The published models start from a pretrained SigLIP. The bundled model's tower is trained on
pictures of synthetic scenes, with linear probes on known targets: each patch predicts the colour
and shape that it shows and how much of them it shows where, each pooled token the same of its cell,
and the pooled "CLS" token the colours and shapes in the picture and each colour's shape, place and
size. The patches are asked for the shape and the place of every colour, too: CLS is an average of
them, and does not find out by itself which colour goes with which shape. The probes are linear and
discarded afterwards, so that a decoder can read the same facts from the tokens.

Held-out combinations of colour and shape are never shown, and no loss rules them out: beside a red
patch "star" is not among the classes to choose from, and how much of it is there is not judged.
Some pictures are grey, with shapes as their only targets, so that a shape does not depend on its
colour.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss, pad
from torch.utils.data import DataLoader, Dataset

from mod_edge.config import ModelConfig
from mod_edge.errors import DataError
from mod_edge.model.vision import FrameEncoder, VisionTower
from mod_edge.native.cpu_cores import usable_cores
from mod_edge.native.worker_death import death_of
from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.runtime.preprocess import fit_frame
from mod_edge.toy_scenes.render import PHOTOGRAPH_FPS, Image, Renderer, photographs_of
from mod_edge.toy_scenes.scene import COLOURS, HELD_OUT, SHAPES, Look
from mod_edge.toy_scenes.scene_generator import write_scene
from mod_edge.toy_scenes.scenes import VIDEO_SIZE
from mod_edge.training.train import device_named, move

NUM_COLOURS, NUM_SHAPES = len(COLOURS), len(SHAPES)
FIRST_SEED = 500_000_000  # not used by data sets with a seed below 40
SCENE_S = 20.0
PICTURES_A_SCENE = 8
GREY_SHARE = 0.15
MOST_WORKERS = 12  # processes that draw pictures, for a GPU
CORES_A_WORKER = 3  # on a CPU, where a step computes for twice as long as its pictures are drawn
OWNER_CELLS = 4  # samples along a patch's side to find what it shows
IGNORED = -100  # cross_entropy's default ignore_index
# Share of a patch that one class covers: below the first it counts as none, from the second as that
# class, and in between it is ignored.
LEAST_SHARE, SURE_SHARE = 0.05, 0.3
LEAST_OWNED = 3  # an object with more samples than this is present
COVER_GAIN = 10.0  # because shares of a cell are small numbers
PLACE_GAIN = 20.0
# (colours, shapes) bool
HELD_OUT_PAIRS = torch.tensor(
    [[(colour, shape) in HELD_OUT for shape in SHAPES] for colour in COLOURS]
)
NUM_AMOUNTS = 3 * NUM_COLOURS + NUM_SHAPES
# For a colour's centre and side in the picture: scaled, each has a deviation of about 1.
WHERE_GAINS, USUAL_SIDE = (4.0, 4.0, 20.0), 0.2
# Of losses; all others have weight 1.
AMOUNTS_WEIGHT, PRESENT_WEIGHT, WHERE_WEIGHT = 0.1, 0.3, 2.5
LEAST_WEIGHT = 1e-6  # keeps the mean of nothing at 0
NOTHING_WEIGHT = 0.15  # of patches that show no object, which are most
NUM_EVEN_BATCHES = 20  # batches over which the outputs are normalized
# Of the initial position embeddings: their deviation and their slowest and fastest waves per side.
POSITION_DEVIATION, SLOWEST_WAVE, FASTEST_WAVE = 0.35, 0.25, 2.8
RESIDUAL_OUTPUTS = ("out_proj.weight", "fc2.weight")
JPEG_QUALITY = (50, 95)  # pictures are compressed like the frames of a video
DEATH_S = 1.0  # its connections break before a dying process has its exit code

Maps = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PretrainingOptions:
    """Settings of the vision tower's training."""

    steps: int = 12_000
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
        self.patch_facts = ColourFacts(size)
        self.amounts = nn.Linear(size, NUM_AMOUNTS)
        self.present = nn.Linear(size, NUM_COLOURS + NUM_SHAPES)
        self.cls_facts = ColourFacts(size)


class ColourFacts(nn.Module):
    """Linear probes for the shape, place and size of every colour in the picture."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.shape = nn.Linear(size, NUM_COLOURS * NUM_SHAPES)
        self.where = nn.Linear(size, len(WHERE_GAINS) * NUM_COLOURS)

    def losses(self, states: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The losses of shapes and of places that `states` (B, tokens, Dv) give."""
        where = batch["where"][:, None].expand(-1, states.shape[1], -1)
        place = known_error(self.where(states), where)
        shapes = self.shape(states).unflatten(-1, (NUM_COLOURS, NUM_SHAPES))
        possible = shapes.masked_fill(HELD_OUT_PAIRS.to(shapes.device), -torch.inf)
        shape_of = batch["shape_of"][:, None].expand(possible.shape[:-1])
        return known_entropy(possible.flatten(0, 2), shape_of.flatten()), place


def known_error(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error where `wanted` is not NaN; 0 if it is nowhere known."""
    is_known = ~wanted.isnan()
    errors = mse_loss(found[is_known], wanted[is_known], reduction="sum")
    return errors / is_known.sum().clamp(min=1)


def known_entropy(logits: Tensor, classes: Tensor, *, last_weight: float = 1.0) -> Tensor:
    """The mean cross-entropy where `classes` is not `IGNORED`; 0 if it is nowhere known.

    In the mean the last class counts `last_weight`, all others 1.
    """
    weight = torch.ones(logits.shape[1], device=logits.device)
    weight[-1] = last_weight
    losses = cross_entropy(logits, classes, weight, ignore_index=IGNORED, reduction="sum")
    return losses / weight[classes[classes != IGNORED]].sum().clamp(min=LEAST_WEIGHT)


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
    device = device_named("auto")
    count = _num_workers(device)
    try:
        with _cores_left_for(count if device.type == "cpu" else 0):
            _train(
                encoder,
                config,
                options,
                photographs,
                on_step,
                workers,
                device=device,
                num_workers=count,
            )
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
    *,
    device: torch.device,
    num_workers: int,
) -> None:
    """Train; appends the processes that draw pictures, `num_workers`, to `workers`."""
    torch.manual_seed(options.seed)
    move(encoder, device)
    vision = encoder.vision_model.requires_grad_(requires_grad=True)
    _initialise(vision)
    probes = LinearProbes(config.vision_config.hidden_size).to(device)
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
    batches = iter(
        DataLoader(
            PictureBatches(config, options, photographs),
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=4,
            multiprocessing_context="spawn",  # OpenCV's threads do not survive a fork
        )
    )
    workers += active_children()
    dtype = getattr(torch, options.dtype)
    for step in range(1, options.steps + 1):
        batch = {name: each.to(device) for name, each in next(batches).items()}
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            hidden, cls = vision(encoder.pixel_values(batch["picture"]))
        loss = _loss(probes, encoder.pooling, hidden.float(), cls.float(), batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        on_step(step, loss.item())
    even_out(encoder, [each["picture"].to(device) for each in batches])
    move(encoder, torch.device("cpu"))


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


def _num_workers(device: torch.device) -> int:
    cores = usable_cores()
    if device.type == "cpu":
        return max(1, cores // CORES_A_WORKER)
    return min(MOST_WORKERS, max(1, cores - 1))


@contextmanager
def _cores_left_for(num_workers: int) -> Iterator[None]:
    """Let PyTorch compute on fewer cores: a thread that waits for one holds up all its threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(max(1, num_threads - num_workers))
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _initialise(vision: VisionTower) -> None:
    """Matrices preserve the scale of their input, all of a block's outputs together that of its.

    With GPT-2's deviation of 0.02 for all, made for wide models, patches hardly exchange anything
    in the first thousands of steps.
    """
    num_outputs = 2 * len(vision.encoder.layers)
    for name, parameter in vision.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif "norm" in name:
            nn.init.ones_(parameter)
        elif "position" in name:
            with torch.no_grad():
                parameter.copy_(waves(*parameter.shape))
        else:
            is_output = name.startswith("encoder") and name.endswith(RESIDUAL_OUTPUTS)
            num_added = num_outputs if is_output else 1
            nn.init.normal_(parameter, std=(num_added * parameter[0].numel()) ** -0.5)


def waves(num_patches: int, size: int) -> Tensor:
    """(patches, size): sines and cosines of each patch's place, as position embeddings.

    Random ones say which patch it is, but not where: colours' places took three times as many
    steps.
    """
    side = math.isqrt(num_patches)
    middles = (torch.arange(side) + 0.5) / side
    x, y = middles.repeat(side), middles.repeat_interleave(side)
    frequencies = torch.logspace(
        math.log2(SLOWEST_WAVE), math.log2(FASTEST_WAVE), size // 4, base=2.0
    )
    angles = 2 * torch.pi * torch.stack([x, y], dim=1)[..., None] * frequencies
    pairs = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return math.sqrt(2) * POSITION_DEVIATION * pairs.flatten(1)


def _loss(
    probes: LinearProbes,
    pooling: Tensor,
    hidden: Tensor,
    cls: Tensor,
    batch: dict[str, Tensor],
) -> Tensor:
    """The loss of patches (B, patches, Dv), of their pooled cells and of CLS (B, 1, Dv)."""
    present, is_known = batch["present"], ~batch["present"].isnan()
    present_loss = binary_cross_entropy_with_logits(
        probes.present(cls)[:, 0][is_known], present[is_known]
    )
    patch_shape_of, patch_where = probes.patch_facts.losses(hidden, batch)
    cls_shape_of, cls_where = probes.cls_facts.losses(cls, batch)
    return (
        patch_loss(probes.patch(hidden).flatten(0, 1), batch)
        + AMOUNTS_WEIGHT * known_error(probes.amounts(hidden), batch["amounts"])
        + known_error(probes.amounts(pooling @ hidden), pooled(pooling, batch["amounts"]))
        + PRESENT_WEIGHT * present_loss
        + WHERE_WEIGHT * (patch_where + cls_where)
        + patch_shape_of
        + cls_shape_of
    )


def pooled(pooling: Tensor, amounts: Tensor) -> Tensor:
    """The amounts of cells, NaN where those of any of their patches are."""
    is_unknown = (pooling > 0).float() @ amounts.isnan().float() > 0
    return (pooling @ amounts.nan_to_num()).masked_fill(is_unknown, torch.nan)


def patch_loss(patch: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """The loss of each patch's colour and shape, both with "nothing", (patches, classes)."""
    colour, shape = patch.split([NUM_COLOURS + 1, NUM_SHAPES + 1], dim=1)
    is_colour, is_shape = batch["patch_colour"].flatten(), batch["patch_shape"].flatten()
    held_out = pad(HELD_OUT_PAIRS.to(patch.device), (0, 1, 0, 1))  # nothing goes with all
    colour = _without(colour, held_out.T, beside=is_shape, wanted=is_colour)
    shape = _without(shape, held_out, beside=is_colour, wanted=is_shape)
    return known_entropy(colour, is_colour, last_weight=NOTHING_WEIGHT) + known_entropy(
        shape, is_shape, last_weight=NOTHING_WEIGHT
    )


def _without(logits: Tensor, held_out: Tensor, *, beside: Tensor, wanted: Tensor) -> Tensor:
    """The logits (patches, classes), -inf for what is held out beside each patch's other class.

    A wanted class stays: where two objects share a patch, one gives its colour, the other its
    shape.
    """
    nothing = len(held_out) - 1
    unjudged = held_out[torch.where(beside == IGNORED, nothing, beside)]
    classes = torch.arange(logits.shape[1], device=logits.device)
    return logits.masked_fill(unjudged & (classes != wanted[:, None]), -torch.inf)


class PictureBatches(Dataset[dict[str, Tensor]]):
    """Batches of pictures with the targets of all probes, one for each step and for evening out.

    Each is a pure function of the seed and its number, so any number of processes draw the same.
    """

    def __init__(
        self, config: ModelConfig, options: PretrainingOptions, photographs: Path | None
    ) -> None:
        self._config, self._options = config, options
        self._photographs = photographs

    def __len__(self) -> int:
        return self._options.steps + NUM_EVEN_BATCHES

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        if number >= len(self):
            raise IndexError(number)
        cv2.setNumThreads(1)
        options = self._options
        num_scenes = -(-options.batch_pictures // PICTURES_A_SCENE)
        seed = FIRST_SEED + 10_000_000 * options.seed + number * num_scenes
        examples: list[dict[str, Tensor]] = []
        for scene_seed in range(seed, seed + num_scenes):
            num_left = options.batch_pictures - len(examples)
            examples += self._examples(scene_seed, min(PICTURES_A_SCENE, num_left))
        return {name: torch.stack([each[name] for each in examples]) for name in examples[0]}

    def _examples(self, scene_seed: int, count: int) -> list[dict[str, Tensor]]:
        """Pictures of one scene, each with its targets."""
        photographs = photographs_of(self._photographs) if self._photographs else ()
        scene = write_scene(scene_seed, SCENE_S, held_out=False)
        renderer = Renderer(scene, VIDEO_SIZE, photographs)
        rng = np.random.default_rng([scene_seed, 4])
        vision = self._config.vision_config
        side = vision.image_size
        examples = []
        for time_s in rng.uniform(0, SCENE_S, count):
            is_grey = rng.random() < GREY_SHARE
            frame = renderer.frame(time_s)
            shown = _greyed(frame) if is_grey else frame
            picture = np.empty((side, side, 3), np.uint8)
            fit_frame(_compressed(shown, int(rng.integers(*JPEG_QUALITY))), picture, vision)
            owners = renderer.owners(time_s, OWNER_CELLS * vision.grid_size)
            looks = scene.looks(time_s)
            targets = probe_targets(looks, owners, vision.grid_size, is_grey=is_grey)
            examples.append({"picture": torch.from_numpy(picture), **targets})
        return examples


def probe_targets(
    looks: list[Look], owners: Image, grid: int, *, is_grey: bool = False
) -> dict[str, Tensor]:
    """The targets of the probes for one picture.

    Args:
        looks: the objects.
        owners: (side, side), a side divisible by `grid`; see `Renderer.owners`.
        grid: patches along a side.
        is_grey: the picture shows no colours, so no target depends on one.

    Returns:
        patch_colour, patch_shape (patches,) int64, the number of classes for none, `IGNORED` where
        unclear; amounts (patches, targets) float32, the shares of each patch that each colour and
        shape covers and the shares of the colours times their places, and present (classes,)
        float32, both NaN where unknown; shape_of (colours,) int64, the shape of each colour,
        `IGNORED` for those that are not present; where (colours*3,) float32, NaN for those.
    """
    side = len(owners)
    cover = np.zeros((NUM_COLOURS + NUM_SHAPES, side, side), np.float32)
    shape_of = np.full(NUM_COLOURS, IGNORED)
    for index, look in enumerate(looks):
        is_own = owners == index
        colour, shape = COLOURS.index(_main_colour(look)), SHAPES.index(look.shape)
        cover[colour] += is_own
        cover[NUM_COLOURS + shape] += is_own
        if is_own.sum() > LEAST_OWNED:
            shape_of[colour] = shape
    y, x = (np.mgrid[0:side, 0:side].astype(np.float32) + 0.5) / side - 0.5
    colours = cover[:NUM_COLOURS]
    places = PLACE_GAIN * np.concatenate([colours * x, colours * y])
    amounts = _means(np.concatenate([cover, places]), grid)
    shares = amounts[:, : NUM_COLOURS + NUM_SHAPES].copy()
    amounts[:, : NUM_COLOURS + NUM_SHAPES] *= COVER_GAIN
    present = (cover.sum(axis=(1, 2)) > LEAST_OWNED).astype(np.float32)
    patch_colour = _classes(shares[:, :NUM_COLOURS])
    where = _where(colours, x, y, present[:NUM_COLOURS] > 0)
    if is_grey:
        amounts[:, :NUM_COLOURS] = amounts[:, NUM_COLOURS + NUM_SHAPES :] = np.nan
        present[:NUM_COLOURS] = where[:] = np.nan
        patch_colour[:] = shape_of[:] = IGNORED
    else:
        unjudged = _unjudged(shares)
        amounts[:, : NUM_COLOURS + NUM_SHAPES][unjudged] = np.nan
        of_colours = np.tile(unjudged[:, :NUM_COLOURS], 2)  # in x and in y
        amounts[:, NUM_COLOURS + NUM_SHAPES :][of_colours] = np.nan
        present[_unjudged(present[None])[0]] = np.nan
    return {
        "patch_colour": patch_colour,
        "patch_shape": _classes(shares[:, NUM_COLOURS:]),
        "amounts": torch.from_numpy(amounts),
        "present": torch.from_numpy(present),
        "shape_of": torch.from_numpy(shape_of),
        "where": torch.from_numpy(where),
    }


def _unjudged(shares: Maps) -> npt.NDArray[np.bool_]:
    """Where a colour or shape (places, classes) is absent, but held out with one that is there."""
    held_out = HELD_OUT_PAIRS.numpy()
    is_there = shares > 0
    colours, shapes = is_there[:, :NUM_COLOURS], is_there[:, NUM_COLOURS:]
    beside = np.concatenate([shapes @ held_out.T, colours @ held_out], axis=1)
    return beside & ~is_there


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


def _greyed(picture: Image) -> Image:
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), np.uint8)


def _compressed(picture: Image, quality: int) -> Image:
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
