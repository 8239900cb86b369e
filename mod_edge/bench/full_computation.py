"""Full computation of the same geometry on the sessions of a loaded bundle.

Every MoD layer's place is taken by one of the bundle's dense layers: one after the other, then from
the first again, so that their weights are read from memory each time. With a cache of its own, in
which every layer has a row for every token, a step costs what it costs a model without MoD; what it
computes has no meaning.
"""

import copy
from dataclasses import replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, cast

from mod_edge.plan.costs import full_computation
from mod_edge.plan.kv_window import Rows
from mod_edge.runtime.loaded_model import LoadedModel

if TYPE_CHECKING:  # a Jetson has no onnxruntime
    from mod_edge.runtime.cpu.onnx_model import OnnxModel


def full_computation_model(model: LoadedModel) -> "OnnxModel | str":
    """The full-computation model on the sessions of `model`, or why there is none to compare.

    It shares the scratch memory of `model`, which closes both.
    """
    if not model.is_on_cpu:
        return "full computation is measured with ONNX Runtime on the CPU only"
    model = cast("OnnxModel", model)
    mod_layers = set(model.config.mod_layers)
    dense = [layer for index, layer in enumerate(model.layers) if index not in mod_layers]
    if not mod_layers:
        return "the model has no MoD layers: it is full computation"
    if not dense:
        return "the model has no dense layers that could take the place of its MoD layers"
    full = copy.copy(model)
    full.config = full_computation(model.config)
    full.layers = list(islice(cycle(dense), len(model.layers)))
    full.kept = {}
    capacity = model.lowering.capacity
    if capacity is not None:
        full.lowering = replace(model.lowering, capacity=_every_token(capacity))
    full.limits = replace(model.limits, capacity=_every_token(model.limits.capacity))
    return full


def _every_token(rows: Rows) -> Rows:
    return Rows(rows.dense, rows.dense)
