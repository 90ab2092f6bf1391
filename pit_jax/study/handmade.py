"""Local features made by hand, HOG and dense SIFT, under a linear classifier.

What vision had before it learned its features: histograms of the gradients' directions in
small cells, each normalised within a block of cells, and nothing learned but the classifier
on top. Beside them the pixels themselves under the same classifier.

Both describe blocks of 16 × 16 pixels every 8 pixels. Images smaller than 32 pixels are first
enlarged to 32 by cubic interpolation: on the 8 × 8 of a digit neither has a cell to count in.
Needs scikit-image and OpenCV (the extra `study`).

What is measured goes to handmade.json in the directory of a sweep, beside the runs:

    {"schema": 1, "scale": "tiny", "data": {"name": "digits", "image_size": 8, ...},
     "rows": [{"label": "HOG, linear", "metric": "eval/linear_accuracy", "value": 0.99,
               "features": 324, "C": 10.0, "seconds": 5.0}, ...]}

A row is one number of one kind of feature: label, metric and value (in the metric's own unit,
a share for an accuracy) are always there, no label has two rows of one metric, and other keys
may be missing. "scale" is the sweep's, "data" the fields that the images depend on. Reading
and writing the file needs neither those libraries nor JAX.
"""

import json
import os
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from pit_jax import files, installation, runvalues
from pit_jax.errors import ConfigError, StorageError

FILE, SCHEMA = "handmade.json", 1
METRIC = "eval/linear_accuracy"  # as that of a run's frozen features
# Of a config's `data` group, what the images depend on: they are never augmented.
USED = ("name", "split", "eval_split", "per_class", "per_class_seed", "image_size", "channels")
USED += ("eval_crop",)
LEAST_SIDE = 32  # pixels
BLOCK, STRIDE = 16, 8  # pixels
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)  # inverse of the squared weights' penalty
HELD_OUT = 0.1  # of the training images choose among them


def pixels(images: np.ndarray) -> np.ndarray:
    """The images (N, S, S, C) uint8 themselves, (N, S · S · C) in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def hog(images: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients (Dalal & Triggs 2005), (N, d) float32.

    9 directions, cells of 8 × 8 pixels, blocks of 2 × 2 cells, L2-Hys; of colours the channel
    with the largest gradient counts.

    Args:
      images: (N, S, S, C) uint8.

    Raises:
      ConfigError: if scikit-image or OpenCV is missing.
    """
    _, skimage_hog = _libraries()
    cell = BLOCK // 2
    options = dict(orientations=9, pixels_per_cell=(cell, cell), cells_per_block=(2, 2))
    found = [
        skimage_hog(x, channel_axis=-1, block_norm="L2-Hys", **options) for x in _large(images)
    ]
    return np.asarray(found, np.float32)


def dense_sift(images: np.ndarray) -> np.ndarray:
    """SIFT descriptors (Lowe 2004) on a grid, (N, blocks · 128) float32 of length 1 each.

    No keypoints are detected: each block of the grid has 4 × 4 cells of 4 × 4 pixels and 8
    directions, upright and at one scale. Colours become grey.

    Args, raises: as `hog`.
    """
    cv2, _ = _libraries()
    large = _large(images)
    places = np.arange(BLOCK // 2, large.shape[1] - BLOCK // 2 + 1, STRIDE) - 0.5
    # A descriptor's cell is 3 × (size / 2) pixels wide.
    size = BLOCK / 4 / 1.5
    grid = [cv2.KeyPoint(float(x), float(y), size, 0.0) for y in places for x in places]
    sift = cv2.SIFT_create()
    vectors = []
    for image in large:
        grey = image[..., 0] if image.shape[-1] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        _, found = sift.compute(np.ascontiguousarray(grey), grid)
        length = np.linalg.norm(found, axis=1, keepdims=True)
        vectors.append((found / np.maximum(length, 1e-6)).reshape(-1))
    return np.asarray(vectors, np.float32)


FEATURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "pixels, linear": pixels,
    "HOG, linear": hog,
    "dense SIFT, linear": dense_sift,
}


def measure(label: str, data: Any, seed: int = 0) -> dict[str, Any]:
    """Trains and tests a linear classifier of one of `FEATURES` on a config's `data` group.

    Returns:
      A row of the file: {"label", "metric", "value", "features": d, "C": the strength that was
      chosen, "seconds"}.

    Raises:
      ConfigError: if a library or the data is missing.
    """
    train, test = images(data, data.split), images(data, data.eval_split)
    begun = time.perf_counter()
    vectors = FEATURES[label](train[0])
    classifier, strength = fit(vectors, train[1], seed)
    accuracy = float(classifier.score(FEATURES[label](test[0]), test[1]))
    return {
        "label": label,
        "metric": METRIC,
        "value": accuracy,
        "features": vectors.shape[1],
        "C": strength,
        "seconds": round(time.perf_counter() - begun, 1),
    }


