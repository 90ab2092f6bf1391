"""A comparison as files for other programs: CSV, one row a run, and JSON."""

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from pit_jax.files import printable
from pit_jax.study import provenance
from pit_jax.study.collect import Run
from pit_jax.study.compare import Comparison, Entry
from pit_jax.study.space import text

SCHEMA = 1
COSTS = ("parameters", "tokens", "forward_flops", "training_flops")


def cost(run: Run) -> dict[str, float | None]:
    """What a run is and took; None where its directory does not say."""
    rates = {"images_per_s": run.images_per_s, "device_hours": run.device_hours}
    return {name: run.cost(name) for name in COSTS} | rates


def to_csv(comparison: Comparison) -> str:
    """One row a run: group, directory, seed, differing fields, cost, every metric."""
    names = sorted({name for run in comparison.runs for name in run.result})
    head = ["group", "directory", "model", "seed", "step", *comparison.fields]
    head += [*COSTS, "images_per_s", "device_hours", *names]
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(head)
    for entry in comparison.entries:
        fields = entry.group.fields
        for run in entry.group.runs:
            row = [_cell(entry.label), _cell(_shown(run.path)), run.model, run.seed, run.step]
            row += [_field(fields[n]) if n in fields else None for n in comparison.fields]
            row += [*cost(run).values(), *(run.result.get(name) for name in names)]
            writer.writerow("" if value is None else value for value in row)
    return output.getvalue()


def to_json(comparison: Comparison) -> str:
    """The comparison; values in the metric's own unit, null where there is none.

    {schema, metric, baseline, level, groups: [{label, model, fields, seeds: {seed: value},
    mean, interval, difference: {mean, interval, paired, count, p_t, p_permutation, p_t_holm,
    p_permutation_holm}, published, cost, runs}], handmade, unfinished, published_elsewhere,
    warnings, notes, made: {date, commit, devices, ...}, studies}
    """
    described = {
        "schema": SCHEMA,
        "metric": comparison.metric,
        "baseline": comparison.baseline,
        "level": 0.95,
        "groups": [_group(entry) for entry in comparison.entries],
        "handmade": [dict(row) for row in comparison.handmade],
        "unfinished": [{"run": name, "state": state} for name, state in comparison.found.others],
        "published_elsewhere": list(comparison.elsewhere),
        "warnings": list(comparison.warnings),
        "notes": list(comparison.notes),
        "made": {what.lower(): values for what, values in provenance.made_by(comparison.runs)},
        "studies": [{"file": s.file, "command": s.command} for s in comparison.found.sweeps],
    }
    return json.dumps(_finite(described), indent=1, allow_nan=False) + "\n"


def _group(entry: Entry) -> dict[str, Any]:
    difference = None
    if entry.difference:
        difference = vars(entry.difference) | {
            "p_t_holm": entry.p_t,
            "p_permutation_holm": entry.p_permutation,
        }
    return {
        "label": entry.label,
        "model": entry.group.model,
        "fields": dict(entry.group.fields),
        "seeds": {str(seed): value for seed, value in entry.values.items()},
        "mean": entry.mean,
        "interval": entry.interval,
        "difference": difference,
        "published": list(entry.published),
        "cost": mean_cost(entry),
        "runs": [_run(run) for run in entry.group.runs],
    }


def _run(run: Run) -> dict[str, Any]:
    what = {"directory": _shown(run.path), "seed": run.seed, "result": dict(run.result)}
    return what | cost(run)


def mean_cost(entry: Entry) -> dict[str, float | None]:
    """The mean over a group's runs of each cost that all of them know."""
    every = [cost(run) for run in entry.group.runs]
    means = {}
    for name in every[0]:
        known = [one[name] for one in every]
        means[name] = None if None in known else math.fsum(known) / len(known)
    return means


def _shown(path: str) -> str:
    """A directory as people would write it here: a file of results names no one's home."""
    here = os.path.join(os.getcwd(), "")
    return printable(path.removeprefix(here))


def _field(value: Any) -> str:
    """A field's value: its text, of a number as it is."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return text(value) if number else _cell(text(value))


def _cell(words: str) -> str:
    """Text for a spreadsheet, which would take some beginnings for a formula."""
    return f"'{words}" if words.startswith(("=", "+", "-", "@")) else words


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(x) for key, x in value.items()}
    return [_finite(x) for x in value] if isinstance(value, list | tuple) else value
