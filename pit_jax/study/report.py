"""A comparison as one self-contained HTML file, from the template beside this one."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jinja2
import markupsafe

from pit_jax import __version__
from pit_jax.perf import flops
from pit_jax.study import curves, gallery, plots, provenance, statistics, summary
from pit_jax.study.compare import Comparison, around, factor, number, p_value, unit
from pit_jax.study.export import mean_cost
from pit_jax.study.figures import Table, axis, figures, learning_curves
from pit_jax.study.space import text

PUBLISHED = "published ◇"
_COLUMNS = 8  # of a table across a sheet of A4


def to_html(comparison: Comparison) -> str:
    """The report: nothing in it is fetched from elsewhere, all text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pit_jax", "study"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    pictures, dropped = gallery.pictures(comparison)
    texts = dict.fromkeys(sweep.text for sweep in comparison.found.sweeps if sweep.text)
    studies = [_study(docstring) for docstring in texts]
    measured = _measured(comparison)
    alone = studies[0] if len(studies) == 1 else None
    return environment.get_template("report.html.j2").render(
        title=alone["title"] if alone else _title(comparison),
        studies=studies,
        typed=[block for study in studies for block in study["commands"]],
        alone=bool(alone),
        comparison=comparison,
        sentences=[s.replace(" %", "\N{NO-BREAK SPACE}%") for s in summary.sentences(comparison)],
        metric=comparison.metric,
        measured=measured,
        values=_single_values(comparison),
        figures=figures(comparison, measured),
        curves=[learning_curves(comparison, name) for name in curves.names(comparison)],
        varies=_varies(comparison),
        uncounted=summary.uncounted(comparison),
        costs=_costs(comparison),
        more=_other_metrics(comparison),
        elsewhere=_elsewhere(comparison),
        pictures=pictures,
        dropped=dropped,
        made=provenance.made_by(comparison.runs),
        commands=provenance.commands(comparison.runs, comparison.found.sweeps),
        shared=provenance.shared(comparison.runs),
        published=PUBLISHED,
        version=__version__,
        most_columns=_COLUMNS,
        broken=_broken,
        cut=_part,
        cut_rows=lambda rows, first: [_part(row, first) for row in rows],
        seeds=sorted({seed for entry in comparison.entries for seed in entry.values}),
    )


def to_svg(comparison: Comparison) -> str:
    """The report's key plot alone: along the field that varies, or else a row a setting."""
    drawn = figures(comparison, _measured(comparison))
    along = [figure for figure in drawn if " along " in figure.title]
    return plots.alone(str((along or drawn)[0].wide))


# Words --------------------------------------------------------------------------------


def _title(comparison: Comparison) -> str:
    labels = [entry.label for entry in comparison.entries]
    if len(labels) == 1:
        return f"{labels[0]}: {comparison.metric}"
    if len(labels) <= 3:
        return f"{', '.join(labels[:-1])} and {labels[-1]} compared"
    return f"{len(labels)} settings compared"


def _study(docstring: str) -> dict[str, Any]:
    """{"title", "commands", "blocks": [("p" or "pre", text)]} of a study's docstring; commands
    are the blocks of which every line is one."""
    first, _, rest = docstring.strip().partition("\n")
    blocks: list[tuple[str, str]] = []
    commands: list[str] = []
    for block in rest.split("\n\n"):
        lines = [line for line in block.splitlines() if line.strip()]
        if not lines:
            continue
        if all(line.startswith("    ") for line in lines):
            block = "\n".join(line[4:] for line in lines)
            if lines[0][4:].startswith(("pit-jax ", "python ")):
                commands.append(block)
            else:
                blocks.append(("pre", block))
        else:
            paragraph = " ".join(line.strip() for line in lines).removeprefix("Question: ")
            paragraph = paragraph[:1].upper() + paragraph[1:]
            blocks.append(("p", markupsafe.Markup(_code(paragraph))))
    return {"title": first.strip().removesuffix("."), "commands": commands, "blocks": blocks}


def _code(paragraph: str) -> str:
    """HTML of a paragraph, what stands between back quotes as code."""
    parts = [str(markupsafe.escape(part)) for part in paragraph.split("`")]
    if len(parts) % 2 == 0:  # one of them has no partner
        return str(markupsafe.escape(paragraph))
    return "".join(f"<code>{x}</code>" if i % 2 else x for i, x in enumerate(parts))


# Tables -------------------------------------------------------------------------------


def _broken(head: str) -> markupsafe.Markup:
    """A head that may go on in another line after the parts of a metric's name."""
    return markupsafe.Markup(re.sub("([/_.])(?=.)", r"\1<wbr>", str(markupsafe.escape(head))))


def _part(cells: Sequence[str], first: int) -> list[str]:
    """A row's name and the cells that a sheet has room for, from the `first` one on."""
    return [cells[0], *cells[first : first + _COLUMNS - 1]]


