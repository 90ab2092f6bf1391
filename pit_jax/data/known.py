"""Facts about common data sets, so that a config can be shown and checked without them."""

import dataclasses


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
