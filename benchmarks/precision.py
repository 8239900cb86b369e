"""`python -m benchmarks.precision`: measures what every weight format costs, in docs/precision.md.

`make precision` runs it. The bundled model is always measured; SmolLM2-135M-Instruct and the vision
tower only where their folders are given, else the page keeps their tables. Like `figures`, it
rewrites the blocks between markers and caches measurements, in build/precision/: delete that folder
to measure everything again (30 minutes on two cores).

The graphs of target cpu are exported and run. Formats that round only weights are measured on a
checkpoint of the dequantized weights, which needs no GPU: their targets differ from it only by
float16 arithmetic.
"""

import json
import platform
import pydoc_data.topics
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.figures import MARKED, ROOT, machine_name, run_mod_edge
from benchmarks.markdown import table_head
from mod_edge.bundle.staging import write_whole
from mod_edge.commands.console import out, reports_errors
from mod_edge.config import VisionConfig
from mod_edge.errors import ConfigError, ModEdgeError
from mod_edge.export.bundle_writer import graph_weights
from mod_edge.export.step_io import reference_module
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.checkpoint_writer import write_checkpoint
from mod_edge.model.quantized import quantize_model
from mod_edge.model.shipped import FOLDER
from mod_edge.plan.graph_kind import DENSE, KINDS, VISION
from mod_edge.plan.kv_window import NO_ROWS
from mod_edge.plan.signature import vision_signature
from mod_edge.plan.targets import CPU_FP32, ITEM_BYTES, Lowering
from mod_edge.plan.weight_forms import INT4, INT8, INT8_WEIGHT_ONLY, WeightForm
from mod_edge.runtime.preprocess import fit_frame

WORK = ROOT / "build" / "precision"
PAGE = ROOT / "docs" / "precision.md"
CLIP = ROOT / "tests" / "data" / "box.mp4"
PICTURES = sorted((ROOT / "tests" / "data" / "pictures").glob("*.jpg"))
LICENSE = ROOT / "LICENSE"
# Of Python's language reference, which its interpreter brings along for `help()`.
TOPICS = ("execmodel", "objects")
NUM_CLIPS = 40
TOOLS = ("torch", "onnxruntime")
IN_PYTORCH, AS_GRAPHS, DEQUANTIZED = "PyTorch", "graphs", "dequantized weights"

