"""How local a trained model is: four measures of any run, and which do not apply to it.

    attention distance   how far each head looks                     attention_distance.py
    positions            what position embeddings know of the image  positions.py
    receptive field      which pixels a token depends on             receptive_field.py
    robustness           accuracy on images that were changed        robustness.py

Everything is measured in pixels of the model's input, on held-out images, and is the same at
every evaluation of the same weights.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pit_jax.config import label
from pit_jax.errors import NotOffered
from pit_jax.evals.context import Context
from pit_jax.evals.locality import attention_distance as attention
from pit_jax.evals.locality import held_out, positions, receptive_field, report, robustness
from pit_jax.models import mask, order, vit
from pit_jax.models.embed import sincos2d

Values = dict[str, Any]


def evaluate(context: Context) -> Iterator[tuple[str, float]]:
    """Yields what can be measured of the run, all names beginning with "locality/":

    "attention_distance" in pixels, the mean over heads and layers, and
    "attention_distance_<layer>", counted from 1; "position_r2", "position_similarity_near" and
    "..._far"; "receptive_radius" and "receptive_distance" in pixels, "receptive_own"; and
    "accuracy_unchanged", "accuracy_swapped_<% of pixels>", "accuracy_shifted_<pixels>",
    "accuracy_covered_<%>".

    Records "locality": all of it, with every head and map. Draws a picture of each.

    Raises:
      NotOffered: if nothing can be measured of this run.
    """
    measures: dict[str, Callable[[Context], Values]] = {
        "attention_distance": _attention_distance,
        "positions": _positions,
        "receptive_field": _receptive_field,
        "robustness": _robustness,
    }
    record: Values = {"model": label(context.config), "checkpoint_step": int(context.state.step)}
    left_out = {}
    for name, measure in measures.items():
        try:
            record[name] = measure(context)
        except NotOffered as error:
            left_out[name] = str(error)
    if len(left_out) == len(measures):
        reasons = "; ".join(dict.fromkeys(left_out.values()))
        raise NotOffered(f"no locality to measure: {reasons}")
    record["not_measured"] = left_out
    if context.record:
        context.record("locality", record)
    if context.draw:
        from pit_jax.evals.locality import drawing  # imports matplotlib

        for name, picture in drawing.pictures(record).items():
            context.draw(name, picture)
    if context.say:
        context.say(report.text(record))
    for name, value in report.metrics(record).items():
        yield f"locality/{name}", value


# The measures -----------------------------------------------------------------------------


def _attention_distance(context: Context) -> Values:
    config, side, places = context.config, _side(context), _places(context)
    model = config.model
    radii = mask.layer_radii(model.window, model.window_layers, model.depth, side)
    everything = 2 * side**2
    limits = np.array([everything if r is None else int(r**2 + 1e-6) for r in radii], np.int32)
    causal = config.task == "autoregressive"
    prefix = int(_has_cls(model))

    def function() -> Callable:
        return attention.reader(context.task, places, limits, prefix, causal)

    found = [
        batch["distance"][batch["mask"] > 0] for batch in _read(context, "attention", function)
    ]
    distances = np.concatenate(found).astype(np.float64)  # (images, layers, heads)
    return {
        "unit": "pixels",
        "images": len(distances),
        "heads": (model.patch * distances.mean(0)).tolist(),  # (layers, heads)
        "uniform": (model.patch * attention.uniform(places, limits, causal)).tolist(),
    }


def _positions(context: Context) -> Values:
    model, side = context.config.model, _grid(context.config)
    embed = context.state.eval_params.get("embed")
    if embed is None:
        raise NotOffered(f"{label(context.config)} has no position embeddings")
    if model.position == "none":
        raise NotOffered("config.model.position='none': there are no position embeddings")
    if side < 3:
        raise NotOffered(f"{side**2} positions are too few: at least {positions.LEAST}")
    if model.position == "sincos2d":
        table = sincos2d((side, side), model.width)
    else:
        whole = NamedSharding(context.steps.batch_sharding.mesh, PartitionSpec())
        learned = np.asarray(jax.jit(lambda x: x, out_shardings=whole)(embed["position"]))
        table = np.empty_like(learned[-(side**2) :])  # [CLS] stands before the patches
        table[_order(context)] = learned[-(side**2) :]
    near, far = positions.neighbour_similarity(table)
    at = _spread(side)
    maps = positions.similarity_maps(table, at)
    return {
        "kind": model.position,
        "count": side**2,
        "r2": positions.recovery(table, _raster(side)),
        "similarity_near": near,
        "similarity_far": far,
        "map_places": _raster(side)[at].tolist(),
        "maps": maps.round(4).tolist(),  # (maps, side, side)
    }


def _receptive_field(context: Context) -> Values:
    config, side = context.config, _side(context)
    if config.task == "autoregressive" or config.model.embed == "dictionary":
        raise NotOffered("colours are looked up in a table, which has no gradient")
    place = receptive_field.centre(side)
    number = place[0] * side + place[1]
    token = int(np.flatnonzero(_order(context, side) == number)[0])

    def function() -> Callable:
        return receptive_field.reader(context.task, token)

    energy, examples = np.float64(0), 0
    for batch in _read(context, "receptive", function):
        energy = energy + batch["energy"].astype(np.float64)
        examples += int(batch["examples"])
    patch = config.data.image_size // side
    even = receptive_field.summary(np.ones_like(energy), patch, place)
    return {
        "unit": "pixels",
        "images": examples,
        "token": list(place),
        # With a [CLS] token pooled the last block's other rows are computed for this alone.
        "read_by_loss": not (config.task == "classification" and _has_cls(config.model)),
        "patch": patch,
        **receptive_field.summary(energy, patch, place),
        "uniform": {name: even[name] for name in ("radius", "distance", "own")},
        "energy": (energy / energy.sum()).tolist(),  # (S, S), adds up to 1
    }


def _robustness(context: Context) -> Values:
    if not hasattr(context.task, "predict"):
        raise NotOffered(f"{label(context.config)} names no classes")
    data, held = context.config.data, context.held_out
    chosen = robustness.changes(data.image_size)
    images = held_out.sample(context, robustness.MOST, held.batch_size)

    def function() -> Callable:
        return robustness.reader(context.task, chosen)

    hits, examples = np.zeros(len(chosen), np.int64), 0
    for batch in _read(context, "robustness", function, images):
        hits += batch["hits"]
        examples += int(batch["examples"])
    accuracies = dict(zip((c.name for c in chosen), (hits / examples).tolist(), strict=True))
    return {"images": examples, "chance": 1 / data.num_classes, "accuracy": accuracies}


def _has_cls(model: Any) -> bool:
    return model.name == "vit" and vit.has_cls(model.pool)


# What they share --------------------------------------------------------------------------


def _read(context: Context, name: str, function: Callable, images: Any = None) -> Iterator[Any]:
    """What the function says of every batch; it is made, and compiled, once a run."""
    key = ("locality", name)
    if key not in context.kept:
        count = context.config.eval.locality_images
        context.kept[key] = function(), images or held_out.sample(context, count)
    kept, images = context.kept[key]
    return held_out.read(context, images, kept)


def _side(context: Context) -> int:
    """Of the square of tokens that the task makes of an image.

    Raises:
      NotOffered: if it makes none.
    """
    task = context.task
    # As many images as the devices may share: one has no part on each.
    batch = task.batch_shapes(context.held_out.batch_size)

    def tokens(params: Any, batch: dict) -> jax.Array:
        return task.tokens(params, task.normalise(batch), batch)

    found = jax.eval_shape(tokens, context.steps.shapes.eval_params, batch)
    return math.isqrt(found.shape[1])


def _grid(config: Any) -> int:
    """Side of the image in patches."""
    return config.data.image_size // config.model.patch


def _order(context: Context, side: int | None = None) -> np.ndarray:
    """The patch at each place of the sequence, counted row by row: (N,) int32."""
    model = context.config.model
    name = "raster" if model.name == "convnet" else model.order
    return order.indices(name, side or _grid(context.config), model.order_seed)


def _raster(side: int) -> np.ndarray:
    """Row and column of every patch, (N, 2) int32."""
    return np.stack(np.divmod(np.arange(side**2, dtype=np.int32), side), axis=1)


def _places(context: Context) -> np.ndarray:
    """Row and column of every token of the sequence, (N, 2) int32."""
    return _raster(_grid(context.config))[_order(context)]


def _spread(side: int, most: int = 8) -> np.ndarray:
    """At most `most`² positions at even distances, row by row, as numbers."""
    count = min(side, most)
    lines = (2 * np.arange(count) + 1) * side // (2 * count)
    return (lines[:, None] * side + lines).ravel()
