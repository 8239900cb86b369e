"""How much anonymous memory a second stream on a model takes, beside its cache.

    python tests/runtime/two_stream_memory.py BUNDLE ROWS [--own-model]

Prints one JSON object, in bytes. Both streams encode frames, have their whole cache of ROWS rows
written, and run a step of each kind behind it. A process of its own, because what others have freed
would take a second cache in.
"""

import argparse
import json
import re
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from mod_edge.bundle.bundle import open_bundle
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.layout import FRAME, step_layout
from mod_edge.runtime.cpu.onnx_model import OnnxModel, OnnxStream
from mod_edge.runtime.loaded_model import StreamLimits

MAX_STEP_TOKENS, FRAMES_PER_STEP = 64, 3


def anonymous_bytes() -> int:
    """Anonymous memory of this process (Linux); mapped weights are none of it."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    found = re.search(r"^Anonymous: +(\d+) kB$", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def feed(model: OnnxModel, stream: OnnxStream) -> None:
    """Write the whole cache, and run steps behind as much of a past as there is room for."""
    for layer in stream._cache.layers:
        layer.key[:] = layer.value[:] = 0.5
    config, capacity = model.config, model.limits.capacity
    side = config.vision_config.image_size
    embeds = stream.encode(np.full((FRAMES_PER_STEP, side, side, 3), 99, np.uint8))
    for pieces in ((MAX_STEP_TOKENS,), (1, FRAME), (1, FRAME, 1, FRAME), (1,)):
        layout = step_layout(pieces, config.frame_num_tokens, config.num_kept)
        past = capacity.minus(Rows(layout.num_tokens, layout.num_rows))
        frames = embeds[: layout.num_frames] if layout.num_frames else None
        ids = [5] * layout.text_index.size
        stream.step(layout, ids, frames, position=past.dense, past=past)
        stream.logits([layout.num_tokens - 1])


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("rows", type=int)
    parser.add_argument(
        "--own-model", action="store_true", help="load a second model, to see it reported"
    )
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    capacity = Rows(arguments.rows, arguments.rows)
    limits = StreamLimits(capacity, MAX_STEP_TOKENS, FRAMES_PER_STEP)
    with ExitStack() as release:
        model = release.enter_context(OnnxModel(bundle, limits))
        feed(model, release.enter_context(model.open_stream()))
        before = anonymous_bytes()
        if arguments.own_model:
            model = release.enter_context(OnnxModel(bundle, limits))
        second = release.enter_context(model.open_stream())
        feed(model, second)
        grown_bytes = anonymous_bytes() - before
        json.dump({"cache_bytes": second._cache.size_bytes, "grown_bytes": grown_bytes}, sys.stdout)


if __name__ == "__main__":
    main()
