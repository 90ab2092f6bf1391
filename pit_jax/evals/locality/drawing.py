"""Pictures of what was measured of locality."""

from typing import Any

import matplotlib.colors
import matplotlib.figure
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

# Of Okabe and Ito's palette, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
_DPI = 130
_DECADES = 4  # of energy that the receptive field's picture shows


def pictures(record: dict[str, Any]) -> dict[str, np.ndarray]:
    """Name → (H, W, 3) uint8, of those measures that a record has."""
    drawn = {}
    name = record["model"]
    if distances := record.get("attention_distance"):
        drawn["attention-distance"] = _pixels(attention_distance(distances, name))
    if table := record.get("positions"):
        drawn["position-similarity"] = _pixels(position_similarity(table, name))
    if field := record.get("receptive_field"):
        drawn["receptive-field"] = _pixels(receptive_field(field, name))
    if robust := record.get("robustness"):
        drawn["robustness"] = _pixels(robustness(robust, name))
    return drawn


def attention_distance(distances: dict[str, Any], name: str) -> matplotlib.figure.Figure:
    """A dot a head over the layers, their mean, and what uniform attention would have."""
    heads = np.array(distances["heads"])  # (layers, heads)
    layers = np.arange(1, len(heads) + 1)
    figure, axes = _axes(f"{name}: how far each head looks")
    dots = np.repeat(layers, heads.shape[1])
    axes.plot(dots, heads.ravel(), "o", color=BLUE, alpha=0.6, markersize=6, label="one head")
    axes.plot(layers, heads.mean(1), "-", color=ORANGE, linewidth=2, label="mean of a layer")
    marks = "--" if len(layers) > 1 else "_"
    axes.plot(layers, distances["uniform"], marks, color=GREY, label="if attention were uniform")
    axes.set(xlabel="layer", ylabel="mean attention distance, pixels")
    axes.set(ylim=(0, 1.25 * max(heads.max(), max(distances["uniform"]), 1e-3)))
    step = -(-len(layers) // 12)
    axes.set_xticks(layers[step - 1 :: step])
    axes.set_xlim(0.5, len(layers) + 0.5)
    axes.legend(frameon=False, loc="upper left", ncols=3, fontsize="small")
    return figure


def position_similarity(table: dict[str, Any], name: str) -> matplotlib.figure.Figure:
    """The similarity maps side by side, each where its position lies."""
    maps, places = np.array(table["maps"]), np.array(table["map_places"])
    count, side = round(len(maps) ** 0.5), maps.shape[-1]
    gap = max(1, side // 8)
    whole = np.full((count * (side + gap) - gap,) * 2, np.nan)
    dots = []
    for number, (one, (row, column)) in enumerate(zip(maps, places, strict=True)):
        top, left = ((side + gap) * index for index in divmod(number, count))
        one[row, column] = np.nan  # 1 with itself: leaving that out lets the others be seen
        whole[top : top + side, left : left + side] = one
        dots.append((left + column, top + row))
    limit = np.nanmax(np.abs(maps))
    figure = matplotlib.figure.Figure(figsize=(6.4, 5.8), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(whole, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="none")
    axes.plot(*zip(*dots, strict=True), "k.", markersize=2)
    axes.set_axis_off()
    axes.set_title(
        f"{name}: how alike {table['kind']} positions are (dot: the map's own)\n"
        f"a linear map recovers row and column with R² {table['r2']:.2f}",
        fontsize="medium",
    )
    figure.colorbar(image, ax=axes, shrink=0.6, label="cosine similarity")
    return figure


def receptive_field(field: dict[str, Any], name: str) -> matplotlib.figure.Figure:
    """The energy of every pixel, in powers of ten, and the disc that holds half of it."""
    energy = np.array(field["energy"])
    figure, axes = _axes(f"{name}: which pixels a token depends on", figsize=(5.4, 4.6))
    top = energy.max()
    norm = matplotlib.colors.LogNorm(top * 10.0**-_DECADES, top)
    image = axes.imshow(np.maximum(energy, top * 10.0**-_DECADES), cmap="cividis", norm=norm)
    row, column = ((index + 0.5) * field["patch"] - 0.5 for index in field["token"])
    angles = np.linspace(0, 2 * np.pi, 200)
    radius = field["radius"]
    disc = f"half of it within {radius:.1f} pixels"
    across, down = column + radius * np.cos(angles), row + radius * np.sin(angles)
    for colour, width in (("black", 3.5), ("white", 1.5)):  # to be seen on dark and on light
        axes.plot(across, down, color=colour, linewidth=width)
        axes.plot(column, row, "+", color=colour, markersize=10, markeredgewidth=width)
    axes.set(xlim=(-0.5, len(energy) - 0.5), ylim=(len(energy) - 0.5, -0.5))
    axes.set(xlabel=f"column   (circle: {disc}; +: the token)", ylabel="row")
    axes.grid(False)
    figure.colorbar(image, ax=axes, label="share of the gradient's energy")
    return figure


def robustness(robust: dict[str, Any], name: str) -> matplotlib.figure.Figure:
    """Accuracy over the share of pixels swapped or covered, and over the shift."""
    accuracy = robust["accuracy"]
    figure = matplotlib.figure.Figure(figsize=(7.6, 4), layout="constrained")
    shares, shifts = figure.subplots(1, 2, sharey=True)
    lines = (
        (shares, "swapped", "pixels swapped", BLUE, "o-"),
        (shares, "covered", "squares covered", GREEN, "s--"),
        (shifts, "shifted", "image shifted", ORANGE, "^-"),
    )
    for axes, kind, words, colour, marks in lines:
        doses = {int(n.split("_")[1]): a for n, a in accuracy.items() if n.startswith(kind)}
        points = {0: accuracy["unchanged"]} | doses
        values = [100 * value for value in points.values()]
        axes.plot(list(points), values, marks, color=colour, label=words)
    for axes in (shares, shifts):
        axes.axhline(100 * robust["chance"], color=GREY, linestyle=":", label="chance")
        axes.set_ylim(0, 102)
        axes.legend(frameon=False, fontsize="small", loc="best")
        _plain(axes)
    shares.set(xlabel="share, %", ylabel="accuracy, %", xticks=(0, 25, 50, 75, 100))
    shifts.set(xlabel="shift, pixels")
    shifts.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(f"{name}: accuracy on changed images", fontsize="medium")
    return figure


def _axes(title: str, figsize: tuple[float, float] = (6.4, 4.2)) -> tuple[Any, Any]:
    figure = matplotlib.figure.Figure(figsize=figsize, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize="medium")
    _plain(axes)
    return figure, axes


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _pixels(figure: matplotlib.figure.Figure) -> np.ndarray:
    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