def images(data: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images of a split as the trainer's models get them, (N, S, S, C) uint8, and labels.

    Without augmentation; of the training split `data.per_class` a class where that is set.
    """
    from pit_jax.data import pipeline, sources

    source = sources.training(data) if split == data.split else sources.load(data, split)
    reader = pipeline.Reader(source, data, train=False)
    rows = np.arange(len(reader))
    batch = reader(rows, rows)
    real = batch["mask"] > 0
    return batch["image"][real], batch["label"][real]


def fit(vectors: np.ndarray, labels: np.ndarray, seed: int = 0) -> tuple[Any, float]:
    """Logistic regression whose penalty is chosen on a tenth of the training images.

    Args:
      vectors: (N, d); labels: (N,), each class twice at least.
      seed: which tenth that is, with the classes' shares in it as in the whole.

    Returns:
      The classifier, trained on all of them, and the chosen one of `STRENGTHS`; of equals the
      weaker.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    def train(rows: np.ndarray, strength: float) -> Any:
        return LogisticRegression(C=strength, max_iter=1000).fit(vectors[rows], labels[rows])

    everything = np.arange(len(labels))
    rows, held_out = train_test_split(
        everything, test_size=HELD_OUT, random_state=seed, stratify=labels
    )
    found = [train(rows, s).score(vectors[held_out], labels[held_out]) for s in STRENGTHS]
    strength = STRENGTHS[int(np.argmax(found))]
    return train(everything, strength), strength


# The file --------------------------------------------------------------------------------


def used(data: Any) -> dict[str, Any]:
    """What the images depend on of a config's `data` group, as the file holds it."""
    return {name: data[name] for name in USED}


def write(folder: str | os.PathLike, scale: str, data: Any, rows: Sequence[dict]) -> None:
    """Writes <folder>/handmade.json as a whole, local or gs://.

    Raises:
      StorageError: if it cannot be written.
    """
    content = {"schema": SCHEMA, "scale": scale, "data": used(data), "rows": list(rows)}
    files.write(epath.Path(folder) / FILE, json.dumps(content, indent=2) + "\n")


def read(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of <folder>/handmade.json, [] where there is no such file.

    Raises:
      ConfigError: if it is not of the form that this file's docstring says.
    """
    found = content(folder)
    return found["rows"] if found else []


def content(folder: str | os.PathLike) -> dict[str, Any] | None:
    """All that <folder>/handmade.json holds, None where there is no such file.

    Raises:
      ConfigError: as `read`.
    """
    path = epath.Path(folder) / FILE
    try:
        if not path.exists():
            return None
        found = files.read_json(path)
    except (StorageError, ValueError) as error:
        reason = f"it cannot be read ({error})"
    else:
        reason = _fault(found)
    if reason:
        raise ConfigError(f"{path}: {reason}: remove it, and it is measured again")
    return found


def _fault(found: Any) -> str:
    """What is wrong with the content of a file, "" where nothing is."""
    if not isinstance(found, dict) or not {"schema", "scale", "data", "rows"} <= set(found):
        return "it is not {schema, scale, data, rows}"
    if found["schema"] != SCHEMA:
        return f"its schema is {found['schema']!r} and not {SCHEMA}"
    if not isinstance(found["scale"], str) or not isinstance(found["data"], dict):
        return "its scale is no text, or its data no fields"
    rows = found["rows"]
    if not isinstance(rows, list):
        return "its rows are no list"
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or runvalues.finite(row.get("value")) is None:
            return f"its row {number} has no finite value"
        if not all(row.get(key) and isinstance(row[key], str) for key in ("label", "metric")):
            return f"its row {number} lacks a label or a metric"
    if len({(row["label"], row["metric"]) for row in rows}) < len(rows):
        return "two of its rows are of one label and metric"
    return ""


# Images and libraries ---------------------------------------------------------------------


def _large(images: np.ndarray) -> np.ndarray:
    """Images (N, S, S, C) of at least LEAST_SIDE pixels a side."""
    if images.shape[1] >= LEAST_SIDE:
        return images
    cv2, _ = _libraries()
    size = (LEAST_SIDE, LEAST_SIDE)
    found = np.stack([cv2.resize(x, size, interpolation=cv2.INTER_CUBIC) for x in images])
    return found.reshape(len(images), *size, -1)  # OpenCV drops a single channel


def _libraries() -> tuple[types.ModuleType, Callable]:
    """OpenCV and scikit-image's hog."""
    try:
        import cv2
        from skimage.feature import hog as skimage_hog
    except ImportError as error:
        raise ConfigError(
            f"HOG and SIFT need scikit-image and OpenCV ({error}): {installation.extra('study')}"
        ) from None
    return cv2, skimage_hog
