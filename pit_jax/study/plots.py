"""Vector plots of a report: small SVG with text as text, coloured by the page's style sheet.

Every plot is drawn at the size it is shown at, so that its text stays readable: once for a
phone and once for a wide screen. Colours are classes (`c0` ... `c7`, of Okabe and Ito's
palette) that the page gives a value, in light and in dark.
"""

import dataclasses
import importlib.resources
import math
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

NARROW, WIDE = 312, 536  # pixels
_COLOURS = 8
_DASHES = ("", "6 3", "2 3")  # after eight groups the colours begin again, dashed
_POINTS = 160  # of a curve


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a dot plot, in the units that are shown.

    Attributes:
      values: single ones, of seeds.
      mean: None where nothing was measured.
      interval: of the mean.
      published: values from elsewhere.
      colour: the group's place in the comparison.
    """

    label: str
    values: Sequence[float] = ()
    mean: float | None = None
    interval: tuple[float, float] | None = None
    published: Sequence[float] = ()
    colour: int = 0


@dataclasses.dataclass(frozen=True)
class Curve:
    """Mean over seeds and their range at the steps that all seeds logged."""

    label: str
    steps: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def dots(
    rows: Sequence[Row], axis: str, title: str, alt: str, width: int, zero: bool = False
) -> str:
    """A row a group: single values, their mean with its interval, published ones hollow.

    Args:
      axis: what the values are, with their unit.
      title, alt: accessible name and description.
      zero: whether a line marks 0, of differences.
    """
    top, step, left, right = 6, 40, 8, 12
    height = top + step * len(rows) + 48
    svg = _svg(width, height, title, alt)
    low, high = _domain(rows, zero)
    ticks = _ticks(low, high, 4 if width == NARROW else 6)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def x(value: float) -> float:
        return left + (width - left - right) * (value - low) / (high - low)

    bottom = top + step * len(rows) + 8
    _x_axis(svg, x, ticks, top, bottom, axis, (left + width - right) / 2)
    if zero:
        _line(svg, x(0), top, x(0), bottom, "zero")
    for place, row in enumerate(rows):
        y = top + step * place + 28
        colour = f"c{row.colour % _COLOURS}"
        _text(svg, left, y - 14, _fit(row.label, width - left - right), "ink", "start")
        _line(svg, left, y, width - right, y, "rail")
        if row.interval:
            ends = [max(low, min(high, end)) for end in row.interval]
            _line(svg, x(ends[0]), y, x(ends[1]), y, f"whisker {colour}")
            for end, shown in zip(row.interval, ends, strict=True):
                if end == shown:  # an end without a cap goes on beyond the axis
                    _line(svg, x(shown), y - 5, x(shown), y + 5, f"whisker {colour}")
        for value in row.values:
            _add(svg, "circle", cx=x(value), cy=y, r=3, class_=f"seed {colour}")
        if row.mean is not None:
            _add(svg, "circle", cx=x(row.mean), cy=y, r=5, class_=f"mean {colour}")
        for value in row.published:
            at = x(value)
            points = f"{at:.1f},{y - 7} {at + 7:.1f},{y} {at:.1f},{y + 7} {at - 7:.1f},{y}"
            _add(svg, "polygon", points=points, class_="published")
    return _markup(svg)


def dose(rows: Sequence[Row], axis: str, along: str, title: str, alt: str, width: int) -> str:
    """The groups along a line, in their order: how the metric follows one field."""
    low, high = _domain(rows, False)
    left, right, top, bottom = _margin(_y_ticks(low, high)[2]), 10, 10, 220
    svg = _svg(width, bottom + 44, title, alt)
    y, ticks = _y_axis(svg, low, high, top, bottom, left, width - right, axis)
    spacing = (width - left - right) / len(rows)
    every = math.ceil(max(len(row.label) for row in rows) * 7 / spacing)
    drawn = []
    for place, row in enumerate(rows):
        x = left + spacing * (place + 0.5)
        if place % every == 0:
            _text(svg, x, bottom + 16, row.label, "muted", "middle")
        if row.interval:
            ends = [max(ticks[0], min(ticks[-1], end)) for end in row.interval]
            _line(svg, x, y(ends[0]), x, y(ends[1]), "whisker c0")
        for value in row.values:
            _add(svg, "circle", cx=x, cy=y(value), r=2.5, class_="seed c0")
        if row.mean is not None:
            drawn.append((x, y(row.mean)))
    _path(svg, drawn, "curve c0")
    for x, at in drawn:
        _add(svg, "circle", cx=x, cy=at, r=4, class_="mean c0")
    _text(svg, (left + width - right) / 2, bottom + 36, along, "muted", "middle")
    return _markup(svg)


def curves(drawn: Sequence[Curve], axis: str, along: str, title: str, alt: str, width: int) -> str:
    """Learning curves: the mean of each group, and a band over the range of its seeds."""
    places, legend = _legend([curve.label for curve in drawn], width)
    low = min(min(curve.low) for curve in drawn)
    high = max(max(curve.high) for curve in drawn)
    log = "loss" in axis and low > 0 and high > 12 * low
    left, right, top = _margin(_y_ticks(low, high, log)[2]), 12, legend + 8
    bottom = top + 200
    svg = _svg(width, bottom + 42, title, alt)
    for place, (x, y, label) in enumerate(places):
        _line(svg, x, y - 4, x + 18, y - 4, f"curve c{place % _COLOURS}", _dash(place))
        _text(svg, x + 24, y, label, "ink", "start")
    y, _ = _y_axis(svg, low, high, top, bottom, left, width - right, axis, log)
    last = max(curve.steps[-1] for curve in drawn)
    ticks = [t for t in _ticks(0, last, 4 if width == NARROW else 6) if t <= last * 1.001]

    def x(step: float) -> float:
        return left + (width - left - right) * step / (last or 1)

    _x_axis(svg, x, ticks, top, bottom, along, (left + width - right) / 2)
    for place, curve in enumerate(drawn):
        chosen = _thinned(len(curve.steps))
        up = [(x(curve.steps[i]), y(curve.high[i])) for i in chosen]
        down = [(x(curve.steps[i]), y(curve.low[i])) for i in chosen]
        if any(curve.high[i] > curve.low[i] for i in chosen):
            _path(svg, [*up, *down[::-1]], f"band c{place % _COLOURS}", closed=True)
    for place, curve in enumerate(drawn):
        points = [(x(curve.steps[i]), y(curve.mean[i])) for i in _thinned(len(curve.steps))]
        _path(svg, points, f"curve c{place % _COLOURS}", dash=_dash(place))
        if len(points) == 1:
            _add(svg, "circle", cx=points[0][0], cy=points[0][1], r=3, class_=f"mean c{place % 8}")
    return _markup(svg)


# Scales -------------------------------------------------------------------------------


def alone(svg: str) -> str:
    """A plot of this file as a file of its own, with the colours that a page would give it."""
    root = ElementTree.fromstring(svg)
    root.set("xmlns", "http://www.w3.org/2000/svg")
    style = ElementTree.Element("style")
    style.text = importlib.resources.files("pit_jax.study").joinpath("plots.css").read_text()
    paper = ElementTree.Element("rect", width="100%", height="100%", fill="var(--panel)")
    root[2:2] = (style, paper)  # behind title and description
    return _markup(root)


def _domain(rows: Sequence[Row], zero: bool) -> tuple[float, float]:
    """What the axis covers: every value, and intervals as far as they do not dwarf these."""
    values = [v for row in rows for v in (*row.values, *row.published)]
    values += [row.mean for row in rows if row.mean is not None]
    values += [0.0] if zero else []
    ends = [end for row in rows for end in row.interval or ()]
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    spread = (high - low) or max((abs(end - low) for end in ends), default=0) or abs(high) or 1.0
    low, high = (
        max(min([low, *ends]), low - 1.5 * spread),
        min(max([high, *ends]), high + 1.5 * spread),
    )
    margin = 0.06 * ((high - low) or spread)
    return low - margin, high + margin


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from low to high."""
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    step = next(size * f for f in (1, 2, 2.5, 5, 10) if size * f >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)] or [low, high]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if len(decades) > 4 else (1, 2, 5)
    ticks = [f * 10.0**d for d in decades for f in steps]
    return [t for t in ticks if low <= t <= high] or [low, high]


