"""What differs is found by itself, and named."""

import pytest

from pit_jax.study.collect import collect
from pit_jax.study.groups import group

from .fake_runs import fake_run, fake_sweep


def grouped(path):
    found, notes = group(collect([path]).runs)
    return {one.label: [run.seed for run in one.runs] for one in found}, found, notes


def test_seeds_are_grouped_and_a_patch_is_named_by_its_model(tmp_path):
    for patch in (1, 2):
        for seed in (1, 0):
            fake_run(tmp_path / f"p{patch}s{seed}", 0.5, seed, model__patch=patch)
    labels, found, _ = grouped(tmp_path)
    assert labels == {"PiT": [0, 1], "ViT/2": [0, 1]}
    assert [one.fields for one in found] == [{"model.patch": 1}, {"model.patch": 2}]
    assert found[1].aliases == {"ViT/2", "patch=2"}


def test_fields_name_what_the_model_does_not_say(tmp_path):
    for rate in (0.001, 0.0025):
        for position in ("learned", "none"):
            name = f"{rate}{position}"
            fake_run(tmp_path / name, 0.5, optim__lr=rate, model__position=position)
    labels, _, _ = grouped(tmp_path)
    assert set(labels) == {
        f"position={p},lr={lr}" for p in ("learned", "none") for lr in ("0.001", "0.0025")
    }


def test_names_that_end_alike_are_dotted(tmp_path):
    fake_run(tmp_path / "a", 0.5, model__depth=2, mae__decoder_width=8, perceiver__rounds=1)
    fake_run(tmp_path / "b", 0.5, convnet__channels=(4, 8), autoencoder__channels=(32, 64))
    labels, _, _ = grouped(tmp_path)
    assert "autoencoder.channels=(32 64)" in list(labels)[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [("checkpoint__keep", 5), ("train__log_every", 7), ("data__dir", "/x"), ("mesh__data", 1)]
    + [("model__attention", "xla"), ("eval__batch_size", 9)],
)
def test_what_does_not_change_the_experiment_is_ignored(tmp_path, name, value):
    fake_run(tmp_path / "a", 0.5, seed=0)
    fake_run(tmp_path / "b", 0.5, seed=1, **{name: value})
    labels, found, _ = grouped(tmp_path)
    assert labels == {"PiT": [0, 1]}
    assert found[0].fields == {}


def test_the_length_of_training_is_another_experiment(tmp_path):
    fake_run(tmp_path / "a", 0.5)
    fake_run(tmp_path / "b", 0.5, train__steps=80)
    assert set(grouped(tmp_path)[0]) == {"steps=40", "steps=80"}


def test_an_mlp_that_follows_from_the_width_is_left_out(tmp_path):
    fake_run(tmp_path / "a", 0.5)
    fake_run(tmp_path / "b", 0.5, model__width=32)
    assert [one.fields for one in grouped(tmp_path)[1]] == [
        {"model.width": 16},
        {"model.width": 32},
    ]
    fake_run(tmp_path / "c", 0.5, model__width=32, model__mlp=16)
    assert "width=32,mlp=16" in grouped(tmp_path)[0]


def test_a_seed_that_goes_with_the_seed_is_one(tmp_path):
    for seed in (0, 1):
        fake_run(tmp_path / f"s{seed}", 0.5, seed, data__per_class=9, data__per_class_seed=seed)
    assert grouped(tmp_path)[0] == {"PiT": [0, 1]}
    fake_run(tmp_path / "other", 0.5, 0, data__per_class=9, data__per_class_seed=5)
    assert "per_class_seed=5" in grouped(tmp_path)[0]


def test_a_sweeps_own_labels_win_over_the_models(tmp_path):
    points = {}
    for seed in (0, 1):
        for patch, label in ((1, "pixels"), (2, "patches")):
            fake_run(tmp_path / f"{label}{seed}", 0.5, seed, model__patch=patch)
            points[f"{label}, seed {seed}"] = f"{label}{seed}"
    fake_sweep(tmp_path, points)
    labels, found, _ = grouped(tmp_path)
    assert labels == {"pixels": [0, 1], "patches": [0, 1]}
    assert found[0].aliases == {"pixels", "PiT", "patch=1"}


def test_made_up_labels_of_a_sweep_give_way_to_the_model(tmp_path):
    points = {}
    for patch in (2, 1):
        fake_run(tmp_path / str(patch), 0.5, model__patch=patch)
        points[f"patch={patch},seed=0"] = str(patch)
    fake_sweep(tmp_path, points)
    assert list(grouped(tmp_path)[0]) == ["ViT/2", "PiT"]  # in the sweep's order


def test_a_start_is_told_by_its_config_and_not_by_its_path(tmp_path):
    for seed in (0, 1):
        for ratio in (0.5, 0.75):
            before = tmp_path / f"mae{ratio}s{seed}"
            fake_run(before, None, seed, task="mae", mae__mask_ratio=ratio)
            name = tmp_path / "ends" / f"{ratio}s{seed}"
            fake_run(name, 0.5, seed, init_from=str(before))
        fake_run(tmp_path / "ends" / f"scratch{seed}", 0.5, seed)
    labels, _, _ = grouped(tmp_path / "ends")
    assert labels == {
        "init_from=PiT mae,mask_ratio=0.5": [0, 1],
        "init_from=PiT mae,mask_ratio=0.75": [0, 1],
        "init_from=none": [0, 1],
    }


def test_of_the_same_run_twice_the_newer_one_counts(tmp_path):
    fake_run(tmp_path / "b", 0.5)
    fake_run(tmp_path / "a", 0.6, steps=5)  # ended later
    _, (one,), notes = grouped(tmp_path)
    assert [run.name for run in one.runs] == ["a"]
    assert len(notes) == 1
    assert "b has the fields and the seed of" in notes[0]
