"""The compared arms, and the order of their runs.

The arms differ only in `mod_config`. The paper's Table 1 compares MoD with full computation, early
exit and layer skip, Table 2 with other layers, Table 3 with selections that are not learned.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mod_edge.config import MoDConfig

KEEP_RATIO = 0.2  # the paper's
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
        name: in commands and file names.
        title: in tables.
        mod: None is full computation.
    """

    name: str
    title: str
    mod: MoDConfig | None


@dataclass(frozen=True)
class Run:
    """One arm trained with one seed."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """The name of its file and folder."""
        return f"{self.arm.name}-{self.seed}"


def _arms(*arms: Arm) -> Mapping[str, Arm]:
    return {arm.name: arm for arm in arms}


CORE_ARMS = _arms(
    Arm("full", "full computation", None),
    Arm("mod", "MoD", MoDConfig("interleaved", KEEP_RATIO)),
    Arm("early-exit", "early exit", MoDConfig("early_exit")),
    Arm("layer-skip", "layer skip", MoDConfig("layer_skip")),
    Arm("uniform", "uniform selection", MoDConfig("interleaved", KEEP_RATIO, "uniform")),
    Arm("random", "random selection", MoDConfig("interleaved", KEEP_RATIO, "random")),
    Arm("delta", "delta scaling", MoDConfig("interleaved", KEEP_RATIO, router_scaling="delta")),
)
INSERTION_ARMS = _arms(
    Arm("interleaved-deep", "interleaved-deep", MoDConfig("interleaved_deep", KEEP_RATIO)),
    Arm("all-deep", "all-deep", MoDConfig("all_deep", KEEP_RATIO)),
    Arm("all", "all layers", MoDConfig("all", KEEP_RATIO)),
)
ARMS: Mapping[str, Arm] = {**CORE_ARMS, **INSERTION_ARMS}

# Seed by seed: whenever it is stopped, the arms of a group have nearly equal numbers of runs.
PLAN = tuple(
    Run(arm, seed)
    for group in (CORE_ARMS, INSERTION_ARMS)
    for seed in SEEDS
    for arm in group.values()
)
