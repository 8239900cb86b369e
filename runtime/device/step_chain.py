"""The decoder layers of a step, one behind the other, and as one CUDA graph where a step repeats.

A captured graph holds addresses, shapes and the state of its contexts, so each has contexts of its
own, as TensorRT wants it; they share the scratch memory of all the others. A step whose shape is
seen for the first time runs layer by layer, the second time it is captured, from then on it is one
launch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mod_edge.bundle.shape_ranges import profile_for
from mod_edge.errors import BackendError
from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.runtime.device.graph_set import GraphContext, GraphSet
from mod_edge.runtime.device.step_inputs import StepShape

# A stream repeats few shapes (a frame, a token, the usual prefixes), and each graph holds a context
# of every layer. One that is in use is not given up for another: making one costs many steps.
MAX_GRAPHS = 8
MIN_IDLE_STEPS = 256

Bind = Callable[[list[GraphContext], StepShape], None]


@dataclass
class CapturedStep:
    """A graph and the contexts that it was captured from, which live as long as it.

    Where a capture failed there is no graph, and the contexts only have to end their one step.
    """

    graph: Any | None
    contexts: list[GraphContext]
    last_used: int  # number of the step


@dataclass
class PlainSteps:
    """The contexts of one optimization profile and the step that they are bound to."""

    contexts: list[GraphContext]
    bound: StepShape | None = None


@dataclass
class CaptureCounts:
    """How steps ran, by number."""

    plain: int = 0
    captured: int = 0
    launched: int = 0
    refused: int = 0


class StepChain:
    """Runs the layers of any step; `warnings` says if steps of some shape cannot be captured."""

    def __init__(
        self,
        driver: CudaDriver,
        engines: GraphSet,
        layers: list[str],
        bind: Bind,
        *,
        max_frames: int,
    ) -> None:
        """Make the contexts that steps run in layer by layer.

        Args:
            driver: the device.
            engines: with an engine for each of `layers`.
            layers: graph names in the order of a step.
            bind: binds a context of each layer to what a step of these shape reads and writes.
            max_frames: F at most.

        Raises:
            BackendError: TensorRT cannot make a context.
        """
        self.counts = CaptureCounts()
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
        """Free what is no more needed; the device must have nothing to do."""
        for step in self._retired:
            if step.graph is not None:
                self._driver.destroy_graph(step.graph)
        self._retired.clear()

    def close(self) -> None:
        """Free all graphs and contexts; the device must have nothing to do."""
        self._retired += self._captured.values()
        self._captured.clear()
        self.release_retired()
        self._plain.clear()

    def _run_plain(self, shape: StepShape) -> None:
        plain = self._plain[profile_for(shape.num_frames)]
        if plain.bound != shape:
            plain.bound = None  # for as long as only some are bound anew
            self._bind(plain.contexts, shape)
            plain.bound = shape
        _enqueue(plain.contexts)
        self.counts.plain += 1

    def _make_room(self) -> bool:
        """Give up the graph that was used least lately; False where all are in use."""
        if len(self._captured) < MAX_GRAPHS:
            return True
        oldest = min(self._captured, key=lambda shape: self._captured[shape].last_used)
        if self._num_steps - self._captured[oldest].last_used < MIN_IDLE_STEPS:
            return False
        self._retired.append(self._captured.pop(oldest))  # the device may still be at it
        self._seen.discard(oldest)
        return True

    def _run_and_capture(self, shape: StepShape) -> bool:
        """Run a step in contexts of its own and keep its graph; False where nothing has run."""
        try:
            contexts = self._contexts(profile_for(shape.num_frames), is_captured=True)
            self._bind(contexts, shape)
        except BackendError as exc:
            self._refuse(shape, str(exc))
            return False
        # Before it is captured a context has to run once in its shape, and the step has to run.
        _enqueue(contexts)
        step = CapturedStep(None, contexts, self._num_steps)
        if not all(context.is_capturable for context in contexts):
            self._refuse(shape, "TensorRT says that it cannot be")
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
        if not self.warnings:  # the first says why, and all run alike but for the speed
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
