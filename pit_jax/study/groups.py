"""Runs that differ by their seed alone are one group: what differs is found by itself."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pit_jax.config import FIELDS
from pit_jax.derived import DERIVED, follows
from pit_jax.rundir import MAY_DIFFER
from pit_jax.study.collect import Run, starts
from pit_jax.study.space import text

# Of what may differ on resume, how long a run trains and how it is measured make another
# experiment all the same. Paths do not: the start of a run is described by its config.
_MATTERS = ("train.steps", "train.epochs", "train.examples", "sample.", "eval.resize")
_MATTERS += ("eval.neighbourhood", "eval.views", "eval.shots", "eval.neighbours")
_IGNORED = ("sample.seed", "sample.batch_size", "init_task", "resume")
_START = "init_from."  # fields of the run that the weights came from


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one setting, one a seed.

    Attributes:
      label: what tables call it, unique in a comparison.
      aliases: what else it may be called, and the label.
      fields: those that differ between groups, {"model.patch": 1}.
      runs: in the order of their seeds.
    """

    label: str
    aliases: frozenset[str]
    fields: Mapping[str, Any]
    runs: Sequence[Run]

    @property
    def model(self) -> str:
        return self.runs[0].model


def group(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """The groups in the order of their first runs, and notes on runs that were left out.

    Of two runs with the same fields and seed the one that ended last counts.
    """
    known = starts(runs)
    expanded = [_fields(run, known) for run in runs]
    varying = _varying(expanded)
    seeds = {name for name in varying if _is_seed(name, runs)}
    shown = [name for name in varying if name not in seeds]
    sorted_runs: dict[tuple, list[Run]] = {}
    values: dict[tuple, dict[str, Any]] = {}
    for run, fields in zip(runs, expanded, strict=True):
        key = tuple(repr(fields.get(name)) for name in shown)
        sorted_runs.setdefault(key, []).append(run)
        values[key] = {name: fields[name] for name in shown if name in fields}
    notes: list[str] = []
    kept = [_one_a_seed(same, notes) for same in sorted_runs.values()]
    fields = _without_derived(list(values.values()), kept)
    names = _names(fields, kept)
    return [
        Group(called, aliases, one, same)
        for (called, aliases), one, same in zip(names, fields, kept, strict=True)
    ], notes


def short_names(names: Iterable[str]) -> dict[str, str]:
    """{"model.patch": "patch"}, dotted where two fields end alike."""
    names = list(names)
    ends = Counter(name.rpartition(".")[2] for name in names)
    return {n: n if ends[n.rpartition(".")[2]] > 1 else n.rpartition(".")[2] for n in names}


def _fields(run: Run, known: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """What makes the experiment: the run's fields, and those of the run it started from."""
    fields = {name: value for name, value in run.config.items() if _counts(name)}
    start = run.config["init_from"]
    if start in known:
        fields["init_from"], before = known[start]
        fields |= {
            _START + name: value
            for name, value in before.items()
            if _counts(name) and not name.endswith("seed")
        }
    return fields


def _counts(name: str) -> bool:
    if name in _IGNORED or name not in FIELDS:
        return False
    return name.startswith(_MATTERS) or not name.startswith(MAY_DIFFER)


def _varying(expanded: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fields with more than one value among those that have it, in the order of config.py."""
    places = {name: place for place, name in enumerate(FIELDS)}
    names = sorted(
        {name for fields in expanded for name in fields},
        key=lambda name: (name.startswith(_START), places[name.removeprefix(_START)]),
    )
    values = {n: {repr(fields[n]) for fields in expanded if n in fields} for n in names}
    return [name for name in names if len(values[name]) > 1]


def _is_seed(name: str, runs: Sequence[Run]) -> bool:
    """train.seed, and seeds that go with it."""
    if name == "train.seed":
        return True
    return name.endswith("seed") and all(run.config.get(name) == run.seed for run in runs)


def _one_a_seed(runs: Sequence[Run], notes: list[str]) -> list[Run]:
    kept: dict[int, Run] = {}
    for run in runs:
        other = kept.get(run.seed)
        if other is not None:
            older, run = sorted(
                (other, run), key=lambda r: r.rows[-1].get("time", 0) if r.rows else 0
            )
            notes.append(
                f"{older.path} has the fields and the seed of {run.path}: the newer one counts"
            )
        kept[run.seed] = run
    return [kept[seed] for seed in sorted(kept)]


def _without_derived(
    fields: Sequence[Mapping[str, Any]], runs: Sequence[Sequence[Run]]
) -> list[dict[str, Any]]:
    """Leaves out what follows from other fields: an MLP of four times the width, and so on."""
    configs = [same[0].config for same in runs]
    derived: set[str] = set()
    for name in DERIVED:
        if all(follows(c, name) for c in configs):
            derived.add(name)
    for name in {name for one in fields for name in one if name.startswith(_START)}:
        own = name.removeprefix(_START)  # a start of the same patch, width, ...
        if all(one[name] == c[own] for one, c in zip(fields, configs, strict=True) if name in one):
            derived.add(name)
    return [{n: v for n, v in one.items() if n not in derived} for one in fields]


def _names(
    fields: Sequence[Mapping[str, Any]], runs: Sequence[Sequence[Run]]
) -> list[tuple[str, frozenset[str]]]:
    """A label and the aliases of each group; every one of them names one group only."""
    by_point = [_point(same) for same in runs]
    by_model = [same[0].model for same in runs]
    by_fields = _by_fields(fields)
    differing = {name for one in fields for name in one}
    says_it = differing <= {"model.patch", "model.name"} and len(set(by_model)) == len(runs)
    explicit = _unique(by_point) and not any("=" in point for point in by_point)
    if explicit:
        labels = by_point
    elif says_it:
        labels = by_model
    else:
        labels = by_point if _unique(by_point) else by_fields
    kinds = [names for names in (labels, by_point, by_model, by_fields) if _unique(names)]
    return [
        (labels[place], frozenset(names[place] for names in kinds)) for place in range(len(runs))
    ]


def _unique(names: Sequence[str]) -> bool:
    return all(names) and len(set(names)) == len(names)


def _point(runs: Sequence[Run]) -> str:
    """The label that a sweep gave the runs, without the seed; "" where they have none."""
    labels = {re.sub(r"[,;]?\s*[\w.]*\bseed[ =]\d+", "", run.point).strip(" ,;") for run in runs}
    return labels.pop() if len(labels) == 1 else ""


def _by_fields(fields: Sequence[Mapping[str, Any]]) -> list[str]:
    """ "patch=1,width=64": all that differs, or of more than three as few as tell them apart."""
    differing = list(dict.fromkeys(name for one in fields for name in one))

    def labels(names: Sequence[str]) -> list[str]:
        short = short_names(names)
        return [
            ",".join(f"{short[n]}={text(one[n], n)}" for n in names if n in one) for one in fields
        ]

    for name in differing[::-1]:
        fewer = [n for n in differing if n != name]
        if len(differing) > 3 and len(set(labels(fewer))) == len(fields):
            differing = fewer
    found = labels(differing)
    if len(fields) == 1:
        return ["all runs"]
    repeated = Counter(found)
    return [n if repeated[n] == 1 and n else f"{n} ({i + 1})".strip() for i, n in enumerate(found)]
