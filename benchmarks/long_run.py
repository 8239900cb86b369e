"""`python -m benchmarks.long_run`: F1 by the minute under several policies of the window.

`make long-run` runs it. The bundled model narrates synthetic scenes of an hour under every policy,
with a window of 20 s; the table goes between the markers in docs/streaming.md.
Accounts are cached in build/long-run/, in a folder named by the checkpoint's fingerprint: an
interrupted run continues, and deleting the folder measures everything again (40 minutes on one core
without other work).
"""

import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from benchmarks.endless_scene import DURATION_S, TOLERANCE_S, WINDOW, Narration
from benchmarks.figures import CLIP, ROOT, rewrite_page, shipped_fingerprint
from benchmarks.long_scene import POLICIES, LongScene, Narrator
from benchmarks.markdown import ratio_text, table_head
from mod_edge.bundle.bundle import open_bundle
from mod_edge.bundle.staging import write_whole
from mod_edge.commands.console import err, out, reports_errors
from mod_edge.data.clips import read_clips
from mod_edge.data.dialogue import dialogue_of_clip
from mod_edge.evaluation.clip_frames import read_clip_frames
from mod_edge.evaluation.free_running import Account, FreeRunning, Said, score
from mod_edge.export.bundle_writer import export_bundle
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.shipped import FOLDER
from mod_edge.native.onnx_session import set_num_threads
from mod_edge.plan.kv_window import Rows
from mod_edge.runtime.backends import BackendChoice, load_model
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.loaded_model import Float32Array, LoadedModel, StreamLimits, UInt8Array
from mod_edge.toy_scenes.scenes import write_scenes

WORK = ROOT / "build" / "long-run"
PAGE = ROOT / "docs" / "streaming.md"
SEEDS = (7, 8, 9)  # of the scenes
# Minutes whose captions a column counts: 1, 10 and 60 with their neighbours, because a minute has
# about 13 captions.
HOUR = (0, round(DURATION_S / 60))
COLUMNS = {"minute 1": (0, 2), "minute 10": (8, 12), "minute 60": (50, 60), "the hour": HOUR}


def open_narrator(folder: Path) -> Narrator:
    """The bundled model, exported to `folder` once; its sessions take one frame per step."""
    checkpoint = Checkpoint(FOLDER)
    if not folder.is_dir():
        err.print("exporting the bundled model")
        export_bundle(checkpoint, folder)
    bundle = open_bundle(folder)
    profile = bundle.profile()
    options = SessionOptions(
        threshold=bundle.config.stream_config.frame_token_interval_threshold,
        max_new_tokens=profile.max_new_tokens,
        frames_per_step=1,
        max_step_tokens=profile.max_step_tokens,
        evict_fraction=profile.evict_fraction,
    )

    def load(capacity: Rows) -> LoadedModel:
        limits = StreamLimits(capacity, options.max_step_tokens, options.frames_per_step)
        model, _ = load_model(bundle, limits, BackendChoice())
        return model

    return Narrator(
        bundle.config,
        bundle.tokenizer,
        options,
        bundle.plan(profile.window, profile.max_new_tokens, window=WINDOW),
        load,
        checkpoint.load_model(),
    )


