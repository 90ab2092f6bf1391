"""Where a run's numbers go: metrics.jsonl always, TensorBoard, W&B, and the terminal."""

import contextlib
import secrets
import sys
import time
from typing import Any

import numpy as np
import rich.console
import rich.progress

from pit_jax import installation, printing
from pit_jax.errors import ConfigError, PitError
from pit_jax.files import told
from pit_jax.rundir import RunDir

_SHORT_S = 0.05  # too short a time to tell a rate by


def check(config: Any) -> None:
    """Refuses what `Writers` could not do, before anything is written.

    Raises:
      ConfigError: if a package is missing.
    """
    if config.train.wandb:
        _wandb()


class Writers:
    """Writes a row of scalars to every place the config names; a context. One process writes.

    Raises:
      ConfigError: if Weights & Biases accepts no run.
      StorageError: from every method, if a file cannot be written.
    """

    def __init__(self, rundir: RunDir, config: Any):
        self._rundir = rundir
        self._events = self._wandb = None
        if config.train.wandb:
            self._wandb = _begin_wandb(rundir, config)
        if config.train.tensorboard:
            import tensorboardX

            with self._told():
                self._events = tensorboardX.SummaryWriter(rundir.local("events"))

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # Of a run that fails the first error is the one to tell.
        with contextlib.suppress(*[PitError] if error else []):
            self.close()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """One row: {"step", "time", **scalars}; time is seconds since the epoch."""
        self._rundir.append_row({"step": step, "time": round(time.time(), 3), **scalars})
        with self._told():
            for name, value in scalars.items() if self._events else ():
                self._events.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(scalars, step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture (H, W, 3) uint8: a PNG file in the run directory, and TensorBoard."""
        self._rundir.write_picture(step, name, pixels)
        with self._told():
            if self._events:
                self._events.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is left; to be called once more is harmless.

        Raises:
          StorageError: if that fails.
        """
        events, run, self._events, self._wandb = self._events, self._wandb, None, None
        if run:
            run.finish()
        with self._told():
            if events:
                events.close()
        self._rundir.flush()

    def _told(self) -> contextlib.AbstractContextManager[None]:
        return told(self._rundir.path / "events")


def _wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            f"config.train.wandb needs Weights & Biases: {installation.install('wandb')}"
        ) from None
    return wandb


def _begin_wandb(rundir: RunDir, config: Any) -> Any:
    """The run there: of a run that is resumed the same one, by the id in wandb.json."""
    known = rundir.wandb_id()
    chosen = known or secrets.token_hex(8)
    try:
        begun = _wandb().init(
            project=config.train.wandb,
            config=config.to_dict(),
            name=rundir.path.name,
            id=chosen,
            resume="allow",
        )
    except Exception as error:  # no key, no network, no such project: all of them its own
        line = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"config.train.wandb={config.train.wandb}: Weights & Biases accepts no run: {line}"
        ) from None
    if known is None:
        rundir.write_wandb_id(chosen)
    return begun


class Progress:
    """A live bar on a terminal, plain lines elsewhere, nothing on processes above 0.

    `first` is what the bar says as long as there are no numbers.
    """

    def __init__(self, total: int, title: str, quiet: bool = False, first: str = "compiling"):
        self._total, self._title, self._quiet = total, title, quiet
        self._console = rich.console.Console(stderr=False)
        self._bar = None
        if self._console.is_terminal and not quiet:
            columns = (
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(bar_width=None),
                rich.progress.TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                rich.progress.TextColumn("{task.fields[numbers]}"),
                rich.progress.TextColumn("{task.fields[left]}"),
            )
            self._bar = rich.progress.Progress(*columns, console=self._console)
            self._task = self._bar.add_task(title, total=total, numbers=first, left="")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if not self._quiet:
            if self._bar:
                self._console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                printing.line(text, sys.stdout)

    def warn(self, text: str) -> None:
        """A line that matters even when nobody watches the bar."""
        printing.line(text, sys.stderr)

    def update(
        self, step: int, loss: float | None = None, rate: float = 0, left: float = 0
    ) -> None:
        """Moves the bar; `rate` in images/s, `left` in seconds; what is not trained has no loss."""
        if not self._bar:
            return
        fields = {}
        if loss is not None or rate:
            fields = {"numbers": _numbers(loss, rate), "left": _left(left)}
        self._bar.update(self._task, completed=step, **fields)

    def line(
        self, step: int, loss: float | None, rate: float, left: float, extra: str = ""
    ) -> None:
        """The same as a plain line where there is no bar; `extra` as a line anywhere."""
        if not self._bar:
            word = "" if loss is None else "step "
            line = f"{self._title} {word}{step}/{self._total}"
            parts = (line, _numbers(loss, rate), _left(left), extra)
            self.say("  ".join(part for part in parts if part))
        elif extra:
            self.say(f"{self._title} step {step}: {extra}")


class Counted:
    """Images counted off, and a progress bar that is told how fast they come."""

    def __init__(self, progress: Progress, total: int):
        self._progress, self._total, self._done = progress, total, 0
        self._started: float | None = None

    def add(self, count: int) -> None:
        self._done += count
        if self._started is None:  # compiling, or starting processes, ends with the first
            self._started, self._first = time.time(), self._done
        self._progress.update(self._done, None, *self._rate())

    def line(self) -> None:
        """A line, where there is no bar."""
        self._progress.line(self._done, None, *self._rate())

    def _rate(self) -> tuple[float, float]:
        """Images/s, and seconds left."""
        seconds = time.time() - self._started if self._started else 0.0
        if seconds < _SHORT_S:
            return 0.0, 0.0
        rate = (self._done - self._first) / seconds
        return rate, (self._total - self._done) / rate if rate else 0.0


def _numbers(loss: float | None, rate: float) -> str:
    parts = [] if loss is None else [f"loss {loss:.4f}"]
    if rate:  # not known before the second step
        parts.append(f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s")
    return "  ".join(parts)


def _left(seconds: float) -> str:
    return f"{duration(seconds)} left" if seconds else ""


def duration(seconds: float) -> str:
    """ "12 s", "3:05", "2:03:05" hours, "4 d 03 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    if whole < 2 * 86400:
        return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{whole // 86400} d {whole // 3600 % 24:02d} h"