def _measured(comparison: Comparison) -> Table:
    metric, entries = comparison.metric, comparison.entries
    heads = ["setting", "seeds", f"mean{', %' if unit(metric) else ''}"]
    heads += ["difference from baseline"] if len(entries) > 1 else []
    tested = any(e.p_permutation is not None for e in entries)
    heads += ["p (t-test)", "p (permutation)"] if tested else []
    with_published = any(e.published for e in entries)
    rows = []
    for entry in entries:
        mean = around(metric, entry.mean, entry.interval) if entry.values else "–"
        row = [entry.label, str(len(entry.values)), mean]
        row += [summary.difference(comparison, entry)] if len(entries) > 1 else []
        row += [p_value(entry.p_t), p_value(entry.p_permutation)] if tested else []
        published = ", ".join(number(metric, p["value"]) for p in entry.published)
        rows.append([*row, published or "–"] if with_published else row)
    for feature in comparison.handmade:
        row = [feature["label"], "–", number(metric, feature["value"])]
        rows.append([*row, *["–"] * (len(heads) + with_published - len(row))])
    heads += [PUBLISHED] if with_published else []
    enough = comparison.seeds >= statistics.FEWEST
    caption = (
        f"{metric}: mean{' ± half of its 95 % interval' if enough else ''}"
        f"{', differences from the baseline' if len(entries) > 1 else ''}"
    )
    return Table(caption, heads, rows)


def _single_values(comparison: Comparison) -> Table | None:
    seeds = sorted({seed for entry in comparison.entries for seed in entry.values})
    if len(seeds) < 2:
        return None
    rows = [
        [e.label, *(number(comparison.metric, e.values.get(seed)) for seed in seeds)]
        for e in comparison.entries
    ]
    return Table(
        f"{axis(comparison)}: every seed", ["setting", *(f"seed {s}" for s in seeds)], rows
    )


def _varies(comparison: Comparison) -> Table | None:
    if not comparison.fields:
        return None
    rows = []
    for entry in comparison.entries:
        fields = entry.group.fields
        rows.append(
            [entry.label, *(text(fields[n], n) if n in fields else "–" for n in comparison.fields)]
        )
    return Table("Fields of the config that differ", ["setting", *comparison.fields], rows)


def _costs(comparison: Comparison) -> Table | None:
    costs = [mean_cost(entry) for entry in comparison.entries]
    if all(value is None for cost in costs for value in cost.values()):
        return None
    heads = ["setting", "tokens", "parameters", "forward FLOPs an image", "images/s"]
    rows = [
        [entry.label, *summary.cost_texts(cost)]
        for entry, cost in zip(comparison.entries, costs, strict=True)
    ]
    caption = (
        "Cost of one run, mean over its seeds; images/s and hours as measured on its machine;"
        f" forward FLOPs: {flops.FORWARD}"
    )
    return Table(caption, [*heads, "device-hours"], rows)


def _other_metrics(comparison: Comparison) -> Table | None:
    """Means of what else every run was measured by."""
    names = dict.fromkeys(name for run in comparison.runs for name in run.result)
    names = [n for n in names if n not in (comparison.metric, "eval/examples")]
    rows = []
    for entry in comparison.entries:
        row = [entry.label]
        for name in names:
            values = [run.result.get(name) for run in entry.group.runs]
            values = [v for v in values if v is not None and math.isfinite(v)]
            mean = math.fsum(values) / len(values) if values else None
            row.append("–" if mean is None else around(name, mean, statistics.interval(values)))
        rows.append(row)
    heads = ["setting", *(f"{name}{', %' if unit(name) else ''}" for name in names)]
    return Table("Other measurements of the last step", heads, rows) if names else None


def _elsewhere(comparison: Comparison) -> dict[str, Any] | None:
    if not comparison.elsewhere:
        return None
    rows = [
        [p["label"], p["metric"], number(p["metric"], p["value"]), p["note"] or "–"]
        for p in comparison.elsewhere
    ]
    table = Table("Published, for other settings", ["setting", "metric", "value", "note"], rows)
    same = [p for p in comparison.elsewhere if p["metric"] == comparison.metric]
    drawn = [
        plots.Row(p["label"], published=[p["value"] * factor(comparison.metric)]) for p in same
    ]
    title = f"Published {comparison.metric} of other settings"
    alt = "; ".join(f"{p['label']} {number(p['metric'], p['value'])}" for p in same)
    published = f"{axis(comparison)} (published)"
    pair = [
        markupsafe.Markup(plots.dots(drawn, published, title, alt, width)) if drawn else ""
        for width in (plots.WIDE, plots.NARROW)
    ]
    return {"table": table, "wide": pair[0], "narrow": pair[1]}
