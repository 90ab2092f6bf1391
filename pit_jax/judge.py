"""What a task is judged by: which metrics, in which order, and which way is better. Said once.

The best checkpoints, a run's closing line, lists of runs, comparisons and searches all ask here.
The first metric of the table that was measured decides, so that one order serves all tasks; a
pretext task is judged by what a linear classifier makes of its features, where that is measured,
since its own loss compares only between models that solve the same puzzle.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping

from pit_jax.errors import ConfigError

_ROOM = "eval/"  # what the names of evaluations begin with in rows


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number that an evaluation yields.

    Attributes:
      name: without "eval/"; one that begins with * stands for every beginning.
      sign: 1 where more is better, -1 where less is.
      title: what people call it.
      tasks: that are judged by it.
      evaluations: of `eval.what`, those that yield it.
      form: how its value is written.
      unit: "%" of a share, which is shown times 100, or what stands behind a number.
    """

    name: str
    sign: int
    title: str
    tasks: tuple[str, ...]
    evaluations: tuple[str, ...]
    form: str = ".4g"
    unit: str = ""

    def key(self, names: Iterable[str]) -> str | None:
        """The first of a row's names that is this metric's."""
        return next((name for name in names if self._is(name)), None)

    def _is(self, name: str) -> bool:
        if not self.name.startswith("*"):
            return name == _ROOM + self.name
        inner = name.removeprefix(_ROOM)
        return name != inner and "/" not in inner and inner.endswith(self.name[1:])

    def told(self, value: float) -> str:
        """ "96.4 %", "0.720 m"."""
        share = self.unit == "%"
        return f"{value * (100 if share else 1):{self.form}} {self.unit}".rstrip()


# Whose features a linear classifier may be trained on.
_PROBED = ("classification", "mae", "diffusion", "autoregressive")
METRICS = (
    Metric("accuracy", 1, "accuracy", ("classification",), ("accuracy",), ".1f", "%"),
    Metric("rmse", -1, "RMSE", ("depth",), ("depth",), ".3f", "m"),
    Metric("fid", -1, "FID", ("diffusion",), ("generation",)),
    Metric("*_distance", -1, "distance", ("diffusion",), ("generation",)),
    Metric("psnr", 1, "PSNR", ("autoencoder",), ("reconstruction",), ".2f", "dB"),
    Metric("bits_per_dim", -1, "bits a number", ("autoregressive",), ("likelihood",)),
    Metric("linear_accuracy", 1, "linear accuracy", _PROBED, ("linear",), ".1f", "%"),
    Metric("loss", -1, "held-out loss", ("mae", "diffusion"), ("loss", "reconstruction"), ".4f"),
)


def of(task: str) -> tuple[Metric, ...]:
    """What a task is judged by, the best judge first."""
    return tuple(metric for metric in METRICS if task in metric.tasks)


def first(names: Iterable[str]) -> tuple[str, Metric] | None:
    """Which of a row's names judges the run, if any does: ("eval/accuracy", its Metric)."""
    names = list(names)
    found = ((metric.key(names), metric) for metric in METRICS)
    return next(((key, metric) for key, metric in found if key), None)


def ordered(names: Iterable[str]) -> list[str]:
    """Those of a row's names that may judge a run, the best judge first."""
    names = list(names)
    return [key for metric in METRICS if (key := metric.key(names))]


def score(evaluation: Mapping[str, float]) -> tuple[str, float] | None:
    """By what an evaluation judges a run and how good it found it, the larger the better.

    None where it does not say, or says what is not finite. Scores by different names do not
    compare.
    """
    if not (found := first(evaluation)):
        return None
    key, metric = found
    value = metric.sign * evaluation[key]
    return (key, value) if math.isfinite(value) else None


def objective(task: str, what: Iterable[str]) -> str:
    """What a search looks for by itself: "eval/accuracy", or "-eval/rmse", to be small.

    Args:
      what: the evaluations that every run has, `eval.what`.

    Raises:
      ConfigError: if that is a distance, whose name depends on what features it is of.
    """
    names, judges = set(what), of(task)
    metric = next((m for m in judges if names & set(m.evaluations)), judges[-1])
    if metric.evaluations == ("generation",):
        raise ConfigError(
            f"task {task!r} with config.eval.what={tuple(what)} does not say what trials are"
            ' judged by: write objective = "-eval/fid" or the like into the file'
        )
    return f"{'-' if metric.sign < 0 else ''}{_ROOM}{metric.name}"


def told(evaluation: Mapping[str, float]) -> str:
    """A row's judges and all other accuracies: "accuracy 96.4 %, accuracy top5 99.7 %"."""
    names = ordered(evaluation)
    if names and names[0] in (f"{_ROOM}accuracy", f"{_ROOM}rmse"):  # which say what a loss does
        names = [name for name in names if name != f"{_ROOM}loss"]
    others = (n for n in evaluation if is_share(n) and "/" not in n.removeprefix(_ROOM))
    names += [name for name in others if name not in names]
    return ", ".join(f"{_title(name)} {shown(name, evaluation[name])}" for name in names)


def is_share(name: str) -> bool:
    """Whether a metric is a share of examples, which people read in per cent."""
    return "accuracy" in name


def shown(name: str, value: float) -> str:
    """A metric's value as people read it: "96.4 %"."""
    metric = next((m for m in METRICS if m.key([name])), None)
    if metric is None:
        return f"{100 * value:.1f} %" if is_share(name) else f"{value:.4g}"
    return metric.told(value)


def _title(name: str) -> str:
    metric = next((m for m in METRICS if m.key([name])), None)
    if metric is None or metric.name.startswith("*"):
        return name.removeprefix(_ROOM).replace("_", " ")
    return metric.title
