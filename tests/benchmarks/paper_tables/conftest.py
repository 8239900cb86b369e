"""A data set of three short clips, and planted results with chosen figures."""

import dataclasses

import cv2
import numpy as np
import pytest

from benchmarks.paper_tables.arms import PLAN
from benchmarks.paper_tables.results import Result, result_path, write_result
from benchmarks.paper_tables.settings import STANDARD
from mod_edge.config import config_to_dict
from mod_edge.data.clips import Clip, Line, write_clips

SIDE, VIDEO_FPS, DURATION_S = 32, 4.0, 3.0

FORCED = {"lm_ppl": 1.5, "time_diff_s": 0.4, "fluency": 0.6, "lm_correctness": 0.8}
FREE = {"f1": 0.5, "moment_f1": 0.7, "num_answers": 8, "num_answers_right": 6}
BASELINE = {
    "teacher_forced": {"lm_ppl": None, "time_diff_s": 1.5, "fluency": None, "lm_correctness": None},
    "free_running": {"f1": 0.125, "moment_f1": 0.25, "num_answers": 8, "num_answers_right": 0},
}


def run_named(name):
    (run,) = (run for run in PLAN if run.name == name)
    return run


@pytest.fixture(scope="session")
def planted_result(make_config):
    """`planted_result(run, **figures)`: a result with these figures, the others as above."""

    def make(run, **figures):
        model = dataclasses.replace(make_config(num_layers=6), mod_config=run.arm.mod)
        train = {**dataclasses.asdict(STANDARD.train), "seed": run.seed}
        row = {
            "name": "model",
            "teacher_forced": FORCED | {key: figures[key] for key in FORCED & figures.keys()},
            "free_running": FREE | {key: figures[key] for key in FREE & figures.keys()},
        }
        splits = {split: {"sha256": "ab" * 32, "clips": 9} for split in ("train", "test")}
        return Result(
            settings={
                "model": config_to_dict(model),
                "train": train,
                "measuring": STANDARD.measuring(),
                "base": "cd" * 32,
                "data": splits,
            },
            choice={"threshold": 0.6, "f1": [0.1, 0.2]},
            evaluation={"num_clips": 9, "rows": [row, {"name": "always silent", **BASELINE}]},
            training={"steps": 100, "num_clips": 9, "num_parameters": 123_000},
            losses={"lm": [3.0, 2.0, 1.0], "stream": [0.7, 0.2, 0.1]},
            time_s={"train": 600.0, "choose": 60.0, "measure": 120.0},
            versions={"mod_edge": "0", "torch": "2"},
            machine={"architecture": "x86_64", "cores": 2, "threads": 1, "device": "cpu"},
        )

    return make


@pytest.fixture(scope="session")
def plant(planted_result):
    """`plant(folder, name, **figures)`: writes such a result."""

    def write(folder, name, **figures):
        run = run_named(name)
        write_result(result_path(folder, run), planted_result(run, **figures))

    return write


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """One short clip in each split."""
    folder = tmp_path_factory.mktemp("data")
    for level, split in enumerate(("train", "validation", "test")):
        video = folder / f"{split}.mp4"
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(video), codec, VIDEO_FPS, (SIDE, SIDE))
        for number in range(round(DURATION_S * VIDEO_FPS)):
            writer.write(np.full((SIDE, SIDE, 3), 40 * level + 10 * number, np.uint8))
        writer.release()
        lines = (
            Line("user", "Narrate.", 0.0),
            Line("assistant", "It is dark.", 0.0),
            Line("assistant", "It is light.", 1.5),
        )
        write_clips(folder, split, [Clip(split, video, DURATION_S, lines)])
    return folder
