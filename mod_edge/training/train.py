"""Training: streams of a data set in, a checkpoint out.

The loss is VideoLLM-online's: cross-entropy at each frame's decision (streaming loss) and at each
token of a reply (LM loss), summed with their weights and divided by the number of labels. A step
is a pure function of recipe, data, state and its number, so a training run that was killed and
resumed ends with the same weights as one that was not, provided that matrix products round equally:
on the same CPU, with the same number of threads and the same versions.
"""

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer

from mod_edge import __version__
from mod_edge.bundle.manifest import TOKENIZER_FILE, file_sha256
from mod_edge.bundle.staging import check_target, staged_folder
from mod_edge.config import ModelConfig
from mod_edge.data.clips import read_clips, split_file
from mod_edge.errors import BackendError, DataError
from mod_edge.model.checkpoint import CHECKPOINT, Checkpoint
from mod_edge.model.checkpoint_writer import write_checkpoint
from mod_edge.model.video_llm import VideoLLM
from mod_edge.model.vision import FrameEncoder
from mod_edge.plan.tokenizer import preset_tokenizer, read_tokenizer
from mod_edge.progress import OnStep
from mod_edge.training.auxiliary_loss import AuxiliaryLossMaker
from mod_edge.training.batches import Batches, check_fills_a_batch, streams_of_clips
from mod_edge.training.features import FEATURES_FOLDER, frame_features
from mod_edge.training.initial_weights import initial_model
from mod_edge.training.plot import plot_losses, require_matplotlib
from mod_edge.training.recipe import NO_AUXILIARY_LOSS, Recipe
from mod_edge.training.resume_state import ResumeState
from mod_edge.training.trainer import Trainer, recent, trained_parameters
from mod_edge.training.unjudged_pairs import UnjudgedPairs

SPLIT = "train"
TRAINING_FILE, PLOT_FILE = "training.json", "loss.png"


@dataclass(frozen=True)
class TrainingReport:
    """The result of a training run.

    Attributes:
        folder: the checkpoint that it wrote.
        steps: optimizer steps, including those before a resume.
        num_clips: clips of the training split.
        num_parameters: parameters of the model.
        num_trained: trained parameters.
        lm_loss: mean over the last steps, nats per reply token; None without reply tokens.
        stream_loss: mean over the last steps, nats per decision; None without decisions.
        time_s: of all steps.
        num_short_clips: clips whose video ends too soon (`Clip.ends_too_soon`); their lines after
            its end were not trained on.
    """

    folder: Path
    steps: int
    num_clips: int
    num_parameters: int
    num_trained: int
    lm_loss: float | None
    stream_loss: float | None
    time_s: float
    num_short_clips: int

    def to_json(self) -> dict[str, Any]:
        """A JSON document."""
        return {**asdict(self), "folder": str(self.folder)}


def train(
    data: Path,
    recipe: Recipe,
    output: Path,
    *,
    resume: bool,
    force: bool,
    on_step: OnStep,
    features: Path | None = None,
    auxiliary_losses: Mapping[str, AuxiliaryLossMaker] = MappingProxyType({}),
) -> TrainingReport:
    """Train on the training split of `data` and write the checkpoint `output`.

    The state is saved in `OUTPUT.partial/`, which is removed once `output` is complete. Until
    then it is locked, so that no other training run writes the same output.

    Args:
        data: a data set's folder (`clips`).
        recipe: the model and the settings.
        output: the folder to write.
        resume: continue an unfinished run.
        force: replace `output` if it exists, and start an unfinished run over unless `resume`.
        on_step: progress callback.
        features: folder for the vision features; None keeps them in `data`.
        auxiliary_losses: the available ones, by their names in a recipe.

    Raises:
        ModEdgeError: recipe, data, folders or device are not usable, or another training run writes
            `output`.
        KeyboardInterrupt: stopped by a stop signal; the state is saved for `resume`.
    """
    output = output.resolve()
    resume_state = ResumeState(output)
    with resume_state.locked(resume=resume):
        check_target(output, kind=CHECKPOINT, force=force)
        return _train(
            data,
            recipe,
            output,
            resume_state,
            resume=resume,
            force=force,
            on_step=on_step,
            features_folder=features or data / FEATURES_FOLDER,
            auxiliary_losses=auxiliary_losses,
        )


