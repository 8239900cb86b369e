"""`python -m benchmarks.figures`: measures every table and picture of the bundled model.

`make figures` runs it. It measures with the public commands, draws the terminal picture and
rewrites the blocks between markers in the pages:

    <!-- figures: NAME, checkpoint FINGERPRINT -->
    ...
    <!-- end of figures -->

Measurements are cached in build/figures/, in a folder named by the fingerprint. Delete the folder
to measure everything again (30 minutes on two cores).
"""

import base64
import functools
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from benchmarks.endless_scene import endless_table, narrate
from benchmarks.markdown import ratio_text, table_head
from mod_edge.bundle.staging import write_whole
from mod_edge.commands.console import err, out, reports_errors
from mod_edge.errors import ModEdgeError
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.shipped import FOLDER
from mod_edge.native.cpu_cores import usable_cores
from mod_edge.runtime import VideoFile
from mod_edge.toy_scenes.scene import COLOURS, HELD_OUT, SHAPES

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "figures"
CLIP = ROOT / "tests" / "data" / "box.mp4"
PICTURE = ROOT / "docs" / "narrator.svg"
CARD = ROOT / "mod_edge" / "narrator" / "MODEL_CARD.md"

MARKED = re.compile(
    r"<!-- figures: (?P<name>[\w-]+), checkpoint (?P<fingerprint>\w*) -->\n"
    r"(?P<content>.*?)<!-- end of figures -->\n",
    re.DOTALL,
)
INSTRUCTION = "Please narrate the video in real time."
QUESTION = "How many objects are there?@20"
NUM_RUNS = 15  # per timing; the fastest counts, because other work can only slow a run down
DIRECTIONS = ("left", "right", "up", "down", "top", "bottom")
ROW_NAMES = {
    "model": "narrator",
    "black video": "narrator, black video",
    "shuffled frames": "narrator, shuffled frames",
    "always speaking": "always speaking the most frequent caption",
    "right moments": "that caption at the right moments",
}
KIND_NAMES = {"turns": "changes colour", "moves": "starts to move"}

# This script cannot measure these; see docs/performance.md, docs/measurements.md and docs/gpu.md.
OTHER_DEVICES = (
    "| 2 cores of a Xeon | Llama-3.2-1B and SigLIP-B/16-224 in size, random weights | fp32 | "
    "270 + 327 | 1.7 (from the times) | 6.4 GB | by hand, medians of nine steps |\n"
    "| 2 cores of an AMD EPYC | the same | int8 | 79 + 90 | 4.6 | 1.8 GB | "
    '`mod-edge bench`, past of 1,000 tokens; frames/s: from the "whole frame" row, not from the '
    "two times |\n"
    "| NVIDIA GPU, Jetson | | | not measured | not measured | not measured | "
    "[one short run](docs/gpu.md) on an H200, without MoD layers |\n"
)

Measured = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One `mod-edge run` over a clip: its JSON summary and peak resident memory."""

    summary: Measured
    peak_bytes: int


@reports_errors
def main() -> None:
    """Measure what is not cached, draw the picture, rewrite the pages."""
    fingerprint = shipped_fingerprint()
    lab = Lab(WORK / fingerprint[:12])
    blocks: dict[str, Callable[[], str]] = {
        "speed": functools.partial(speed_table, lab),
        "fingerprint": lambda: f"All figures on this page are for checkpoint `{fingerprint}`.\n",
        "left-to-itself": functools.partial(free_table, lab.evaluation("test")),
        "true-dialogue": functools.partial(forced_table, lab.evaluation("test")),
        "kinds": functools.partial(kinds_table, lab.evaluation("test")),
        "mistakes": functools.partial(mistakes, lab.evaluation("test")),
        "combinations": functools.partial(combinations, lab.evaluation("combinations")),
        "endless": lab.endless,
        "demo": lab.demo,
    }
    PICTURE.write_text(draw_terminal(lab, fingerprint), encoding="utf-8")
    out.print(f"wrote {PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size / 1e3:.0f} kB")
    for page in (ROOT / "README.md", CARD, ROOT / "docs" / "demo.md"):
        rewrite_page(page, blocks, fingerprint)
        out.print(f"wrote {page.relative_to(ROOT)}")


def shipped_fingerprint() -> str:
    """sha256 of the bundled checkpoint."""
    return Checkpoint(FOLDER).fingerprint()


def shipped_bundle(folder: Path) -> Path:
    """`folder`/bundle, the bundled checkpoint of `folder`/checkpoint, exported once."""
    bundle = folder / "bundle"
    if not bundle.is_dir():
        run_mod_edge("init", "narrator", folder / "checkpoint", "--force")
        run_mod_edge("export", folder / "checkpoint", "-o", bundle)
    return bundle


def rewrite_page(page: Path, blocks: dict[str, Callable[[], str]], fingerprint: str) -> None:
    """Replace the text between the markers; all other text stays."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in blocks:
            raise ModEdgeError(f"{page}: no figure {name!r}; known are {', '.join(blocks)}")
        return (
            f"<!-- figures: {name}, checkpoint {fingerprint} -->\n"
            f"{blocks[name]()}<!-- end of figures -->\n"
        )

    page.write_text(MARKED.sub(block, page.read_text(encoding="utf-8")), encoding="utf-8")


