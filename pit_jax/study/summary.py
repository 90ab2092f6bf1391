"""A comparison in words, and on a terminal of 80 columns."""

import math
import sys
import textwrap

from pit_jax.study import statistics, tables
from pit_jax.study.compare import Comparison, Entry, around, number, p_value, unit
from pit_jax.study.export import mean_cost

# R² from which on row and column are known, and up to which next to nothing of them is.
_MOST, _LEAST = 0.8, 0.2
_R2 = "eval/locality/position_r2"  # in the last evaluation
_LISTED = 6  # comparisons that are told one by one
_TESTS = ("p_t", "p_permutation")
SHOWN_SEEDS = 8  # columns of single values


def sentences(comparison: Comparison) -> list[str]:
    """What came out, no more than the intervals allow to say."""
    metric, base = comparison.metric, comparison.baseline
    entries = [e for e in comparison.entries if e.values]
    told = []
    if len(entries) <= _LISTED:
        told.append(f"{metric}: {'; '.join(_mean(metric, entry) for entry in entries)}.")
    else:
        ordered = sorted(entries, key=lambda e: e.mean)
        ends = f"from {_mean(metric, ordered[0])} to {_mean(metric, ordered[-1])}"
        told.append(f"{metric} of {len(entries)} settings: {ends}.")
    compared = [e for e in entries if e.difference]
    known = [e for e in compared if e.difference.interval]
    if compared and not known:
        told.append(
            "With so few seeds the differences have no intervals: another seed might reverse the"
            " order."
        )
    elif len(compared) <= _LISTED:
        told += [_against(metric, base, entry) for entry in known]
    else:
        above = sum(e.difference.interval[0] > 0 for e in known)
        below = sum(e.difference.interval[1] < 0 for e in known)
        told.append(
            f"Of {len(known)} differences from {base}, the 95 % interval lies above 0 in {above},"
            f" below 0 in {below} and includes 0 in {len(known) - above - below}."
        )
    tested = [e for e in compared if e.p_permutation is not None]
    if len(compared) > _LISTED and tested:
        small = [
            sum((p or 1) < 0.05 for p in (getattr(e, name) for e in tested)) for name in _TESTS
        ]
        told.append(
            f"After Holm's correction p is below 0.05 for {small[0]} of {len(tested)} by the t-test"
            f" and for {small[1]} by the permutation test."
        )
    return told + _two_dimensions(comparison)


def _two_dimensions(comparison: Comparison) -> list[str]:
    """Whether models found where their tokens lie, where it was measured and not told them.

    Of learned position embeddings, by how well a linear map recovers row and column.
    """
    told = []
    for entry in comparison.entries:
        learned = [r for r in entry.group.runs if r.config["model.position"] == "learned"]
        found = [run.result[_R2] for run in learned if _R2 in run.result]
        if not found or not all(map(math.isfinite, found)):
            continue
        mean, interval = math.fsum(found) / len(found), statistics.interval(found)
        if interval:
            low, high = interval
            how = f"95 % interval {_r2(low)} to {_r2(high)}, {len(found)} seeds"
        else:
            low, high = min(found), max(found)
            seeds = "one seed" if len(found) == 1 else f"{len(found)} seeds"
            between = "" if low == high else f"{_r2(low)} to {_r2(high)}, "
            how = f"{between}{seeds}, too few for an interval"
        if interval and low <= 0:
            shows = "has not been shown to find"
        elif low >= _MOST:
            shows = "found"
        elif high >= _LEAST:
            shows = "found some of"
        else:
            shows = "found little of" if high > 0 else "found nothing of"
        where = "the image's two dimensions" + ("" if interval else " in these runs")
        told.append(
            f"{entry.label} {shows} {where}: from its learned position embeddings a linear map"
            f" recovers row and column of held-out positions with R² {_r2(mean)} ({how};"
            " 1 is exact, 0 no better than the mean)."
        )
    return told if len(told) <= _LISTED else []


