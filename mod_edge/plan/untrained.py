"""What to expect of a model with untrained parts (`ModelConfig.untrained_parts`), in words."""

from collections.abc import Mapping

from mod_edge.config import ModelConfig

WARNINGS: Mapping[str, str] = {
    "connector": (
        "the connector is untrained: what the model says about pictures is noise until it is "
        "trained (mod-edge train) or imported with a trained one"
    ),
    "router": (
        "the routers are untrained: which tokens of a frame the MoD layers compute is arbitrary "
        "until they are trained (mod-edge train) or imported with trained ones"
    ),
}


def untrained_warnings(config: ModelConfig) -> list[str]:
    """One sentence for each untrained part that the model has."""
    parts = [part for part in config.untrained_parts if part != "router" or config.has_router]
    return [WARNINGS[part] for part in parts]
