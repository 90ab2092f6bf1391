"""A set of CIFAR-100's shape, prepared as TensorFlow Datasets does it, and easy to learn.

Its own writer makes the files. That needs TensorFlow only for images that are arrays: these
are PNG files already.
"""

import io
import os

import numpy as np
from PIL import Image

SIDE, CLASSES = 32, 100
# Ten colours that are told apart by lightness and by hue; rows of (3,), in [0, 1].
_COLOURS = np.array(
    [[0, 0, 0], [0.35, 0.35, 0.35], [0.7, 0.7, 0.7], [1, 1, 1]]
    + [[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9]]
    + [[0.9, 0.9, 0.1], [0.9, 0.1, 0.9], [0.1, 0.9, 0.9]]
)


def pictures(labels: np.ndarray, seed: int) -> np.ndarray:
    """Images (N, 32, 32, 3) uint8 of these labels, (N,) in [0, 100).

    The tens of a label are the colour of the upper half and the units that of the lower, with
    noise: what most crops leave and no flip changes.
    """
    rng = np.random.default_rng(seed)
    halves = _COLOURS[np.stack([labels // 10, labels % 10], axis=1)]  # (N, 2, 3)
    images = np.repeat(halves, SIDE // 2, axis=1)[:, :, None]  # (N, 32, 1, 3)
    images = images + rng.normal(0, 0.05, (len(labels), SIDE, SIDE, 3))
    return np.round(255 * images.clip(0, 1)).astype(np.uint8)


def examples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As many pictures, and their labels (N,), of all classes in turn."""
    labels = np.arange(count) % CLASSES
    return pictures(labels, seed), labels


def write(directory: str | os.PathLike, **splits: tuple[np.ndarray, np.ndarray]) -> None:
    """Prepares "cifar100" in `directory`, with the features of the real one.

    Args:
      splits: images (N, 32, 32, 3) uint8 and labels (N,) by the split's name.
    """
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():

        class Cifar100(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("3.0.2")
            code_path = None  # beside which checksums of downloads would be looked for

            def _info(self):
                features = {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(SIDE, SIDE, 3)),
                    "label": tfds.features.ClassLabel(num_classes=CLASSES),
                    "coarse_label": tfds.features.ClassLabel(num_classes=20),
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    supervised_keys=("image", "label"),
                )

            def _split_generators(self, dl_manager):
                return {name: self._generate_examples(*split) for name, split in splits.items()}

            def _generate_examples(self, images, labels):
                for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                    row = {"id": str(number), "image": _png(image)}
                    yield number, row | {"label": int(label), "coarse_label": int(label) // 5}

    Cifar100(data_dir=directory, file_format="array_record").download_and_prepare()


def _png(image: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    file.seek(0)
    return file
