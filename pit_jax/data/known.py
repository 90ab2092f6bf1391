"""Facts about common data sets, so that a config can be shown and checked without them."""

import dataclasses
import re
from typing import NamedTuple

from pit_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Known:
    """Examples by split, number of classes, and space on disk once prepared, in GB.

    `side` is that of its images in pixels where all are squares of one size, else None.
    """

    splits: dict[str, int]
    num_classes: int
    gigabytes: float
    side: int | None = None


KNOWN = {
    "digits": Known({"train": 1437, "test": 360}, 10, 0.0001, 8),
    "cifar10": Known({"train": 50_000, "test": 10_000}, 10, 0.13, 32),
    "cifar100": Known({"train": 50_000, "test": 10_000}, 100, 0.13, 32),
    "imagenet2012": Known({"train": 1_281_167, "validation": 50_000}, 1000, 156.0),
    "oxford_flowers102": Known({"train": 1020, "test": 6149, "validation": 1020}, 102, 0.33),
    "scenes": Known({"train": 512, "test": 128}, 0, 0.0),
    "nyu_depth_v2": Known({"train": 47_584, "validation": 654}, 0, 79.0),
    "mnist": Known({"train": 60_000, "test": 10_000}, 10, 0.02, 28),
    "fashion_mnist": Known({"train": 60_000, "test": 10_000}, 10, 0.04, 28),
    "svhn_cropped": Known({"train": 73_257, "test": 26_032, "extra": 531_131}, 10, 1.5, 32),
    "food101": Known({"train": 75_750, "validation": 25_250}, 101, 4.7),
    "tf_flowers": Known({"train": 3670}, 5, 0.22),
    "cats_vs_dogs": Known({"train": 23_262}, 2, 0.79),
}


class Copy(NamedTuple):
    """What the name of a resized copy says, such as imagenet2012@64.

    Attributes:
      image_set: the set that it is of, a version with it if one is named.
      size: side of its images, pixels.
      squashed: whether they are whole images squeezed into squares, else centres cut out.
    """

    image_set: str
    size: int
    squashed: bool

    def __str__(self) -> str:
        return f"{self.image_set}@{self.size}{'-squash' if self.squashed else ''}"


def copy_of(name: str) -> Copy | None:
    """What a data set's name says if it is a resized copy's, else None.

    Raises:
      ConfigError: if it looks like one and is none.
    """
    if "@" not in name:
        return None
    found = re.fullmatch(r"([^@]+)@([1-9][0-9]*)(-squash)?", name)
    if not found:
        raise ConfigError(
            f"config.data.name={name!r} names no resized copy: write SET@SIZE, or"
            " SET@SIZE-squash, such as imagenet2012@64"
        )
    return Copy(found[1], int(found[2]), bool(found[3]))


def wrong_size(name: str, image_size: int) -> str | None:
    """What is wrong with a config of this image size, if it names a copy of another one."""
    copy = copy_of(name)
    if not copy or copy.size == image_size:
        return None
    return (
        f"config.data.name={name!r} is a copy at {copy.size} × {copy.size} pixels, but"
        f" config.data.image_size={image_size}: write {copy.size}, or name the copy"
        f" {copy._replace(size=image_size)}"
    )


def facts(name: str) -> Known | None:
    """What is known of a data set; of a copy, of the set that it is of."""
    copy = copy_of(name)
    known = KNOWN.get((copy.image_set if copy else name).partition(":")[0])
    return dataclasses.replace(known, side=copy.size) if known and copy else known
