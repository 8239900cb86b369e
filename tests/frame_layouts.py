"""Frame layouts of the published family beside the default one: CLS, a 3 x 3 grid, an interval."""

from dataclasses import replace


def without_interval(config):
    """The model with nothing between two frames, whose end token means silence."""
    stream = replace(config.stream_config, frame_token_interval="", frame_token_interval_id=None)
    return replace(config, stream_config=stream)


def without_cls(config):
    """The model whose frames are a grid alone."""
    return replace(config, frame_token_cls=False)


def one_token(config):
    """The published "live1" model: one token a frame, and no interval."""
    return replace(without_interval(config), frame_token_pooled=None)


OTHER_LAYOUTS = {"no CLS": without_cls, "one token, no interval": one_token}