class Lab:
    """The folder of cached measurements; most methods measure once and then read their file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scenes = folder / "scenes"
        folder.mkdir(parents=True, exist_ok=True)
        self.bundle = shipped_bundle(folder)
        if not self.scenes.is_dir():
            counts = ("--train", 600, "--validation", 0, "--test", 40, "--combinations", 30)
            run_mod_edge("scenes", self.scenes, *counts, "--photographs", CLIP)

    @property
    def clip(self) -> Path:
        """The clip for timing and for the picture."""
        return self.scenes / "videos" / "test-000000.mp4"

    def evaluation(self, split: str) -> Measured:
        """`mod-edge eval --json` of the checkpoint over a split; with controls on `test`."""
        controls = ("--controls",) if split == "test" else ()
        command = ("eval", self.folder / "checkpoint", "--data", self.scenes, "--split", split)
        text = self._kept(f"{split}.json", lambda: run_mod_edge(*command, *controls, "--json"))
        evaluation: Measured = json.loads(text)
        return evaluation

    def demo(self) -> str:
        """The output of `make demo`, as a code block."""
        text = self._kept("demo.txt", lambda: _output(["make", "--silent", "demo"], COLUMNS="110"))
        lines = "\n".join(line.rstrip() for line in text.splitlines())
        return f"```text\n{lines}\n```\n"

    def endless(self) -> str:
        """F1 by ten minutes of one scene of an hour."""
        return self._kept("endless.md", lambda: endless_table(narrate(self.bundle, CLIP)))

    def fastest_run(self, frames_per_step: int) -> Run:
        """The fastest of `NUM_RUNS`; never cached, because it depends on the machine."""
        command = (*self._run_command(), "--json", "--frames-per-step", str(frames_per_step))
        runs = [_timed_run(command) for _ in range(NUM_RUNS)]
        return max(runs, key=lambda run: float(run.summary["fps"]))

    def terminal(self) -> str:
        """The terminal output of the fastest `mod-edge run`, with ANSI colours."""

        def fps(screen: str) -> float:
            return float(re.findall(r"speed +([\d.]+) frames/s", screen)[0])

        colours = {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "0"}  # and no live view
        command = ("sh", "-c", '"$@" 2>&1', "sh", *self._run_command())
        runs = [_output(command, **colours) for _ in range(NUM_RUNS)]
        return max(runs, key=fps)

    def _run_command(self) -> tuple[str, ...]:
        asked = ("--query", INSTRUCTION, "--query", QUESTION)
        run = ("run", str(self.bundle), "--source", str(self.clip), "--window", "20s", *asked)
        return (sys.executable, "-m", "mod_edge", *run)

    def _kept(self, name: str, measure: Callable[[], str]) -> str:
        path = self.folder / name
        if not path.is_file():
            write_whole(path, measure().encode())
        return path.read_text(encoding="utf-8")


# ---- tables ----


def speed_table(lab: Lab) -> str:
    """Time, rate and memory of the bundled model on this machine, and values measured by hand."""
    inspected = json.loads(run_mod_edge("inspect", lab.folder / "checkpoint", "--json"))
    parameters = inspected["parameters"]["total"]
    rows = "".join(
        f"| {machine_name()} | bundled, {parameters / 1e6:.1f} M parameters | fp32 | "
        f"{run.summary['vision_ms']['p50']:.1f} + {run.summary['decoder_ms']['p50']:.1f} | "
        f"{run.summary['fps']:.0f} | {run.peak_bytes / 1e6:.0f} MB | "
        f"{number} frame{'s' if number > 1 else ''} per step, fastest of {NUM_RUNS} runs |\n"
        for number, run in ((number, lab.fastest_run(number)) for number in (1, 4))
    )
    columns = ("device", "model", "precision", "ms per frame", "frames/s", "memory", "how measured")
    return (
        f"{table_head(*columns)}{rows}{OTHER_DEVICES}\n"
        "ms per frame: median, vision + decoder. Memory: peak of the process. The bundled model is "
        f"checkpoint `{lab.folder.name}`, measured with `mod-edge run --json` over 60 frames of a "
        "synthetic clip; its frames/s include the replies.\n"
    )


def free_table(evaluation: Measured) -> str:
    """Precision, recall and F1 of every row, free-running."""
    lines = []
    for row in evaluation["rows"]:
        free, bold = row["free_running"], "**" if row["name"] == "model" else ""
        cells = (
            ROW_NAMES.get(row["name"], row["name"]),
            ratio_text(free["precision"]),
            ratio_text(free["recall"]),
            f"{bold}{ratio_text(free['f1'])}{bold}",
            ratio_text(free["moment_f1"]),
            f"{free['num_answers_right']} of {free['num_answers']}",
        )
        lines.append(f"| {' | '.join(cells)} |\n")
    columns = ("free-running", "precision", "recall", "F1", "moment F1", "answers")
    return table_head(*columns) + "".join(lines)


def forced_table(evaluation: Measured) -> str:
    """The paper's measures, teacher-forced, of the rows that predict words."""
    lines = []
    for row in evaluation["rows"]:
        forced = row["teacher_forced"]
        if forced["lm_ppl"] is not None:
            lines.append(
                f"| {ROW_NAMES[row['name']]} | {forced['lm_ppl']:.3f} | "
                f"{forced['time_diff_s']:.2f} s | {forced['fluency']:.3f} | "
                f"{forced['lm_correctness']:.3f} |\n"
            )
    columns = ("teacher-forced", "LM-PPL", "TimeDiff", "Fluency", "LM-Correctness")
    return table_head(*columns) + "".join(lines)


