"""The training loop: takes batches, updates the weights, records losses and saves its state."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mod_edge.data.stream_metrics import mean, ratio
from mod_edge.errors import DataError
from mod_edge.model.video_llm import VideoLLM
from mod_edge.progress import OnStep
from mod_edge.stop_signals import stop_signals
from mod_edge.training.auxiliary_loss import AuxiliaryLoss
from mod_edge.training.batches import Batch, Batches
from mod_edge.training.forward import BatchedDecoder
from mod_edge.training.recipe import TrainConfig
from mod_edge.training.resume_state import ResumeState, TrainingState
from mod_edge.training.unjudged_pairs import UnjudgedPairs

FINAL_LEARNING_RATE = 0.1  # a share of the peak
ADAM_BETAS = (0.9, 0.95)  # as Llama's: the second moment adapts within 20 steps
SECONDS_SHOWN = 20.0  # between updates of the shown losses, each a new line without a progress bar
NUM_STEPS_SHOWN = 50  # the shown loss is the mean over this many steps


class Trainer:
    """The loop's state: model, optimizer, and losses so far."""

    def __init__(
        self,
        model: VideoLLM,
        trained: dict[str, nn.Parameter],
        settings: TrainConfig,
        device: torch.device,
        identity: dict[str, Any],
        auxiliary: AuxiliaryLoss | None = None,
        unjudged: UnjudgedPairs | None = None,
    ) -> None:
        """A training run of `model`, which is on `device`, at step 0.

        Enables the gradients of `trained`, the parameters to train by name. `TrainingState`
        describes `identity`.
        """
        for parameter in trained.values():
            parameter.requires_grad_(True)
        self.step = 0
        self.lm_losses: list[float | None] = []  # None for a step without reply tokens
        self.stream_losses: list[float | None] = []
        self.auxiliary_losses: list[float] = []  # empty without an auxiliary loss
        self.time_s = 0.0
        self._trained = trained
        self._settings, self._device, self._identity = settings, device, identity
        self._optimizer = adamw(trained, settings)
        self._auxiliary, self._unjudged = auxiliary, unjudged
        self._generator = torch.Generator(device)
        dtype: torch.dtype = getattr(torch, settings.dtype)
        self._decoder = BatchedDecoder(model, dtype, self._generator)

    def restore(self, state: TrainingState) -> None:
        """Continue from `state`."""
        with torch.no_grad():
            for name, weights in state.weights.items():
                self._trained[name].copy_(weights)
        self._optimizer.load_state_dict(state.optimizer)
        self.step, self.time_s = state.step, state.time_s
        self.lm_losses, self.stream_losses = state.lm_losses, state.stream_losses
        self.auxiliary_losses = state.auxiliary_losses

    def run(
        self,
        batches: Batches,
        resume_state: ResumeState,
        on_step: OnStep,
    ) -> None:
        """Take all remaining steps; save the state every `save_every` steps and when stopped.

        Raises:
            DataError: the loss or the gradient is not finite.
            KeyboardInterrupt: stopped by a stop signal, after the state was saved.
        """
        settings = self._settings
        shown, shown_s = "begins", -math.inf
        with postponed_interrupts() as is_interrupted:
            while self.step < settings.steps:
                started = time.perf_counter()
                first = self.step * settings.accumulate
                self._take_step([batches[first + each] for each in range(settings.accumulate)])
                ended = time.perf_counter()
                self.time_s += ended - started
                is_last = self.step == settings.steps
                if is_last or ended - shown_s >= SECONDS_SHOWN:
                    shown, shown_s = self._progress(), ended
                on_step(shown, self.step, settings.steps)
                if is_last or is_interrupted() or self.step % settings.save_every == 0:
                    resume_state.save(self.state())
                if is_interrupted():
                    raise KeyboardInterrupt

    def state(self) -> TrainingState:
        """The state for `restore`."""
        return TrainingState(
            self._identity,
            self.step,
            {name: parameter.detach() for name, parameter in self._trained.items()},
            self._optimizer.state_dict(),
            self.lm_losses,
            self.stream_losses,
            self.auxiliary_losses,
            self.time_s,
        )

    def _take_step(self, batches: list[Batch]) -> None:
        settings = self._settings
        draw = np.random.default_rng((settings.seed, self.step)).integers(2**62)
        self._generator.manual_seed(int(draw))
        sums = torch.zeros(2, device=self._device)
        auxiliary_loss = torch.zeros((), device=self._device)
        for batch in batches:
            on_device = batch.to(self._device)
            hidden_states = self._decoder.hidden_states(on_device)
            losses = self._losses(hidden_states[-1], on_device)
            total = losses[0] + settings.stream_loss_weight * losses[1]
            total = total / sum(len(each.labels) for each in batches)
            if self._auxiliary is not None:
                loss = self._auxiliary.loss(self._decoder, hidden_states, on_device) / len(batches)
                total = total + settings.auxiliary_loss_weight * loss
                auxiliary_loss += loss.detach()
            total.backward()
            sums += losses.detach()
        length = nn.utils.clip_grad_norm_(self._trained.values(), settings.clip_norm)
        self._note_losses(sums, batches, length)  # raises before a bad gradient is applied
        if self._auxiliary is not None:
            self.auxiliary_losses.append(auxiliary_loss.item())
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.step)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1

    def _losses(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(2,) losses summed over the reply tokens and over the decisions."""
        logits = self._decoder.logits_of(hidden, batch)
        if self._unjudged is not None:
            first_words = self._unjudged.first_words(batch.token_ids, batch.is_text).flatten()
            logits = self._unjudged.lowered(logits, first_words[batch.label_rows], batch.labels)
        losses = cross_entropy(logits, batch.labels, reduction="none")
        return torch.stack([losses[~batch.is_stream].sum(), losses[batch.is_stream].sum()])

    def _note_losses(self, sums: Tensor, batches: list[Batch], gradient_length: Tensor) -> None:
        num_decisions = sum(int(batch.is_stream.sum()) for batch in batches)
        num_words = sum(len(batch.labels) for batch in batches) - num_decisions
        lm_sum, stream_sum = sums.tolist()
        if not math.isfinite(lm_sum + stream_sum) or not gradient_length.isfinite():
            raise DataError(
                f"the loss or the gradient is not finite at step {self.step + 1}; "
                "lower learning_rate in the recipe"
            )
        self.lm_losses.append(ratio(lm_sum, num_words))
        self.stream_losses.append(ratio(stream_sum, num_decisions))

    def _progress(self) -> str:
        kinds: dict[str, Sequence[float | None]] = {
            "loss": self.lm_losses,
            "stream": self.stream_losses,
            self._settings.auxiliary_loss: self.auxiliary_losses,
        }
        losses = " ".join(
            f"{name} {shown_loss(recent(each))}" for name, each in kinds.items() if each
        )
        return f"step {self.step}, {losses}, {self.step / self.time_s:.2f} steps/s"


def trained_parameters(model: VideoLLM, trainable: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """The parameters whose name contains one of `trainable`, without the vision tower's.

    Raises:
        DataError: some of `trainable` match no parameter; names all of them.
    """
    able = {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith("vision_model.")
    }
    lost = [part for part in trainable if not any(part in name for name in able)]
    if lost:
        groups = sorted({name.split(".")[0] for name in able})
        raise DataError(
            f"[train] trainable: no parameter name contains {', '.join(map(repr, lost))}; "
            f"the model has {', '.join(groups)}, and the vision tower is never trained"
        )
    return {name: able[name] for name in able if any(part in name for part in trainable)}


def adamw(trained: dict[str, nn.Parameter], settings: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay for matrices, not for norms, biases and the token embedding."""
    is_decayed = {
        name: parameter.ndim > 1 and "embed_tokens" not in name
        for name, parameter in trained.items()
    }
    groups: list[dict[str, Any]] = [
        {"params": [trained[name] for name in trained if is_decayed[name]]},
        {"params": [trained[name] for name in trained if not is_decayed[name]], "weight_decay": 0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=ADAM_BETAS,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def learning_rate(settings: TrainConfig, step: int) -> float:
    """The learning rate after `step` steps: linear warmup, then a cosine."""
    num_warmup = round(settings.warmup_ratio * settings.steps)
    if step < num_warmup:
        return settings.learning_rate * (step + 1) / num_warmup
    done = (step - num_warmup) / max(1, settings.steps - num_warmup)
    cosine = (1 + math.cos(math.pi * done)) / 2
    return settings.learning_rate * (FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine)


def recent(losses: Sequence[float | None]) -> float | None:
    """Mean of the last steps' losses, without those that are None."""
    return mean([loss for loss in losses[-NUM_STEPS_SHOWN:] if loss is not None])


def shown_loss(loss: float | None) -> str:
    """The loss as text."""
    return "-" if loss is None else f"{loss:.3f}"


@contextmanager
def postponed_interrupts() -> Iterator[Callable[[], bool]]:
    """Yields whether a stop signal was received; a second one interrupts at once.

    SIGHUP never does: a terminal that closes may send it twice, and it may follow SIGTERM.
    """
    came = threading.Event()
    signals = stop_signals()
    if threading.current_thread() is not threading.main_thread():  # only it may handle signals
        yield came.is_set
        return
    previous = {each: signal.getsignal(each) for each in signals}

    def note(_number: int, _frame: object) -> None:
        came.set()
        for each in signals:
            if each is not signal.SIGHUP:
                signal.signal(each, signal.default_int_handler)

    for each in signals:
        signal.signal(each, note)
    try:
        yield came.is_set
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