class Lab:
    """The folder of cached measurements."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._narrator = open_narrator(folder / "bundle")

    def narrations(self, seed: int) -> dict[str, Narration]:
        """By policy, what is said over the scene of this seed; measured if it is not cached."""
        scene = self._scene(seed)
        return {policy: self._narration(policy, seed, scene) for policy in POLICIES}

    def _narration(self, policy: str, seed: int, scene: LongScene) -> Narration:
        path = self._folder / f"{policy.replace(', ', '-').replace(' ', '-')}-{seed}.json"
        if not path.is_file():
            started = time.perf_counter()
            account = POLICIES[policy](self._narrator, scene)
            write_account(path, account)
            err.print(f"scene {seed}, {policy}: {time.perf_counter() - started:.0f} s")
        return Narration(scene.dialogue, read_account(path), scene.fps)

    def _scene(self, seed: int) -> LongScene:
        """The scene of this seed, drawn and encoded once."""
        folder = self._folder / f"scene-{seed}"
        if not folder.is_dir():
            err.print(f"scene {seed}: drawing")
            options = {"photographs": CLIP, "duration_s": DURATION_S}
            write_scenes(folder, {"test": 1}, seed=seed, force=False, **options)
        (clip,) = read_clips(folder, "test")
        fps = self._narrator.config.stream_config.frame_fps
        path = self._folder / f"scene-{seed}.npy"
        if not path.is_file():
            err.print(f"scene {seed}: encoding")
            pixels = read_clip_frames(clip, self._narrator.config).pixels
            file = io.BytesIO()
            np.save(file, self._encoded(pixels))
            write_whole(path, file.getvalue())
        embeds = np.load(path)
        return LongScene(dialogue_of_clip(clip, fps, len(embeds)), embeds, fps)

    def _encoded(self, pixels: UInt8Array) -> Float32Array:
        """(F, N, D) embeddings of frames (F, I, I, 3)."""
        with self._narrator.load(self._narrator.plan.capacity) as model:
            embeds = [np.array(model.encode(pixels[n : n + 1])) for n in range(len(pixels))]
        return np.concatenate(embeds)


def write_account(path: Path, account: Account) -> None:
    """Write what was said to a JSON file, whole or not at all."""
    write_whole(path, json.dumps(asdict(account)).encode())


def read_account(path: Path) -> Account:
    """What `write_account` wrote."""
    data = json.loads(path.read_text(encoding="utf-8"))
    captions = tuple(Said(**each) for each in data["captions"])
    return Account(captions, tuple(data["answers"]), data["num_rolls"])


# ---- the table ----


def policies_table(narrations: Mapping[str, Sequence[Narration]]) -> str:
    """F1 of every policy by minutes of the scene, as a Markdown table with a paragraph before it.

    Args:
        narrations: by policy, one of each scene.
    """
    scenes = next(iter(narrations.values()))
    due = (f"{_score(scenes, each).num_true} in {name}" for name, each in COLUMNS.items())
    heads = (f"{name} ({first} to {last})" for name, (first, last) in COLUMNS.items())
    rows = (f"| {' | '.join((name, *_cells(each)))} |\n" for name, each in narrations.items())
    return (
        f"F1 over {len(scenes)} one-hour scenes with a window of {WINDOW.removesuffix('s')} s; in "
        "brackets, the F1 of the worst and of the best single scene. Captions due in all scenes: "
        f"{', '.join(due)}.\n\n"
        f"{table_head('policy', *heads, 'moment F1', 'answers', 'rolls')}"
        f"{''.join(rows)}"
    )


def _cells(narrations: Sequence[Narration]) -> Iterator[str]:
    for minutes in COLUMNS.values():
        alone = [_score([each], minutes).f1 or 0.0 for each in narrations]
        together = ratio_text(_score(narrations, minutes).f1)
        yield f"{together} ({min(alone):.2f} to {max(alone):.2f})"
    hour = _score(narrations, HOUR)
    yield ratio_text(hour.moment_f1)
    yield f"{hour.num_answers_right} of {hour.num_answers}"
    yield str(sum(each.account.num_rolls for each in narrations))


def _score(narrations: Sequence[Narration], minutes: tuple[int, int]) -> FreeRunning:
    """The score of these minutes of all scenes together."""
    start_s, end_s = (60.0 * minute for minute in minutes)
    parts = [each.part(start_s, end_s) for each in narrations]
    return score(parts, narrations[0].fps, TOLERANCE_S)


@reports_errors
def main() -> None:
    """Measure what is not cached, and rewrite the page."""
    torch.set_num_threads(1)  # a model this small is slower with more
    set_num_threads(1)
    fingerprint = shipped_fingerprint()
    lab = Lab(WORK / fingerprint[:12])
    scenes = [lab.narrations(seed) for seed in SEEDS]
    narrations = {policy: [scene[policy] for scene in scenes] for policy in POLICIES}
    rewrite_page(PAGE, {"policies": lambda: policies_table(narrations)}, fingerprint)
    out.print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