def kinds_table(evaluation: Measured) -> str:
    """Captions by kind of event, the most frequent first."""
    kinds = evaluation["rows"][0]["free_running"]["kinds"]
    ordered = sorted(kinds.items(), key=lambda item: -item[1]["num_true"])
    lines = (
        f"| {KIND_NAMES.get(name, name)} | {kind['num_true']} | "
        f"{kind['num_right'] / kind['num_true']:.2f} | "
        f"{kind['num_moments'] / kind['num_true']:.2f} |\n"
        for name, kind in ordered
    )
    columns = ("kind of event", "captions due", "right caption", "any caption at the right moment")
    return table_head(*columns) + "".join(lines)


def mistakes(evaluation: Measured) -> str:
    """How the wrong captions at right moments differ from those due."""
    wrong = [
        entry
        for entry in _captions_due(evaluation)
        if entry["said"]
        and not entry["is_right"]
        and abs(entry["late_s"]) <= evaluation["tolerance_s"]
    ]

    def num_other(words: tuple[str, ...]) -> int:
        return sum(_words(entry["due"], words) != _words(entry["said"], words) for entry in wrong)

    return (
        f"Of the {len(wrong)} wrong captions at the right moment, {num_other(SHAPES)} differ from "
        f"the right one in shapes, {num_other(COLOURS)} in colours and {num_other(DIRECTIONS)} in "
        "directions;\nsome differ in several.\n"
    )


def combinations(evaluation: Measured) -> str:
    """F1 on combinations of colour and shape that training never showed.

    Each clip has at least one, but most captions name others: so those are counted apart.
    """
    free = evaluation["rows"][0]["free_running"]
    due = _captions_due(evaluation)
    names = tuple(f"{colour} {shape}" for colour, shape in HELD_OUT)
    new = [entry["is_right"] for entry in due if any(name in entry["due"] for name in names)]
    num_right = sum(entry["is_right"] for entry in due)
    return (
        f"On {evaluation['num_clips']} clips of the split `combinations`, F1 is {free['f1']:.3f} "
        f"and moment F1 {free['moment_f1']:.3f}. Captions that name such a combination: "
        f"{sum(new)} of {len(new)} right; others: {num_right - sum(new)} of "
        f"{len(due) - len(new)}.\n"
    )


