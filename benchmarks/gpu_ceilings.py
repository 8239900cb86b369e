"""`python -m benchmarks.gpu_ceilings`: what this GPU can do at most, in PyTorch.

Bytes per second of a copy on the device, read and written bytes counted, and floating-point
operations per second of a large product in float16: the limits beside which docs/gpu.md states
every time.
"""

import json
from collections.abc import Callable
from statistics import median

import torch

from mod_edge.commands.console import out

NUM_BYTES = 4 * 2**30  # far more than the caches hold
SIDE = 8192
NUM_WARM_UPS, NUM_ROUNDS = 3, 11


def main() -> None:
    """Measure and print one JSON document."""
    if not torch.cuda.is_available():
        out.print(json.dumps({"error": "this torch finds no GPU"}))
        return
    source = torch.zeros(NUM_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy_s = _seconds(lambda: target.copy_(source))
    left = torch.randn(SIDE, SIDE, dtype=torch.float16, device="cuda")
    product_s = _seconds(lambda: left @ left)
    document = {
        "device": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "copied_bytes_per_s": 2 * NUM_BYTES / copy_s,
        "float16_flops_per_s": 2 * SIDE**3 / product_s,
    }
    out.print(json.dumps(document))


def _seconds(call: Callable[[], object]) -> float:
    """The median time of `call` on the device."""
    times = []
    for number in range(NUM_WARM_UPS + NUM_ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        if number >= NUM_WARM_UPS:
            times.append(start.elapsed_time(end) / 1000)
    return median(times)


if __name__ == "__main__":
    main()
