"""The combinators of a sweep: plain lists of override dictionaries."""

import pytest

from pit_jax.errors import ConfigError
from pit_jax.study.space import chain, describe, grid, scale_of, seeds, short_names, text, zipped


def test_grid_is_the_product_whose_last_part_varies_fastest():
    assert grid({"model.patch": (1, 2), "optim.lr": [0.1]}, seeds(2, first=5)) == [
        {"model.patch": 1, "optim.lr": 0.1, "train.seed": 5},
        {"model.patch": 1, "optim.lr": 0.1, "train.seed": 6},
        {"model.patch": 2, "optim.lr": 0.1, "train.seed": 5},
        {"model.patch": 2, "optim.lr": 0.1, "train.seed": 6},
    ]
    assert grid({"model.patch": (1, 2)}, []) == []
    assert grid() == [{}]


def test_zipped_goes_in_step_and_chain_one_after_the_other():
    both = zipped({"model.patch": (1, 2), "data.image_size": (4, 8)})
    assert both == [
        {"model.patch": 1, "data.image_size": 4},
        {"model.patch": 2, "data.image_size": 8},
    ]
    assert chain(both[:1], seeds(1), both[1:]) == [both[0], {"train.seed": 0}, both[1]]
    assert chain() == []


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: zipped({"a": (1, 2), "b": (3,)}), "a has 2 values and b 1"),
        (lambda: grid({"train.seed": (1,)}, seeds(2)), "train.seed is set by two of its parts"),
        (lambda: grid({"model.position": "none"}), "should be several values"),
        (
            lambda: grid({"model.patch": 2}),
            r"model.patch=2 should be several values, such as \(2,\)",
        ),
        (lambda: scale_of("huge", {"tiny": 1, "paper": 2}), "write one of tiny, paper"),
    ],
)
def test_mistakes_name_the_field(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_labels_of_a_part_are_completed_by_what_the_others_vary():
    named = [{"label": "PiT"}, {"label": "ViT", "model.patch": 2}]
    points = grid(named, seeds(2), {"optim.lr": (0.1,)})
    assert [p["label"] for p in points] == ["PiT,seed=0", "PiT,seed=1", "ViT,seed=0", "ViT,seed=1"]
    assert points[2] == {"label": "ViT,seed=0", "model.patch": 2, "train.seed": 0, "optim.lr": 0.1}
    assert named[0] == {"label": "PiT"}


def test_a_description_holds_what_differs_under_short_names():
    points = grid({"optim.lr": (1e-3, 1e-5), "sample.seed": (0, 1), "model.depth": (2,)}, seeds(1))
    assert describe(points)[1] == "lr=0.001,seed=1"
    names = ["train.seed", "sample.seed", "data.augmentation.crop", "model.patch"]
    assert list(short_names(names).values()) == ["train.seed", "sample.seed", "crop", "patch"]
    assert text((0.9, 0.95)) == "(0.9 0.95)"
    assert text(1.0) == "1"
    assert text(0.1234567) == "0.1234567"
    assert text("run:PiT") == "PiT"
