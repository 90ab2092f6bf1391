"""The plots of a report: what is drawn of a comparison, in both widths, and said of it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import markupsafe

from pit_jax.config import FIELDS
from pit_jax.study import curves, plots, statistics
from pit_jax.study.compare import Comparison, factor, number, unit
from pit_jax.study.space import text


@dataclasses.dataclass(frozen=True)
class Table:
    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plot in both widths, and the values that it draws."""

    title: str
    caption: str
    wide: markupsafe.Markup
    narrow: markupsafe.Markup
    values: Table


def axis(comparison: Comparison) -> str:
    """The metric and its unit."""
    return f"{comparison.metric}{', %' if unit(comparison.metric) else ''}"


def figures(comparison: Comparison, values: Table) -> list[Figure]:
    """The settings, along the field that varies, and the differences; `values` is their table."""
    metric, times = comparison.metric, factor(comparison.metric)

    def scaled(interval: tuple[float, float] | None) -> tuple[float, float] | None:
        return interval and (interval[0] * times, interval[1] * times)

    rows = [
        plots.Row(
            entry.label,
            [value * times for value in entry.values.values()],
            entry.mean * times if entry.values else None,
            scaled(entry.interval),
            [p["value"] * times for p in entry.published],
            place,
        )
        for place, entry in enumerate(comparison.entries)
    ]
    by_hand = [
        plots.Row(made["label"], mean=made["value"] * times, colour=len(rows))
        for made in comparison.handmade
    ]
    alt = "; ".join(_spoken(row) for row in [*rows, *by_hand])
    marks = "Large dot: mean; small dots: seeds; line: 95 % interval of the mean, open where it"
    marks += " goes on beyond the axis."
    if any(row.published for row in rows):
        marks += " Hollow diamond ◇: published, not measured here."
    if comparison.seeds == 1:
        marks = "One seed each: a dot is a single run."
    elif comparison.seeds < statistics.FEWEST:
        marks = "Large dot: mean; small dots: seeds, too few for an interval."
    found = [
        _figure(
            f"{metric} of each setting",
            marks,
            values,
            lambda title, width: plots.dots([*rows, *by_hand], axis(comparison), title, alt, width),
        )
    ]
    if series := _series(comparison):
        name, places, others = series
        short = [
            dataclasses.replace(
                rows[i], label=text(comparison.entries[i].group.fields[name], name), published=()
            )
            for i in places
        ]
        at = "".join(f" At {other}={text(value, other)}." for other, value in others.items())
        found.append(
            _figure(
                f"{metric} along {name}",
                f"{name}: {FIELDS[name].doc if name in FIELDS else 'of the start'}.{at} {marks}",
                values,
                lambda title, width: plots.dose(short, axis(comparison), name, title, alt, width),
            )
        )
    compared = [e for e in comparison.entries if e.difference and e.difference.interval]
    if compared:
        differences = [
            plots.Row(
                e.label,
                mean=e.difference.mean * times,
                interval=scaled(e.difference.interval),
                colour=comparison.entries.index(e),
            )
            for e in compared
        ]
        along = f"difference in {metric}{', points' if unit(metric) else ''}"
        heads = ["setting", "difference", "from", "to"]
        cells = [
            [
                e.label,
                *(number(metric, x, True) for x in (e.difference.mean, *e.difference.interval)),
            ]
            for e in compared
        ]
        told = "; ".join(f"{c[0]} {c[1]}, interval {c[2]} to {c[3]}" for c in cells)
        found.append(
            _figure(
                f"Difference from the baseline: {comparison.baseline}",
                "Dot: mean difference; line: its 95 % interval, of each comparison alone. Where"
                " it crosses the upright line at 0, these seeds cannot tell the two apart.",
                Table(along, heads, cells),
                lambda title, width: plots.dots(differences, along, title, told, width, zero=True),
            )
        )
    return found


def _series(comparison: Comparison) -> tuple[str, list[int], dict[str, Any]] | None:
    """The field along which most settings differ by nothing else, four or more.

    Returns:
      Its name, the entries' places, and the values of the other fields that differ elsewhere.
    """
    alike: dict[tuple, list[int]] = {}
    for place, entry in enumerate(comparison.entries):
        fields = entry.group.fields
        for name in fields:
            others = {other: value for other, value in fields.items() if other != name}
            alike.setdefault((name, repr(others)), []).append(place)
    (name, _), places = max(alike.items(), key=lambda item: len(item[1]), default=(("", ""), []))
    if len(places) < 4:
        return None
    fields = comparison.entries[places[0]].group.fields
    doses = {place: _dose(comparison.entries[place].group.fields[name], name) for place in places}
    if None not in doses.values():
        places = sorted(places, key=doses.get)
    return name, places, {other: value for other, value in fields.items() if other != name}


def _dose(value: Any, name: str) -> float | None:
    """What a setting's place along an axis goes by: a number's size, no limit last; None of
    what has no order."""
    if isinstance(value, tuple | list):
        value = tuple(value)
    if name in FIELDS and value in FIELDS[name].words:  # all, any or none: nothing is limited
        return math.inf
    if isinstance(value, tuple):
        return _dose(value[0], name) if len(value) == 1 else None
    return float(value) if isinstance(value, int | float) else None


def _figure(title: str, caption: str, values: Table, draw: Any) -> Figure:
    wide, narrow = (markupsafe.Markup(draw(title, w)) for w in (plots.WIDE, plots.NARROW))
    return Figure(title, caption, wide, narrow, values)


def _spoken(row: plots.Row) -> str:
    """What a plot's row says to those who do not see it."""
    if row.mean is None:
        return f"{row.label}: no value"
    told = f"{row.label} {row.mean:.4g}"
    if row.interval:
        told += f" (interval {row.interval[0]:.4g} to {row.interval[1]:.4g})"
    return told + "".join(f", published {value:.4g}" for value in row.published)


def learning_curves(comparison: Comparison, name: str) -> Figure:
    drawn, along = curves.of(comparison, name)
    steps = sorted({step for curve in drawn for step in curve.steps})
    shown = steps[:: max(1, math.ceil(len(steps) / 24))]
    rows = []
    for step in shown:
        row = [f"{step:,.0f}"]
        for curve in drawn:
            place = curve.steps.index(step) if step in curve.steps else None
            row.append("–" if place is None else f"{curve.mean[place]:.4g}")
        rows.append(row)
    shown_as = f"{name}{', %' if unit(name) else ''}"
    table = Table(f"Means of {shown_as}", [along, *(curve.label for curve in drawn)], rows)
    ends = "; ".join(f"{c.label} ends at {c.mean[-1]:.4g}" for c in drawn)
    banded = any(h > low for c in drawn for h, low in zip(c.high, c.low, strict=True))
    caption = "Line: mean over seeds; band: from the lowest seed to the highest." if banded else ""
    return _figure(
        name,
        caption,
        table,
        lambda title, width: plots.curves(drawn, shown_as, along, title, ends, width),
    )
