"""How fast a run is: images/s, waiting for input, model FLOP/s utilisation, time left."""

import contextlib
import time
from collections.abc import Iterator

from pit_jax.perf import flops


class Meter:
    """Measures training steps. Compiling, evaluation and checkpoints are kept apart.

    Call `step()` after each dispatched step, the first one only once it has finished:
    the clock starts there, because the first step compiles.
    """

    def __init__(self, batch_size: int, devices: int, flops_per_image: float, device_kind: str):
        self._batch_size, self._devices, self._flops = batch_size, devices, flops_per_image
        self._peak = flops.peak(device_kind)
        self._waited = 0.0  # for input, since the last row
        self._asides: dict[str, list[float]] = {"eval": [], "checkpoint": []}  # seconds of each
        self._excluded = 0.0  # the same, since the last row
        self._steps = self._all_steps = 0
        self._all_seconds = 0.0
        self._since: float | None = None

    def step(self) -> None:
        if self._since is None:
            self._since, self._waited, self._excluded = time.perf_counter(), 0.0, 0.0
        else:
            self._steps += 1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in here is spent waiting for input."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Time in here is "eval" or "checkpoint" and no part of a step."""
        start = time.perf_counter()
        try:
            yield
        finally:  # an evaluation may be stopped half-way
            seconds = time.perf_counter() - start
            self._asides[name].append(seconds)
            self._excluded += seconds

    def rate(self) -> float:
        """Images/s since the last row, or over all if there was no step since."""
        seconds = self._seconds()
        return self._batch_size * self._steps / seconds if self._steps else self.mean_rate()

    def mean_rate(self) -> float:
        """Images/s over all steps but the first."""
        steps = self._all_steps + self._steps
        return self._batch_size * steps / (self._all_seconds + self._seconds()) if steps else 0.0

    def left(self, steps: int, evaluations: int = 0, checkpoints: int = 0) -> float:
        """Seconds that so many more of each take; 0 as long as no step was timed.

        Of evaluations and checkpoints none counts before the first was timed, and the first,
        which compiles, no longer once there was a second.
        """
        rate = self.rate()
        if not rate:
            return 0.0
        more = evaluations * self._typical("eval") + checkpoints * self._typical("checkpoint")
        return steps * self._batch_size / rate + more

    def row(self) -> dict[str, float]:
        """What to log of the steps since the last row; starts the next interval."""
        row = {f"perf/{name}_s": round(sum(times), 3) for name, times in self._asides.items()}
        if self._steps:
            rate = self.rate()
            row |= {
                "perf/images_per_s": rate,
                "perf/images_per_s_per_device": rate / self._devices,
                "perf/step_s": self._batch_size / rate,
                "perf/input_wait_s": self._waited / self._steps,
            }
            if self._peak:
                row["perf/mfu"] = rate * self._flops / (self._devices * self._peak)
            self._all_seconds += self._seconds()
            self._all_steps += self._steps
            self._since, self._steps = time.perf_counter(), 0
            self._waited = self._excluded = 0.0
        return row

    def _typical(self, name: str) -> float:
        times = self._asides[name]
        later = times[1:] or times
        return sum(later) / len(later) if later else 0.0

    def _seconds(self) -> float:
        if self._since is None:
            return 0.0
        return max(time.perf_counter() - self._since - self._excluded, 1e-9)


def due(step: int, total: int, every: int) -> int:
    """How often something happens after `step` that happens every so many and at the last."""
    ended = step < total and total % every != 0
    return max(0, total // every - step // every) + ended
