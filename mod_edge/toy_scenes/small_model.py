"""The base checkpoint of the bundled model: its geometry, tokenizer and pretrained vision tower.

Its vision tower comes from `pretraining`; its connector and decoder are untrained.
"""

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from mod_edge.bundle.staging import staged_folder
from mod_edge.config import MoDConfig, ModelConfig, TextConfig, VisionConfig
from mod_edge.model.checkpoint import CHECKPOINT
from mod_edge.plan.tokenizer import INTERVAL, SYSTEM_PROMPT, stream_config_of, tokenizer_of_corpus
from mod_edge.progress import OnStep
from mod_edge.toy_scenes.pretraining import PretrainingOptions, pretrain_vision
from mod_edge.toy_scenes.scene_generator import write_scene
from mod_edge.training.initial_weights import initial_model
from mod_edge.training.train import save_model

VOCAB_SIZE = 1024
NUM_CORPUS_SCENES = 400  # contain every word and phrase of the captions
CORPUS_SEED = 400_000_000  # not used by data sets with a seed below 40
CORPUS_SCENE_S = 30.0
STEPS_SHOWN = 100


def small_config(tokenizer: Tokenizer) -> ModelConfig:
    """The config with `scene_tokenizer`: 3.3 million parameters, MoD interleaved with r = 0.2."""
    text = TextConfig(192, 512, 6, 6, 2, 32, VOCAB_SIZE, tie_word_embeddings=True)
    vision = VisionConfig(128, 384, 3, 4, image_size=96, patch_size=12)
    return ModelConfig(text, vision, stream_config_of(tokenizer), MoDConfig(), dtype="float16")


def scene_tokenizer() -> Tokenizer:
    """A tokenizer with one token for each word of the captions."""
    return tokenizer_of_corpus(_corpus(), VOCAB_SIZE, VOCAB_SIZE)


def _corpus() -> Iterator[str]:
    yield f"{SYSTEM_PROMPT}\n\n["
    yield INTERVAL
    for seed in range(CORPUS_SEED, CORPUS_SEED + NUM_CORPUS_SCENES):
        # Held-out combinations use the same words.
        for each in write_scene(seed, CORPUS_SCENE_S, held_out=False).happenings:
            question = "" if each.query is None else f"\nUser: {each.query}"
            yield f"]{question}\nAssistant: {each.text}"


def write_base(
    folder: Path,
    *,
    photographs: Path | None,
    options: PretrainingOptions,
    force: bool,
    on_step: OnStep,
) -> None:
    """Write the checkpoint from which the bundled model was trained.

    `photographs` is a video to cut backgrounds from; `force` replaces an existing checkpoint.

    Raises:
        ConfigError: `folder` exists and `force` is not set, or it is not a checkpoint.
        SourceError: the photographs cannot be read.
    """
    tokenizer = scene_tokenizer()
    config = small_config(tokenizer)
    model = initial_model(config, None, options.seed)
    losses: list[float] = []

    def note(step: int, loss: float) -> None:
        losses.append(loss)
        if step % STEPS_SHOWN == 0:
            mean = sum(losses[-STEPS_SHOWN:]) / STEPS_SHOWN
            on_step(f"step {step}, loss {mean:.3f}", step, options.steps)

    with staged_folder(folder, kind=CHECKPOINT, force=force) as staging:
        pretrain_vision(model, config, options, photographs=photographs, on_step=note)
        save_model(model, tokenizer, staging)
