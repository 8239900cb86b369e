"""Full computation of the same geometry on the graphs of a loaded bundle.

Every MoD layer's place is taken by one of the bundle's dense layers: one after the other, then from
the first again, so that their weights are read from memory each time. With a cache of its own, in
which every layer has a row for every token, a step costs what it costs a model without MoD; what it
computes has no meaning.
"""

from itertools import cycle, islice

from mod_edge.config import ModelConfig
from mod_edge.plan.costs import full_computation
from mod_edge.plan.kv_window import Rows
from mod_edge.runtime.loaded_model import LoadedModel


def full_computation_model(
    model: LoadedModel, config: ModelConfig, capacity: Rows
) -> LoadedModel | str:
    """The full-computation model on the graphs of `model`, or why there is none to compare.

    It shares the scratch memory of `model`, which closes both.

    Args:
        model: that is compared.
        config: of `model`.
        capacity: rows of its streams' caches.
    """
    num_layers = config.text_config.num_hidden_layers
    dense = [index for index in range(num_layers) if index not in config.mod_layers]
    if not config.mod_layers:
        return "the model has no MoD layers: it is full computation"
    if not dense:
        return "the model has no dense layers that could take the place of its MoD layers"
    order = list(islice(cycle(dense), num_layers))
    every_token = Rows(capacity.dense, capacity.dense)
    return model.with_layers(full_computation(config), order, every_token)