Measured = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A row of the tables: a weight format, as some targets have it.

    Attributes:
        targets: those that hold and multiply weights in this way.
        lowering: for the first of them.
    """

    targets: str
    lowering: Lowering

    @property
    def name(self) -> str:
        """For file names."""
        return f"{self.lowering.target}-{self.lowering.weight_format}"

    @property
    def computed_with(self) -> str:
        """How a model is run with these weights here."""
        if not self.lowering.is_quantized:
            return IN_PYTORCH
        return AS_GRAPHS if self.lowering.target == "cpu" else DEQUANTIZED


ORIGINAL = Row("all, unquantized", CPU_FP32)
ROWS = (
    ORIGINAL,
    Row("cpu", Lowering("cpu", "fp32", weight_format=INT8)),
    Row("cpu", Lowering("cpu", "fp32", weight_format=INT4)),
    Row("cuda", Lowering("cuda", "fp16", NO_ROWS, INT8_WEIGHT_ONLY)),
    Row("cuda", Lowering("cuda", "fp16", NO_ROWS, INT4)),
    Row("rtx, tensorrt, tensorrt-delta", Lowering("rtx", "fp16", NO_ROWS, INT8_WEIGHT_ONLY)),
    Row("rtx, tensorrt", Lowering("rtx", "fp16", NO_ROWS, INT4)),
)


@dataclass(frozen=True)
class Block:
    """A block of the page.

    Attributes:
        fingerprint: of the measured checkpoint.
        content: Markdown.
    """

    fingerprint: str
    content: str


@reports_errors
def main(
    llm: Annotated[
        Path | None,
        typer.Option(envvar="MOD_EDGE_REAL_LLM", help="Folder of SmolLM2-135M-Instruct."),
    ] = None,
    vision: Annotated[
        Path | None, typer.Option(envvar="MOD_EDGE_REAL_VIT", help="Folder of a SigLIP-type tower.")
    ] = None,
) -> None:
    """Measure what is not cached and rewrite the page."""
    blocks: dict[str, Block] = {}
    if llm is not None and vision is not None:
        real = Lab.of_import(llm, vision)
        blocks |= {"text": real.block(text_table), "pictures": real.block(pictures_table)}
    elif llm is not None or vision is not None:
        raise ConfigError("got one of --llm and --vision, wanted both or none")
    blocks["bundled-model"] = Lab(FOLDER).block(bundled_model_table)
    rewrite_blocks(PAGE, blocks)
    out.print(f"wrote {PAGE.relative_to(ROOT)}: {', '.join(blocks)}")


def rewrite_blocks(page: Path, blocks: dict[str, Block]) -> None:
    """Replace the content of these blocks; the rest of the page stays.

    Raises:
        ModEdgeError: the page lacks one of them.
    """
    text = page.read_text(encoding="utf-8")
    missing = blocks.keys() - {match["name"] for match in MARKED.finditer(text)}
    if missing:
        raise ModEdgeError(f"{page} has no markers for the figures {', '.join(sorted(missing))}")
    for name, block in blocks.items():
        marked = (
            f"<!-- figures: {name}, checkpoint {block.fingerprint} -->\n"
            f"{block.content}<!-- end of figures -->\n"
        )
        text = MARKED.sub(
            lambda old, name=name, new=marked: new if old["name"] == name else old[0], text
        )
    page.write_text(text, encoding="utf-8")


class Lab:
    """The cached measurements of one checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.fingerprint = Checkpoint(checkpoint).fingerprint()
        self.folder = WORK / self.fingerprint[:12]
        self.folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def of_import(cls, llm: Path, vision: Path) -> "Lab":
        """Of a checkpoint that is imported from these folders."""
        folders = f"{llm.resolve()}, {vision.resolve()}"
        checkpoint = WORK / f"imported-{sha256(folders.encode()).hexdigest()[:12]}"
        if not checkpoint.is_dir():
            run_mod_edge("import", "--llm", llm, "--vision", vision, "-o", checkpoint)
        return cls(checkpoint)

    def block(self, table: "Callable[[Lab], str]") -> Block:
        """A table as a block of the page."""
        return Block(self.fingerprint, table(self))

    def measured(self, kind: str, row: Row, measure: Callable[[], Measured]) -> Measured:
        """What `measure` returns, from its file if it ran before."""
        path = self.folder / f"{kind}-{row.name}.json"
        if not path.is_file():
            write_whole(path, json.dumps(measure() | _setting()).encode())
        found: Measured = json.loads(path.read_text(encoding="utf-8"))
        return found

    def evaluation(self, kind: str, row: Row, *options: object) -> Measured:
        """`mod-edge eval --json` of the checkpoint with the row's weights."""

        def measure() -> Measured:
            with self._model(row) as model:
                found: Measured = json.loads(run_mod_edge("eval", model, *options, "--json"))
                return found

        return self.measured(kind, row, measure)

    @contextmanager
    def _model(self, row: Row) -> Iterator[Path]:
        """The folder of a model with the row's weights; a temporary one, for it may be large."""
        if row is ORIGINAL:
            yield self.checkpoint
            return
        folder = self.folder / row.name
        shutil.rmtree(folder, ignore_errors=True)
        if row.computed_with == AS_GRAPHS:
            lowering = ("--target", row.lowering.target, "--weights", row.lowering.weight_format)
            run_mod_edge("export", self.checkpoint, "-o", folder, *lowering)
        else:
            write_dequantized(Checkpoint(self.checkpoint), row.lowering, folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def write_dequantized(checkpoint: Checkpoint, lowering: Lowering, folder: Path) -> None:
    """Write the checkpoint with the values that a lowering's quantized weights stand for.

    PyTorch then computes what a target does that rounds weights only. The head and the embedding
    table have different forms, so a tied head becomes a tensor of its own.
    """
    forms = (lowering.weight_form(kind) for kind in KINDS)
    assert not any(form and form.activations for form in forms)
    weights = dict(quantize_model(checkpoint.load_model(), lowering).named_parameters())
    text = replace(checkpoint.config.text_config, tie_word_embeddings=False)
    config = replace(checkpoint.config, text_config=text, dtype="float32")
    folder.mkdir()
    write_checkpoint(folder, config, checkpoint.tokenizer, weights.__getitem__)


# ---- measurements ----


def text_of_measurement(folder: Path) -> Path:
    """A file of English text: this repository's licence and topics of Python's reference."""
    path = folder / "text.txt"
    topics: dict[str, str] = pydoc_data.topics.topics
    parts = (LICENSE.read_text(encoding="utf-8"), *(topics[name] for name in TOPICS))
    path.write_text("\n\n".join(parts), encoding="utf-8")
    return path


def scenes_of_measurement() -> Path:
    """A data set of synthetic scenes, whose test split is that of the model card."""
    folder = WORK / "scenes"
    if not folder.is_dir():
        counts = ("--train", 0, "--validation", 0, "--test", NUM_CLIPS, "--combinations", 0)
        run_mod_edge("scenes", folder, *counts, "--photographs", CLIP)
    return folder


def cosines_with_original(checkpoint: Checkpoint, row: Row) -> Tensor:
    """(pictures * patches,), cosine of every patch's last hidden state with the unquantized one."""
    ours, theirs = (hidden_of_pictures(checkpoint, each) for each in (row.lowering, CPU_FP32))
    return cosine_similarity(ours, theirs)


@torch.inference_mode()
def hidden_of_pictures(checkpoint: Checkpoint, lowering: Lowering) -> Tensor:
    """(pictures * patches, Dv), the vision tower's last hidden states of `PICTURES`.

    By the reference, with the weights and the rounding of the lowering's form.
    """
    weights = dict(graph_weights(checkpoint, vision_signature(checkpoint.config, lowering)))
    dtypes = dict.fromkeys(weights, getattr(torch, lowering.dtype))
    encoder = reference_module(
        checkpoint.config, VISION, weights.items(), dtypes, lowering.weight_form(VISION)
    )
    frames = torch.from_numpy(frames_of_pictures(checkpoint.config.vision_config))
    hidden: Tensor = encoder.vision_model(encoder.pixel_values(frames))[0]
    return hidden.flatten(0, 1)


def frames_of_pictures(vision: VisionConfig) -> np.ndarray:
    """(pictures, I, I, 3) uint8 RGB."""
    frames = np.empty((len(PICTURES), vision.image_size, vision.image_size, 3), np.uint8)
    for path, frame in zip(PICTURES, frames, strict=True):
        picture = cv2.imread(str(path))
        assert picture is not None
        fit_frame(picture, frame, vision)
    return frames


def _setting() -> Measured:
    """When and where a measurement ran."""
    tools = [f"{name} {version(name)}" for name in TOOLS]
    return {
        "date": date.today().isoformat(),
        "setting": f"{machine_name()}; Python {platform.python_version()}, {', '.join(tools)}",
    }


# ---- tables ----


def text_table(lab: Lab) -> str:
    """Perplexity of a text, by format."""
    options = ("--text", text_of_measurement(WORK), "--window-tokens", 1024)
    found = {row: lab.evaluation("text", row, *options) for row in ROWS}
    original = found[ORIGINAL]["perplexity"]
    lines = (
        f"| {_weights_of(row, row.lowering.weight_form(DENSE))} | {each['perplexity']:.3f} | "
        f"{_change(each['perplexity'] / original - 1)} | {row.computed_with} |\n"
        for row, each in found.items()
    )
    columns = (*WEIGHTS_COLUMNS, "perplexity", "change", "computed with")
    count = found[ORIGINAL]["num_predicted"]
    return f"{table_head(*columns)}{''.join(lines)}\n{count:,} tokens. {_origin(found)}"


def pictures_table(lab: Lab) -> str:
    """Cosine of the vision tower's tokens, by the forms that vision has."""
    checkpoint = Checkpoint(lab.checkpoint)

    def measure(row: Row) -> Measured:
        cosines = cosines_with_original(checkpoint, row)
        return {"mean": float(cosines.mean()), "least": float(cosines.min())}

    forms = {row.lowering.weight_form(VISION): row for row in reversed(ROWS) if row != ORIGINAL}
    rows = [row for row in ROWS if row in forms.values()]
    found = {row: lab.measured("pictures", row, lambda row=row: measure(row)) for row in rows}
    lines = (
        f"| {_weights_of(row, row.lowering.weight_form(VISION))} | {each['mean']:.4f} | "
        f"{each['least']:.4f} |\n"
        for row, each in found.items()
    )
    columns = (*WEIGHTS_COLUMNS, "mean cosine", "least token's")
    return f"{table_head(*columns)}{''.join(lines)}\n{_origin(found)}"


def bundled_model_table(lab: Lab) -> str:
    """F1 and LM-PPL of the bundled model on synthetic scenes, by format."""
    options = ("--data", scenes_of_measurement())
    found = {row: lab.evaluation("scenes", row, *options) for row in ROWS}
    lines = []
    for row, each in found.items():
        model = each["rows"][0]
        forced, free = model["teacher_forced"], model["free_running"]
        lines.append(
            f"| {_weights_of(row, row.lowering.weight_form(DENSE))} | {free['f1']:.3f} | "
            f"{free['moment_f1']:.3f} | {forced['lm_ppl']:.3f} | {row.computed_with} |\n"
        )
    columns = (*WEIGHTS_COLUMNS, "F1", "moment F1", "LM-PPL", "computed with")
    return f"{table_head(*columns)}{''.join(lines)}\n{NUM_CLIPS} clips. {_origin(found)}"


WEIGHTS_COLUMNS = ("`--weights`", "targets", "bits per weight")


def _weights_of(row: Row, form: WeightForm | None) -> str:
    bits = bits_per_weight(form, row.lowering.dtype)
    return f"{row.lowering.weight_format} | {row.targets} | {bits:g}"


def bits_per_weight(form: WeightForm | None, dtype: str) -> float:
    """Bits that hold a linear layer's weight, with its share of a block's scale and zero point."""
    size = ITEM_BYTES[dtype]
    return 8 * (size if form is None else form.bytes_per_weight(size))


def _change(ratio: float) -> str:
    return f"{100 * ratio:+.1f} %" if ratio else ""


def _origin(found: dict[Row, Measured]) -> str:
    """When and where the measurements ran, each setting once."""
    settings = dict.fromkeys(f"{each['date']}, {each['setting']}" for each in found.values())
    return f"Measured {'; '.join(settings)}.\n"


if __name__ == "__main__":
    typer.run(main)