def _x_axis(
    svg: ElementTree.Element,
    x: Callable[[float], float],
    ticks: Sequence[float],
    top: float,
    bottom: float,
    axis: str,
    middle: float,
) -> None:
    for tick in ticks:
        _line(svg, x(tick), top, x(tick), bottom, "grid")
        _text(svg, x(tick), bottom + 16, _tick(tick), "muted", "middle")
    _text(svg, middle, bottom + 35, axis, "muted", "middle")


def _y_ticks(low: float, high: float, log: bool = False) -> tuple[float, float, list[float]]:
    """What an upright axis covers, and its ticks."""
    if log:
        low, high = low / 1.1, high * 1.1
    elif high == low:
        low, high = low - 0.5, high + 0.5
    ticks = _log_ticks(low, high) if log else _ticks(low, high, 5)
    return min(low, ticks[0]), max(high, ticks[-1]), ticks


def _margin(ticks: Sequence[float]) -> float:
    """Pixels left of an upright axis: its label, its widest number, and space between them."""
    return max(46.0, 20 + max(_width(_tick(tick)) for tick in ticks) + 10)


def _y_axis(
    svg: ElementTree.Element,
    low: float,
    high: float,
    top: float,
    bottom: float,
    left: float,
    right: float,
    axis: str,
    log: bool = False,
) -> tuple[Callable[[float], float], tuple[float, float]]:
    """Draws grid and numbers; returns the scale and what it covers."""
    low, high, ticks = _y_ticks(low, high, log)
    form = math.log if log else float

    def y(value: float) -> float:
        share = (form(value) - form(low)) / (form(high) - form(low))
        return bottom - (bottom - top) * share

    for tick in ticks:
        _line(svg, left, y(tick), right, y(tick), "grid")
        _text(svg, left - 6, y(tick) + 4, _tick(tick), "muted", "end")
    label = _text(svg, 11, (top + bottom) / 2, axis, "muted", "middle")
    label.set("transform", f"rotate(-90 11 {(top + bottom) / 2:.1f})")
    return y, (low, high)