def _train(
    data: Path,
    recipe: Recipe,
    output: Path,
    resume_state: ResumeState,
    *,
    resume: bool,
    force: bool,
    on_step: OnStep,
    features_folder: Path,
    auxiliary_losses: Mapping[str, AuxiliaryLossMaker],
) -> TrainingReport:
    """See `train`; `resume_state` is locked."""
    require_matplotlib()
    clips = read_clips(data, SPLIT)
    # Check before features are computed, which can take hours.
    check_fills_a_batch(str(split_file(data, SPLIT)), len(clips), recipe.train)
    make_auxiliary = _auxiliary_maker(recipe.train.auxiliary_loss, auxiliary_losses)
    device = device_named(recipe.train.device)
    base = Checkpoint(recipe.init) if isinstance(recipe.init, Path) else None
    if base is not None:
        base.require_finite()
    tokenizer = _tokenizer(base, recipe)
    model = initial_model(recipe.model, base, recipe.train.seed)
    trained = trained_parameters(model, recipe.train.trainable)
    pairs = recipe.train.unjudged_pairs
    unjudged = UnjudgedPairs(pairs, tokenizer, device) if pairs else None
    move(model, device)
    identity = recipe.to_json() | {
        "init": base.fingerprint() if base else recipe.init,
        "data": file_sha256(split_file(data, SPLIT)),
    }
    resume_state.begin(resume=resume, force=force)
    state = resume_state.load(identity)  # raises before features are computed
    features = frame_features(data, clips, model, device, on_step, store=features_folder)
    num_frames = features.num_frames.tolist()
    auxiliary = None
    if make_auxiliary is not None:
        auxiliary = make_auxiliary(
            data, clips, num_frames=num_frames, config=recipe.model, device=device
        )
    trainer = Trainer(model, trained, recipe.train, device, identity, auxiliary, unjudged)
    if state is not None:
        trainer.restore(state)
    streams = streams_of_clips(clips, features, recipe.model.stream_config, tokenizer)
    trainer.run(Batches(streams, features, recipe.train), resume_state, on_step)
    fps = recipe.model.stream_config.frame_fps
    num_short = sum(
        clip.ends_too_soon(count, fps) for clip, count in zip(clips, num_frames, strict=True)
    )
    report = TrainingReport(
        folder=output,
        steps=trainer.step,
        num_clips=len(clips),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_trained=sum(parameter.numel() for parameter in trained.values()),
        lm_loss=recent(trainer.lm_losses),
        stream_loss=recent(trainer.stream_losses),
        time_s=round(trainer.time_s, 3),
        num_short_clips=num_short,
    )
    model.config = replace(model.config, untrained_parts=_untrained(recipe.model, trained))
    with staged_folder(output, kind=CHECKPOINT, force=force) as folder:
        save_model(model, tokenizer, folder)
        _write_training(folder, recipe, data, trainer, report)
    resume_state.remove()
    return report


def device_named(name: str) -> torch.device:
    """The torch device for a recipe's `device`.

    Raises:
        BackendError: CUDA is requested and not available.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise BackendError(
            'device = "cuda", but this torch finds no GPU; install a driver and a torch with CUDA, '
            'or set device = "auto"'
        )
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


def move(model: FrameEncoder, device: torch.device) -> None:
    """Move the model and its pooling matrix, which is not a parameter."""
    model.to(device)
    model.pooling = model.pooling.to(device)


def save_model(model: VideoLLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config, tokenizer and weights (in the config's dtype) into `folder`."""
    write_checkpoint(folder, model.config, tokenizer, model.state_dict().__getitem__)


def versions() -> dict[str, str]:
    """Versions of the packages that affect the results."""
    return {
        "mod_edge": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _auxiliary_maker(
    name: str, known: Mapping[str, AuxiliaryLossMaker]
) -> AuxiliaryLossMaker | None:
    if name not in (NO_AUXILIARY_LOSS, *known):
        names = ", ".join((NO_AUXILIARY_LOSS, *known))
        raise DataError(f"[train] auxiliary_loss={name!r} is unknown; known are {names}")
    return known.get(name)


def _tokenizer(base: Checkpoint | None, recipe: Recipe) -> Tokenizer:
    if base is None:
        return preset_tokenizer(recipe.model.text_config.vocab_size)
    return read_tokenizer(base.path / TOKENIZER_FILE, recipe.model)


def _untrained(config: ModelConfig, trained: Iterable[str]) -> tuple[str, ...]:
    """The parts that were untrained in `config` and that this training did not train either."""
    names = list(trained)
    return tuple(part for part in config.untrained_parts if not any(part in name for name in names))


def _write_training(
    folder: Path, recipe: Recipe, data: Path, trainer: Trainer, report: TrainingReport
) -> None:
    losses: dict[str, Sequence[float | None]] = {
        "lm": trainer.lm_losses,
        "stream": trainer.stream_losses,
    }
    if trainer.auxiliary_losses:
        losses[recipe.train.auxiliary_loss] = trainer.auxiliary_losses
    document = {
        "recipe": recipe.to_json(),
        "data": data.resolve().name,
        "report": {key: value for key, value in report.to_json().items() if key != "folder"},
        "versions": versions(),
        "losses": losses,
    }
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    (folder / TRAINING_FILE).write_text(text, encoding="utf-8")
    plot_losses(trainer.lm_losses, trainer.stream_losses, folder / PLOT_FILE)
