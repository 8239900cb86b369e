"""Saves what a bundle computes on a short stream in which every token is given.

    python tests/fixed_stream.py BUNDLE OUT.npz

No input depends on an output, so runs on different processors take the same steps and their
numbers can be compared. Needs only numpy, OpenCV, ONNX Runtime and tokenizers.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from mod_edge.bundle.bundle import open_bundle
from mod_edge.plan.kv_window import KvWindow, Rows
from mod_edge.plan.protocol import Protocol
from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.runtime.cpu.onnx_model import OnnxModel
from mod_edge.runtime.loaded_model import StreamLimits
from mod_edge.runtime.preprocess import fit_frame
from mod_edge.runtime.stepper import Stepper

CLIP = Path(__file__).parent / "data" / "box.mp4"
FPS = 4
NUM_FRAMES = 24
FRAMES_PER_STEP = 2
# The cache rolls within the frames.
LIMITS = StreamLimits(Rows(260, 160), max_step_tokens=64, frames_per_step=FRAMES_PER_STEP)
QUERY = "Please narrate the video in real time."
REPLY = "The box moves."


def main(folder: Path, out: Path) -> None:
    """Stream the clip's first frames: a query after the first two, an unasked reply after half."""
    bundle = open_bundle(folder)
    config, tokenizer = bundle.config, bundle.tokenizer
    protocol = Protocol(config.stream_config, tokenizer, threshold=0)
    window = KvWindow(LIMITS.capacity, evict_fraction=0.125)
    state = OnnxModel(bundle, LIMITS).open_stream()
    stepper = Stepper(state, config, window, LIMITS.max_step_tokens)
    side = config.vision_config.image_size
    pixels = np.zeros((NUM_FRAMES, side, side, 3), np.uint8)
    with VideoFile(CLIP, fps=FPS, max_frames=NUM_FRAMES) as video:
        for frame, target in zip(video, pixels, strict=True):
            fit_frame(frame.image, target, config.vision_config)

    embeds, logits, kept = [], [], []
    for first in range(0, NUM_FRAMES, FRAMES_PER_STEP):
        ours = state.encode(pixels[first : first + FRAMES_PER_STEP])
        embeds.append(np.asarray(ours).copy())
        logits.extend(stepper.feed_frames(protocol.frame_prefix(), ours, closes_sink=False).copy())
        kept.append(np.stack([state.kept[layer] for layer in config.mod_layers]))
        for _ in range(FRAMES_PER_STEP):
            protocol.note_frame()
        if first == 0:
            logits.append(stepper.feed_text(protocol.response_prompt(QUERY), continues=False))
            window.close_sink()
        elif first == NUM_FRAMES // 2:
            logits.append(stepper.feed_text(protocol.response_prompt(None), continues=False))
        else:
            continue
        logits[-1] = logits[-1].copy()
        for token_id in tokenizer.encode(REPLY, add_special_tokens=False).ids:
            logits.append(stepper.feed_text([token_id], continues=True).copy())
        protocol.note_reply([config.stream_config.eos_token_id])
    np.savez(
        out,
        pixels=pixels,
        embeds=np.concatenate(embeds),
        logits=np.stack(logits),
        kept=np.concatenate(kept, axis=1),  # (MoD layers, F, K)
        num_rolls=len(stepper.rolls),
        backend=state.name,
        cpu_features=cv2.getCPUFeaturesLine(),  # "*" marks those chosen at run time
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