def _r2(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def show(comparison: Comparison) -> None:
    """Prints the tables, then warnings, unfinished runs and notes."""
    metric, entries = comparison.metric, comparison.entries
    with_p = any(e.p_permutation is not None for e in entries)
    published = any(e.published for e in entries)
    heads = ["setting", "seeds", "mean"] + (["difference"] if len(entries) > 1 else [])
    heads += ["published"] if published else []
    rows = []
    for entry in entries:
        row = [entry.label, len(entry.values)]
        row.append(around(metric, entry.mean, entry.interval) if entry.values else "–")
        if len(entries) > 1:
            row.append(difference(comparison, entry))
        if published:
            row.append(", ".join(number(metric, p["value"]) for p in entry.published) or "–")
        rows.append(row)
    for feature in comparison.handmade:
        row = [feature["label"], "–", number(metric, feature["value"])]
        rows.append(row + ["–"] * (len(heads) - len(row)))
    tables.show(f"{metric}{', %' if unit(metric) else ''}", heads, rows)
    if with_p:
        rows = [[e.label, p_value(e.p_t), p_value(e.p_permutation)] for e in entries]
        tables.show("", ["corrected p", "t-test", "permutation test"], rows)
    seeds = sorted({seed for entry in entries for seed in entry.values})
    if 1 < len(seeds) <= SHOWN_SEEDS:
        rows = [[e.label, *(number(metric, e.values.get(s)) for s in seeds)] for e in entries]
        tables.show("", ["every value", *(f"seed {seed}" for seed in seeds)], rows)
    elif len(seeds) > 1:
        for e in entries:
            values = ", ".join(f"{seed}: {number(metric, e.values[seed])}" for seed in e.values)
            _print(f"{e.label}, every value by seed: {values or 'none'}")
    costs = [mean_cost(entry) for entry in entries]
    if any(value is not None for cost in costs for value in cost.values()):
        names = ["cost", "tokens", "parameters", "forward FLOPs", "images/s", "device-h"]
        rows = [
            [entry.label, *cost_texts(cost)] for entry, cost in zip(entries, costs, strict=True)
        ]
        tables.show("", names, rows)
    for line in comparison.warnings:
        _print(f"warning: {line}")
    for line in (*uncounted(comparison), *comparison.notes):
        _print(line)


def uncounted(comparison: Comparison) -> list[str]:
    """Runs without a result: each with its state, or of many in one state how many there are."""
    by_state: dict[str, list[str]] = {}
    for name, state in comparison.found.others:
        by_state.setdefault(state, []).append(name)
    lines = []
    for state, names in by_state.items():
        if len(names) <= _LISTED:
            lines += [f"not counted: {name} ({state})" for name in names]
        else:
            lines.append(f"not counted: {len(names)} runs ({state}), {names[0]} the first of them")
    return lines


def difference(comparison: Comparison, entry: Entry) -> str:
    """A table's cell: "+0.83 ± 1.02", "baseline"."""
    if entry.label == comparison.baseline:
        return "baseline"
    if entry.difference is None:
        return "–"
    found = entry.difference
    return around(comparison.metric, found.mean, found.interval, sign=True)


def cost_texts(cost: dict[str, float | None]) -> list[str]:
    """Tokens, parameters, forward FLOPs, images/s and device hours, as a table has them."""
    whole = [cost["tokens"], cost["parameters"]]
    shown = ["–" if value is None else f"{value:,.0f}" for value in whole]
    shown.append(_si(cost["forward_flops"]))
    rate = cost["images_per_s"]
    shown.append("–" if rate is None else f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}")
    hours = cost["device_hours"]
    return [*shown, "–" if hours is None else f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"]


def _mean(metric: str, entry: Entry) -> str:
    count = len(entry.values)
    value = f"{number(metric, entry.mean)}{' %' if unit(metric) else ''}"
    if entry.interval is None:
        return f"{entry.label} {value} ({'one seed' if count == 1 else f'{count} seeds'})"
    low, high = (number(metric, x) for x in entry.interval)
    return f"{entry.label} {value} (95 % interval {low} to {high}, {count} seeds)"


def _against(metric: str, base: str, entry: Entry) -> str:
    found = entry.difference
    low, high = found.interval
    points = " points" if unit(metric) else ""
    head = (
        f"{entry.label} is {number(metric, abs(found.mean))}{points}"
        f" {'above' if found.mean > 0 else 'below'} {base}"
    )
    if found.mean == 0:
        head = f"{entry.label} has the same mean as {base}"
    between = f"{number(metric, low, True)} to {number(metric, high, True)}"
    holds = "which includes 0" if low <= 0 <= high else "which excludes 0"
    paired = f"paired over {found.count} seeds" if found.paired else "independent groups"
    text = f"{head} (95 % interval of the difference {between}, {paired}), {holds}"
    if entry.p_permutation is not None:
        tests = f"t-test {p_value(entry.p_t)}, permutation test {p_value(entry.p_permutation)}"
        text += f"; p after Holm's correction: {tests}"
    elif low <= 0 <= high:
        text += ": these runs cannot tell the two apart"
    return f"{text}."


def _si(value: float | None) -> str:
    """ "29.9 M", "20.6 G"."""
    if value is None:
        return "–"
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def _print(line: str) -> None:
    print("\n".join(textwrap.wrap(line, 80, subsequent_indent="  ", break_long_words=False)))
    sys.stdout.flush()
