"""A stream that forwards all calls to another one and records them."""

from mod_edge.runtime.loaded_model import WrappedStream


class Recorder(WrappedStream):
    """Forwards all calls and records them.

    Attributes:
        steps: pieces, token ids, position and past of each step.
        selections: kept tokens of each step, by layer.
        all_logits: returned logits.
    """

    def __init__(self, inner):
        super().__init__(inner)
        self.steps, self.selections, self.all_logits = [], [], []

    def step(self, layout, token_ids, frame_embeds, *, position, past):
        super().step(layout, token_ids, frame_embeds, position=position, past=past)
        self.steps.append((layout.pieces, tuple(token_ids), position, past))
        self.selections.append({layer: kept.tolist() for layer, kept in self.kept.items()})

    def logits(self, rows):
        logits = super().logits(rows)
        self.all_logits.append(logits.copy())
        return logits
