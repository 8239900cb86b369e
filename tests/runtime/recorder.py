"""A runner that another one does the work of, and that keeps what it was asked and answered."""

from mod_edge.runtime.runner import Runner


class Recorder(Runner):
    """Passes everything on.

    Attributes:
        steps: the pieces, token ids, position and past of each.
        selections: of each step, the kept tokens by layer.
        all_logits: that were asked for.
    """

    def __init__(self, runner):
        self.runner, self.name = runner, runner.name
        self.steps, self.selections, self.all_logits = [], [], []

    def encode(self, frames):
        return self.runner.encode(frames)

    def step(self, layout, token_ids, frame_embeds, *, position, past):
        self.runner.step(layout, token_ids, frame_embeds, position=position, past=past)
        self.steps.append((layout.pieces, tuple(token_ids), position, past))
        self.selections.append({layer: kept.tolist() for layer, kept in self.kept.items()})

    def logits(self, rows):
        logits = self.runner.logits(rows)
        self.all_logits.append(logits.copy())
        return logits

    def evict(self, eviction):
        self.runner.evict(eviction)

    @property
    def kept(self):
        return self.runner.kept

    @property
    def warnings(self):
        return self.runner.warnings
