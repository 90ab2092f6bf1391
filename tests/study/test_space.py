"""The combinators of a sweep: plain lists of override dictionaries."""

import re

import pytest

from pit_jax.config import FIELDS
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
    assert text("run:PiT") == "PiT"


@pytest.mark.parametrize(
    ("value", "name", "words"),
    [
        (1.0, "", "1"),
        (0.1234567, "", "0.1234567"),
        (0.1 + 0.2, "", "0.30000000000000004"),
        ((0.9, 0.95), "", "(0.9 0.95)"),
        ((2.0,), "", "2"),
        ((), "", "none"),
        ("", "", "none"),
        (None, "", "none"),
        (True, "", "True"),
        (0, "data.augmentation.mixup", "0"),
        ((), "model.window", "none"),
        ([-1.0], "model.window", "all"),
        ((0.0,), "model.window", "0"),
        (0, "model.window_layers", "all"),
        (0, "sample.guidance_channels", "all"),
        (0, "data.per_class", "all"),
        (0, "data.permutation.distance", "any"),
        ("", "eval.reference", "training set"),
    ],
)
def test_a_value_reads_as_what_it_means(value, name, words):
    assert text(value, name) == words


def test_the_default_that_a_field_says_a_special_meaning_of_has_a_word_for_labels():
    """ "0 = all" of a limit must not read as nothing; a size or rate of 0 that is off may."""
    means_all = re.compile(r"(?:\b0|empty|\(\)) = (?:on )?(?:all|no limit|no windows|the training)")
    told = {name for name, field in FIELDS.items() if means_all.search(field.doc)}
    assert {"model.window", "model.window_layers", "data.per_class"} <= told
    assert all(FIELDS[name].default in FIELDS[name].words for name in told)


def test_the_label_of_no_window_says_so():
    assert describe(grid({"model.window": ((), (2.0,), (-1.0,))})) == [
        "window=none",
        "window=2",
        "window=all",
    ]