def _captions_due(evaluation: Measured) -> list[dict[str, Any]]:
    return [
        entry
        for transcript in evaluation["transcripts"]
        for entry in transcript["entries"]
        if entry["query"] is None and entry["due"]
    ]


def _words(sentence: str, among: tuple[str, ...]) -> set[str]:
    return {*sentence.lower().strip(".").split()} & {*among}


# ---- the picture ----


NUM_FRAMES_DRAWN = 6
FRAME_WIDTH = 188  # SVG units, like the sizes below
MARGIN = 12
LABEL_HEIGHT = 30


def draw_terminal(lab: Lab, fingerprint: str) -> str:
    """An SVG of the terminal, with the frames of the first replies above it."""
    screen = Text("$ mod-edge run bundle --source clip.mp4 --window 20s \\\n", style="bold")
    screen.append(f'    --query "{INSTRUCTION}" --query "{QUESTION}"\n')
    screen.append_text(Text.from_ansi(lab.terminal()))
    console = Console(record=True, width=108, file=io.StringIO(), force_terminal=True)
    console.print(screen, soft_wrap=True)
    # without web fonts: the picture must not load anything
    template = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    terminal = console.export_svg(title="mod-edge", code_format=template, unique_id="mod-edge")
    width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', terminal)[0])
    frames_height = FRAME_WIDTH + LABEL_HEIGHT + 2 * MARGIN
    place = f'<svg y="{frames_height}" width="{width}" height="{height}" '
    nested = terminal.replace("<svg ", place, 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {frames_height + height}">\n'
        f"<title>mod-edge narrates a synthetic video</title>\n"
        f"<desc>checkpoint {fingerprint}</desc>\n"
        f"{''.join(_frames_with_labels(lab.clip, width, screen.plain))}{nested}</svg>\n"
    )


def _frames_with_labels(clip: Path, width: float, screen: str) -> list[str]:
    replies = re.findall(r"(\d+):(\d\d\.\d) reply", screen)
    times = sorted({60 * int(minutes) + float(seconds) for minutes, seconds in replies})
    shown = times[:NUM_FRAMES_DRAWN]
    with VideoFile(clip, fps=2) as source:
        images = {frame.time_s: frame.image for frame in source if frame.time_s in shown}
    step = (width - 2 * MARGIN - FRAME_WIDTH) / (len(shown) - 1)
    parts = []
    for number, time_s in enumerate(shown):
        _, png = cv2.imencode(".png", images[time_s])
        data = base64.b64encode(png.tobytes()).decode()
        x = MARGIN + number * step
        parts.append(
            f'<image x="{x:.1f}" y="{MARGIN}" width="{FRAME_WIDTH}" height="{FRAME_WIDTH}" '
            f'href="data:image/png;base64,{data}"/>\n'
            f'<text x="{x + FRAME_WIDTH / 2:.1f}" y="{MARGIN + FRAME_WIDTH + LABEL_HEIGHT - 6}" '
            f'text-anchor="middle" font-family="monospace" font-size="20" fill="#888">'
            f"0:{time_s:04.1f}</text>\n"
        )
    return parts


# ---- commands ----


def run_mod_edge(*arguments: object) -> str:
    """The standard output of a `mod-edge` command; raises ModEdgeError if it fails."""
    return _output([sys.executable, "-m", "mod_edge", *map(str, arguments)])


def _output(command: list[str] | tuple[str, ...], **environment: str) -> str:
    """The standard output of a command; raises ModEdgeError if it fails."""
    err.print(f"$ {' '.join(command)}")
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ModEdgeError(f"{' '.join(command)} exited with {done.returncode}: {done.stdout}")
    return done.stdout


# A small parent process, because a child's peak includes its parent's memory at the fork.
WITH_PEAK = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)


def _timed_run(command: tuple[str, ...]) -> Run:
    lines = _output((sys.executable, "-c", WITH_PEAK, *command)).splitlines()
    return Run(json.loads(lines[-2]), int(lines[-1]) * 1024)


def machine_name() -> str:
    """Number of cores and name of this machine's CPU."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        (name, *_) = re.findall(r"model name\s*: (.+)", file.read()) or ["unknown CPU"]
    num_cores = usable_cores()
    return f"{num_cores} core{'s' if num_cores > 1 else ''} of an {name}"


if __name__ == "__main__":
    main()
