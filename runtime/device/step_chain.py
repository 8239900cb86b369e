"""Run the decoder layers of a step one after another, or as one CUDA graph if the shape repeats.

A captured graph holds addresses, shapes and the state of its contexts, so each graph has its own
contexts, as TensorRT requires; all contexts share one scratch memory. The first step of a shape
runs layer by layer, the second is captured, later ones are one launch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mod_edge.bundle.shape_ranges import profile_for
from mod_edge.errors import BackendError
from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.runtime.device.graph_set import GraphContext, GraphSet
from mod_edge.runtime.device.step_inputs import StepShape

# A graph in use is not replaced by another: capturing one costs many steps.
MIN_IDLE_STEPS = 256

Bind = Callable[[list[GraphContext], StepShape], None]


@dataclass
class CapturedStep:
    """A graph and the contexts that it was captured from, which must live as long.

    If the capture failed, `graph` is None and the contexts only live until their step has run.
    """

    graph: Any | None
    contexts: list[GraphContext]
    last_used: int  # number of the step


@dataclass
class PlainSteps:
    """The contexts of one optimization profile and the shape that they are bound to."""

    contexts: list[GraphContext]
    bound: StepShape | None = None


@dataclass
class StepCounts:
    """How many steps ran in each way; `refused` counts shapes that cannot be captured."""

    plain: int = 0
    captured: int = 0
    launched: int = 0
    refused: int = 0


class StepChain:
    """Runs the layers of any step; `warnings` reports shapes that cannot be captured."""

    def __init__(
        self,
        driver: CudaDriver,
        engines: GraphSet,
        layers: list[str],
        bind: Bind,
        *,
        max_frames: int,
        max_graphs: int,
    ) -> None:
        """Make the contexts that steps run in layer by layer.

        Args:
            driver: the device.
            engines: with an engine for each of `layers`.
            layers: graph names in the order of a step.
            bind: binds the tensors of one context per layer for a step of that shape.
            max_frames: largest F.
            max_graphs: that are kept; each holds one context per layer.

        Raises:
            BackendError: a context cannot be made.
        """
        self.counts = StepCounts()
        self.warnings: list[str] = []
        self._driver = driver
        self._engines = engines
        self._layers = layers
        self._bind = bind
        self._plain = {
            profile: PlainSteps(self._contexts(profile))
            for profile in dict.fromkeys(map(profile_for, range(max_frames + 1)))
        }
        self._captured: dict[StepShape, CapturedStep] = {}
        self._retired: list[CapturedStep] = []
        self._seen: set[StepShape] = set()
        self._refused: set[StepShape] = set()
        self._max_graphs = max_graphs
        self._num_steps = 0

    def run(self, shape: StepShape) -> None:
        """Run a step, without waiting for it.

        Raises:
            BackendError: an engine does not run.
        """
        self._num_steps += 1
        step = self._captured.get(shape)
        if step is not None:
            step.last_used = self._num_steps
            self._driver.launch(step.graph)
            self.counts.launched += 1
            return
        is_repeated = shape in self._seen and shape not in self._refused
        is_repeated = is_repeated and self._engines.can_capture
        self._seen.add(shape)
        if not (is_repeated and self._make_room() and self._run_and_capture(shape)):
            self._run_plain(shape)

    def release_retired(self) -> None:
        """Free graphs and contexts that are no longer needed; the device must be idle."""
        for step in self._retired:
            if step.graph is not None:
                self._driver.destroy_graph(step.graph)
        self._retired.clear()

    def close(self) -> None:
        """Free all graphs and contexts; the device must be idle."""
        self._retired += self._captured.values()
        self._captured.clear()
        self.release_retired()
        self._plain.clear()

    def _run_plain(self, shape: StepShape) -> None:
        plain = self._plain[profile_for(shape.num_frames)]
        if plain.bound != shape:
            plain.bound = None  # in case bind fails half way
            self._bind(plain.contexts, shape)
            plain.bound = shape
        _enqueue(plain.contexts)
        self.counts.plain += 1

    def _make_room(self) -> bool:
        """Retire the least recently used graph if all slots are taken; False if all are in use."""
        if len(self._captured) < self._max_graphs:
            return True
        oldest = min(self._captured, key=lambda shape: self._captured[shape].last_used)
        if self._num_steps - self._captured[oldest].last_used < MIN_IDLE_STEPS:
            return False
        self._retired.append(self._captured.pop(oldest))  # the device may still run it
        self._seen.discard(oldest)
        return True

    def _run_and_capture(self, shape: StepShape) -> bool:
        """Run a step in new contexts and keep its graph; False if nothing has run."""
        try:
            contexts = self._contexts(profile_for(shape.num_frames), is_captured=True)
            self._bind(contexts, shape)
        except BackendError as exc:
            self._refuse(shape, str(exc))
            return False
        # A context must run once in its shape before it is captured; this also runs the step.
        _enqueue(contexts)
        step = CapturedStep(None, contexts, self._num_steps)
        if not all(context.is_capturable for context in contexts):
            self._refuse(shape, "TensorRT does not allow it")
            self._retired.append(step)
            return True
        try:
            step.graph = self._driver.capture(lambda: _enqueue(contexts))
        except BackendError as exc:
            self._refuse(shape, str(exc))
            self._retired.append(step)
            return True
        self.counts.captured += 1
        self._captured[shape] = step
        return True

    def _refuse(self, shape: StepShape, reason: str) -> None:
        self._refused.add(shape)
        self.counts.refused += 1
        if not self.warnings:  # one warning is enough: only the speed differs
            self.warnings.append(
                f"steps of {shape.num_text} text tokens and {shape.num_frames} frames run "
                f"layer by layer, not as one CUDA graph: {reason}"
            )

    def _contexts(self, profile: str, *, is_captured: bool = False) -> list[GraphContext]:
        return [
            self._engines.context(name, profile, is_captured=is_captured) for name in self._layers
        ]


def _enqueue(contexts: list[GraphContext]) -> None:
    for context in contexts:
        context.enqueue()
