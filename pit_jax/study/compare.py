"""`pit-jax compare`: finished runs side by side, with what their seeds allow to say."""

import dataclasses
import difflib
import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pit_jax import judge
from pit_jax.errors import ConfigError
from pit_jax.study import groups, provenance, statistics
from pit_jax.study.collect import Collection, Run, collect
from pit_jax.study.groups import Group
from pit_jax.study.space import RUNS


@dataclasses.dataclass(frozen=True)
class Entry:
    """One group and its metric.

    Attributes:
      values: {seed: value}, of the runs that have a finite one.
      interval: 95 %, of the mean; None of one value or two.
      difference: from the baseline; None of the baseline itself and without values.
      p_t, p_permutation: the difference's, corrected by Holm for the number of comparisons.
      published: values of the same label and metric.
    """

    group: Group
    values: Mapping[int, float]
    interval: tuple[float, float] | None
    difference: statistics.Difference | None
    p_t: float | None
    p_permutation: float | None
    published: Sequence[Mapping[str, Any]]

    @property
    def label(self) -> str:
        return self.group.label

    @property
    def mean(self) -> float:
        return math.fsum(self.values.values()) / len(self.values) if self.values else math.nan


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Everything that a table, a file or a report says.

    Attributes:
      fields: those that differ between groups.
      handmade: features that were made by hand, with a value of this metric.
      elsewhere: published numbers of no group here, or of another metric.
      warnings: what makes the groups less than comparable.
      notes: what else is to be said.
    """

    metric: str
    baseline: str
    entries: Sequence[Entry]
    fields: Sequence[str]
    handmade: Sequence[Mapping[str, Any]]
    elsewhere: Sequence[Mapping[str, Any]]
    warnings: Sequence[str]
    notes: Sequence[str]
    found: Collection

    @property
    def runs(self) -> list[Run]:
        return [run for entry in self.entries for run in entry.group.runs]

    @property
    def seeds(self) -> int:
        """Of the group that has most."""
        return max(len(entry.values) for entry in self.entries)


def compare(
    directories: Iterable[str | os.PathLike], baseline: str = "", metric: str = ""
) -> Comparison:
    """Groups finished runs by what differs in their configs, and compares the groups.

    Args:
      directories: of runs, or of sweeps.
      baseline: the label that differences are from; the first group's by default.
      metric: of the last evaluation or of a record; the task's main one by default.

    Raises:
      ConfigError: for a directory that is no run, runs of different tasks, and a baseline
        or metric that none has.
    """
    found = collect(directories)
    runs, notes = _of_one_task(found.runs, metric)
    metric = _metric(runs, metric)
    grouped, left_out = groups.group(runs)
    notes += left_out
    base = _named(grouped, baseline) if baseline else grouped[0]
    values = [_values(one, metric, notes) for one in grouped]
    of_base = values[grouped.index(base)]
    if not of_base:
        other = next((g.label for g, one in zip(grouped, values, strict=True) if one), None)
        raise ConfigError(
            f"the baseline {base.label!r} has no finite {metric}"
            + (f": write --baseline {shlex.quote(other)}" if other else ", nor has any other")
        )
    differences = [
        statistics.difference(one, of_base) if one and group is not base else None
        for group, one in zip(grouped, values, strict=True)
    ]
    tests = sum(d is not None and d.p_permutation is not None for d in differences)
    p_t = statistics.holm([d and d.p_t for d in differences], tests)
    p_permutation = statistics.holm([d and d.p_permutation for d in differences], tests)
    published = []  # shards of one study on several disks all say the same
    for number in (number for sweep in found.sweeps for number in sweep.published):
        published += [] if number in published else [number]
    entries, beside = [], set()
    for place, group in enumerate(grouped):
        own = [
            i
            for i, number in enumerate(published)
            if number["metric"] == metric and number["label"] in group.aliases
        ]
        beside |= set(own)
        entries.append(
            Entry(
                group,
                values[place],
                statistics.interval(list(values[place].values())),
                differences[place],
                p_t[place],
                p_permutation[place],
                [published[i] for i in own],
            )
        )
    fields = list(dict.fromkeys(name for group in grouped for name in group.fields))
    elsewhere = [number for i, number in enumerate(published) if i not in beside]
    kept = [run for group in grouped for run in group.runs]
    handmade = [row for sweep in found.sweeps for row in sweep.handmade if row["metric"] == metric]
    warnings = provenance.warnings(kept)
    done = Comparison(metric, base.label, entries, fields, handmade, elsewhere, warnings, (), found)
    return dataclasses.replace(done, notes=[*found.notes, *notes, *_remarks(done)])


def factor(metric: str) -> float:
    """What a metric is multiplied by where people read it: shares become per cent."""
    return 100.0 if judge.is_share(metric) else 1.0


def unit(metric: str) -> str:
    return "%" if factor(metric) == 100 else ""


def number(metric: str, value: float | None, sign: bool = False) -> str:
    """ "96.67", of a share in per cent, or four significant digits; "–" for None."""
    if value is None:
        return "–"
    form = ("+" if sign else "") + (".2f" if factor(metric) == 100 else ".4g")
    shown = format(value * factor(metric), form)
    return "−" + shown[1:] if shown.startswith("-") else shown


def around(
    metric: str, mean: float, interval: tuple[float, float] | None, sign: bool = False
) -> str:
    """ "96.67 ± 0.83": a mean and half the interval around it."""
    if interval is None:
        return number(metric, mean, sign)
    half = (interval[1] - interval[0]) / 2
    if factor(metric) == 100 or not 1e-6 < half < 1e6:
        return f"{number(metric, mean, sign)} ± {number(metric, half)}"
    digits = max(0, 1 - math.floor(math.log10(half)))  # the half has two that count
    shown = f"{mean:+.{digits}f}" if sign else f"{mean:.{digits}f}"
    return f"{shown.replace('-', '−')} ± {half:.{digits}f}"


def p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def metrics(runs: Sequence[Run]) -> list[str]:
    """Names that every run has."""
    return [name for name in runs[0].result if all(name in run.result for run in runs)]


def _of_one_task(runs: Sequence[Run], metric: str) -> tuple[list[Run], list[str]]:
    """Without those that others needed, as a start or to measure with, of another task."""
    by_name = {run.name: run for run in runs} | {run.path: run for run in runs}
    named = [str(run.config.get(field) or "") for run in runs for field in RUNS]
    last = [os.path.basename(name.rstrip("/")) for name in named]  # a sweep that was moved
    used = {id(by_name.get(n) or by_name.get(end)) for n, end in zip(named, last, strict=True)}
    ends = [run for run in runs if id(run) not in used]
    tasks = {run.task for run in ends}
    if ends and len(tasks) == 1:
        before = [run for run in runs if id(run) in used and run.task not in tasks]
        kept = [run for run in runs if run not in before]
        note = f"left out, as others needed it: {_names(before)}"
        return kept, [note] if before else []
    if metric and all(metric in run.result for run in ends):
        return ends, [f"these runs are of different tasks: {', '.join(sorted(tasks))}"]
    first = {task: next(run.called for run in ends if run.task == task) for task in sorted(tasks)}
    told = " and ".join(f"{task!r} ({name})" for task, name in first.items())
    same = [name for name in metrics(ends) if name.startswith("eval/")]
    hint = f", or name a --metric that all have: {', '.join(same)}" if same else ""
    raise ConfigError(f"runs of different tasks, {told}: compare those of one task{hint}")


def _metric(runs: Sequence[Run], metric: str) -> str:
    every = list(dict.fromkeys(name for run in runs for name in run.result))
    if metric:
        if metric not in every:
            near = difflib.get_close_matches(metric, every, 1, 0.0)
            hint = f"; did you mean {near[0]}? There are {', '.join(sorted(every))}" if near else ""
            raise ConfigError(f"--metric {metric}: no run has it{hint}")
        return metric
    ways = [judge.ordered(names) for names in (metrics(runs), every)]
    other = [name for name in every if name.startswith("eval/")] or every
    if not other:
        raise ConfigError(f"{runs[0].path} was never evaluated: there is no metric to compare")
    return (*ways[0], *ways[1], *other)[0]


def _named(grouped: Sequence[Group], name: str) -> Group:
    found = next((group for group in grouped if name in group.aliases), None)
    if found is None:
        labels = [group.label for group in grouped]
        near = difflib.get_close_matches(name, labels, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"--baseline {name!r} is not one of {', '.join(map(repr, labels))}{hint}")
    return found


def _values(group: Group, metric: str, notes: list[str]) -> dict[int, float]:
    missing = [run for run in group.runs if metric not in run.result]
    unusable = [
        run for run in group.runs if run not in missing and not math.isfinite(run.result[metric])
    ]
    if missing:
        notes.append(f"{group.label}: no {metric} in {_names(missing)}")
    if unusable:
        notes.append(
            f"{group.label}: {metric} is not finite in {_names(unusable)}; mean and interval are"
            " those of the other seeds, which may flatter it"
        )
    return {
        run.seed: run.result[metric]
        for run in group.runs
        if run not in missing and run not in unusable
    }


def _remarks(comparison: Comparison) -> list[str]:
    """How to read the numbers, and what these seeds do not allow to say."""
    remarks = []
    differences = [e.difference for e in comparison.entries if e.difference]
    most, fewest = comparison.seeds, min(len(e.values) for e in comparison.entries)
    if most == 1:
        remarks.append(
            "One seed each: a single value has no interval, and a difference cannot be tested."
        )
    elif most < statistics.FEWEST:
        remarks.append("Two seeds are too few for an interval.")
    else:
        remarks.append("±: half of the 95 % interval of the mean over seeds, Student's t.")
        if fewest < statistics.FEWEST:
            remarks.append("There is no interval for one or two values.")
    pairs = [d.count for d in differences if d.paired]
    welch = [e.label for e in comparison.entries if e.difference and not e.difference.paired]
    if pairs and most > 1:
        remarks.append(
            f"Differences are from the baseline ({comparison.baseline}), paired by seed."
        )
    base = next(e for e in comparison.entries if e.label == comparison.baseline)
    for entry in comparison.entries:
        held = entry.difference
        if held and held.paired and held.count < max(len(entry.values), len(base.values)):
            common = ", ".join(str(s) for s in entry.values if s in base.values)
            remarks.append(
                f"{entry.label}: the difference uses only the seeds that both have, {common}."
            )
    if welch:
        remarks.append(
            f"{_some(welch)}: other seeds than the baseline's, so the two are compared"
            " as independent groups (Welch)."
        )
    with_p = [d for d in differences if d.p_permutation is not None]
    if tested := len(with_p):
        remarks.append(
            f"p: t-test and permutation test, two-sided, corrected for {tested}"
            f" {'comparison' if tested == 1 else 'comparisons'} (Holm). The intervals are not."
        )
        n = max((d.count for d in with_p if d.paired), default=0)
        if n and (least := min(1.0, tested * 2 / 2**n)) > 0.05:
            remarks.append(
                f"With {n} pairs and {tested} comparisons the permutation test's smallest corrected"
                f" p is {least:.3g}, so it cannot fall below 0.05 here: it would take"
                f" {math.ceil(math.log2(tested * 2 / 0.05))} seeds."
            )
        untested = [
            e.label for e in comparison.entries if e.difference and e.difference not in with_p
        ]
        if untested:
            remarks.append(f"{_some(untested)}: no p-value below {statistics.ENOUGH} seeds.")
    elif pairs and most > 1:
        n = max(pairs)
        remarks.append(
            f"No p-values below {statistics.ENOUGH} seeds: with {n} {'pair' if n == 1 else 'pairs'}"
            f" the smallest p of a permutation test is {2 / 2**n:.3g}. Every single value is given."
        )
    elif differences and most > 1:
        remarks.append(
            f"No p-values below {statistics.ENOUGH} seeds a group: a permutation test of so few"
            " can hardly reach 0.05. Every single value is given."
        )
    if len(differences) > 1 and not tested and most >= statistics.FEWEST:
        remarks.append(
            f"Each interval is for one comparison alone: of {len(differences)} some may exclude 0"
            " by chance."
        )
    if comparison.handmade:
        names = "; ".join(row["label"] for row in comparison.handmade)
        remarks.append(f"Made by hand, not by a run, and measured once: {names}.")
    outside = [e for e in comparison.entries if e.interval and e.interval[1] > 1]
    if factor(comparison.metric) == 100 and outside:
        remarks.append(
            "Student's t has no upper bound: with few seeds an interval can exceed 100 %."
        )
    return remarks


def _names(runs: Sequence[Run]) -> str:
    return _some([run.called for run in runs])


def _some(names: Sequence[str]) -> str:
    return "; ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
