"""What an evaluation is given: a task at one state, held-out data, and where pictures go."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from pit_jax.errors import StopAsked

if TYPE_CHECKING:  # it reads data, which a bench, that imports every task, does without
    from pit_jax.evals.features import Features


@dataclasses.dataclass(frozen=True)
class Context:
    """One run at one step. All processes hold the same and call it alike.

    Attributes:
      config: resolved.
      task: see tasks/.
      steps: its jitted functions, as `step.build` makes them.
      held_out: `evaluate()` iterates over the evaluation set, the last batch filled up and
        masked.
      training: makes the same of the training set, in order and without augmentation; called
        only by evaluations that need it.
      state: its `eval_params` are evaluated.
      draw: takes a picture's name and its (H, W, C) uint8 pixels; None where nothing is to be
        written.
      record: takes the name of what was measured and all that it depends on, as JSON knows it;
        None likewise.
      say: takes a line or more for people; None where nobody reads.
      network: loads what `eval.features` names, given also `eval.resize` and a mesh.
      stopped: the signal to stop for, 0 for none; all processes ask alike. None where nobody
        may ask.
      kept: what evaluations load or compile once, by a name of theirs; stays from step to step.
    """

    config: Any
    task: Any
    steps: Any
    held_out: Any
    training: Callable[[], Any]
    state: Any = None
    draw: Callable[[str, np.ndarray], None] | None = None
    record: Callable[[str, dict[str, Any]], None] | None = None
    say: Callable[[str], None] | None = None
    network: Callable[[str, str, jax.sharding.Mesh], Any] | None = None
    stopped: Callable[[], int] | None = None
    kept: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def until_stopped(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The same batches, for evaluations that take minutes.

        Raises:
          StopAsked: before the next of them, once a stop was asked for.
        """
        remaining = iter(batches)
        while True:
            if self.stopped and (signal := self.stopped()):
                raise StopAsked(signal)
            try:
                batch = next(remaining)
            except StopIteration:
                return
            yield batch

    @functools.cached_property
    def features(self) -> "tuple[Features, Features]":
        """Of the training set and of the held-out set: made once for all probes."""
        from pit_jax.evals.features import extract

        return extract(self, self._images), extract(self, self.held_out)

    @functools.cached_property
    def views(self) -> np.ndarray:
        """Vectors of `eval.views` views of each training image, (V, N, d) float32."""
        from pit_jax.evals.features import extract_views

        first, _ = self.features
        return extract_views(self, self._images, first, self.config.eval.views)

    @functools.cached_property
    def _images(self) -> Any:
        return self.training()