def _tick(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
    return f"{value:,.10g}".replace("-", "−")


def _thinned(count: int) -> list[int]:
    """Indices of at most _POINTS of so many, first and last among them."""
    if count <= _POINTS:
        return list(range(count))
    return [round(i * (count - 1) / (_POINTS - 1)) for i in range(_POINTS)]


# Marks --------------------------------------------------------------------------------


def _svg(width: int, height: float, title: str, alt: str) -> ElementTree.Element:
    svg = ElementTree.Element("svg")
    svg.set("viewBox", f"0 0 {width} {height:.0f}")
    svg.set("width", str(width))
    svg.set("height", f"{height:.0f}")
    svg.set("role", "img")
    svg.set("aria-label", f"{title}. {alt}")
    _add(svg, "title").text = title
    _add(svg, "desc").text = alt
    return svg


def _markup(svg: ElementTree.Element) -> str:
    return ElementTree.tostring(svg, encoding="unicode")


def _add(parent: ElementTree.Element, tag: str, **attributes: object) -> ElementTree.Element:
    written = {
        name.rstrip("_"): f"{value:.1f}" if isinstance(value, float) else str(value)
        for name, value in attributes.items()
    }
    return ElementTree.SubElement(parent, tag, written)


def _line(
    svg: ElementTree.Element, x1: float, y1: float, x2: float, y2: float, kind: str, dash: str = ""
) -> None:
    line = _add(svg, "line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)
    if dash:
        line.set("stroke-dasharray", dash)


def _path(
    svg: ElementTree.Element,
    points: Sequence[tuple[float, float]],
    kind: str,
    closed: bool = False,
    dash: str = "",
) -> None:
    if points:
        d = "M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in points) + ("Z" if closed else "")
        path = _add(svg, "path", d=d, class_=kind)
        if dash:
            path.set("stroke-dasharray", dash)


def _text(
    svg: ElementTree.Element, x: float, y: float, text: str, kind: str, anchor: str
) -> ElementTree.Element:
    made = _add(svg, "text", x=float(x), y=float(y), class_=kind)
    made.set("text-anchor", anchor)
    made.text = text
    return made


def _width(text: str) -> float:
    """Pixels of a text at 12 pixels, roughly."""
    return 6.6 * len(text)


def _fit(text: str, width: float) -> str:
    """The text, its middle left out where it is too long."""
    if _width(text) <= width:
        return text
    half = int(width / 6.6 - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def _legend(labels: Sequence[str], width: int) -> tuple[list[tuple[float, float, str]], float]:
    """(x, y, label) of each entry, row by row, and the height of all."""
    places, x, y = [], 8.0, 16.0
    for label in labels:
        label = _fit(label, width - 44)
        need = 24 + _width(label) + 14
        if x > 8 and x + need > width:
            x, y = 8.0, y + 19
        places.append((x, y, label))
        x += need
    return places, y + 6


def _dash(place: int) -> str:
    return _DASHES[(place // _COLOURS) % len(_DASHES)]
