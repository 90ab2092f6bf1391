"""Points of a sweep: names, hashes, what they start from, and what is refused."""

import itertools
import json

import pytest

from pit_jax import config, configfile, validation
from pit_jax.config import Field
from pit_jax.errors import ConfigError
from pit_jax.study import points
from pit_jax.study.space import chain, grid, seeds

FILE = "configs/digits.py"


def build(entries, *words, workdir="runs/x", file=FILE):
    return points.build(configfile.PythonFile(file), entries, words, workdir)


def refused(entries, *words):
    with pytest.raises(ConfigError) as error:
        build(entries, *words)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_point_is_named_by_what_differs_and_a_hash_of_its_config():
    found = build(grid({"model.patch": (1, 2), "optim.lr": (0.01,)}, seeds(2)))
    assert [p.label for p in found][:2] == ["patch=1,seed=0", "patch=1,seed=1"]
    assert found[3].config.model.patch == 2
    assert found[3].config.optim.lr == 0.01
    assert found[3].directory == f"patch=2_seed=1-{found[3].digest[:8]}"
    assert len({p.digest for p in found}) == 4
    assert build([{}])[0].label == "PiT"  # nothing differs: the model's name


def test_the_value_a_field_has_where_a_point_leaves_it_alone_is_in_the_label():
    labels = [p.label for p in build([{}, {"model.patch": 2}, {"train.steps": 7}])]
    assert labels == ["patch=1", "patch=2", "patch=1,steps=7"]


def test_the_hash_stands_for_the_experiment_and_not_for_where_it_is_computed(monkeypatch):
    [point] = build([{"model.patch": 2}])
    same = [
        build([{"model.patch": 2}], workdir="/elsewhere"),
        build([{"model.patch": 2}], "--config.mesh.fsdp=2", "--config.data.dir=/data"),
        build([{"model.patch": 2}], "--config.model.attention=xla"),
    ]
    assert {p.digest for [p] in same} == {point.digest}
    assert all(point.same(p.config) for [p] in same)
    others = [
        build([{"model.patch": 2}], "--config.train.seed=1"),
        build([{"model.patch": 2}], "--config.train.epochs=31"),
        build([{"model.patch": 2}], "--config.eval.every=5%"),
    ]
    assert len({point.digest, *(p.digest for [p] in others)}) == 4
    assert not point.same(others[0][0].config)
    # Of a later version with another field, the runs are the same ones.
    monkeypatch.setitem(config.FIELDS, "model.novelty", Field(0, "not known before"))
    assert build([{"model.patch": 2}])[0].digest == point.digest


def test_a_point_goes_on_with_the_run_that_an_older_version_began(tmp_path):
    """Its hash was made, and its config.json written, without the fields that came later."""
    [point] = build([{"model.patch": 2}], "--config.data.keyed_by=pixels", workdir=tmp_path)
    [now] = build([{"model.patch": 2}], workdir=tmp_path)
    tree = point.config.to_dict()
    for name, field in config.FIELDS.items():
        group, _, leaf = name.rpartition(".")
        if field.before is not None:
            del tree[group][leaf]
    old = tmp_path / f"called otherwise-{now.digest[:8]}"
    old.mkdir()
    (old / "config.json").write_text(json.dumps(tree))
    assert build([{"model.patch": 2}], workdir=tmp_path)[0].directory == old.name
    assert build([{"model.patch": 1}], workdir=tmp_path)[0].directory != old.name
    (old / "config.json").write_text(configfile.to_json(point.config))  # today's, and another run
    assert build([{"model.patch": 2}], workdir=tmp_path)[0].directory != old.name


def test_how_a_run_is_computed_counts_where_the_sweep_varies_it():
    found = build(grid({"model.attention": ("xla", "blocked")}))
    assert found[0].digest != found[1].digest


def test_the_command_line_wins_and_another_length_replaces_the_first():
    found = build([{"model.patch": 1}, {"model.patch": 2}], "--config.train.steps=5")
    assert {p.config.train.steps for p in found} == {5}
    assert {p.config.train.epochs for p in found} == {None}
    [point] = build([{"train.examples": 640}], "--config.optim.lr=0.5")
    assert (point.config.train.examples, point.config.train.epochs) == (640, None)
    assert point.config.optim.lr == 0.5


def test_a_long_label_makes_a_short_directory_that_is_still_its_own():
    long = {"label": "é" * 30 + "a/b " * 40, "train.seed": 1}
    found = build([long, {"label": long["label"] + "!", "train.seed": 2}])
    assert all(len(p.directory) <= 70 and p.directory.isascii() for p in found)
    assert not any(set(p.directory) & set("/ :*?\\") for p in found)
    assert found[0].directory != found[1].directory


def test_another_base_config_is_found_beside_the_file_or_from_here(tmp_path):
    (tmp_path / "other.py").write_text("from pit_jax.configfile import read\n"
        "def get_config(arg='pit'):\n    return read(f'configs/digits.py:{arg}')\n")  # fmt: skip
    study = tmp_path / "study.py"
    study.write_text("def sweep(): return []\n")
    entries = [
        {"config": "other.py:vit/2"},
        {"config": FILE},
        {"config": "other.py", "model.depth": 1},
    ]
    found = build(entries, file=str(study))
    assert [p.config.model.patch for p in found] == [2, 1, 1]
    assert [p.label for p in found] == [
        "config=other:vit/2,depth=4", "config=digits,depth=4", "config=other,depth=1"
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"point 0: .*defines no get_config"):
        build([{}], file=str(study))


def test_a_point_gets_the_directory_and_the_hash_of_the_run_it_starts_from(tmp_path):
    def entries(lr):
        before = [{"label": "before", "optim.lr": lr}]
        return [{"label": "after", "init_from": "run:before"}, *before]

    after, before = build(entries(0.1), workdir=tmp_path)
    assert after.config.init_from == str(tmp_path / before.directory)
    assert after.needs == {"init_from": before}
    assert after.same(after.config)
    assert build(entries(0.1), workdir="/elsewhere")[0].digest == after.digest
    assert build(entries(0.2), workdir=tmp_path)[0].digest != after.digest


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        (
            grid({"model.patch": (1, 3)}, seeds(2)),
            "point 2 (patch=3, seed=0): config.model.patch=3 does not divide",
        ),
        ([{}, {"model.pach": 2}], "point 1 (pach=2): config.model.pach is not a field; did"),
        ([{"model.patch": "2"}], "point 0: config.model.patch='2' should be of type int"),
        ([{}, 3], "point 1: 3 should be a dictionary of overrides"),
        ([{"label": "a\nb"}], "should be one line of text"),
        ([{"label": "a", "train.seed": 1}, {"label": "a"}], "0 and 1 have the same label 'a'"),
        ([{"train.seed": 4}, {}, {"train.seed": 4}], "points 0 (seed=4) and 2 (seed=4) are"),
        ([{"label": "a"}, {"label": "b"}], "points 0 (a) and 1 (b) are the same run"),
        (
            [{"label": "a", "init_from": "run:bb"}, {"label": "b"}],
            "point 0 (a): init_from='run:bb' names no point of this sweep; did you mean 'run:b'?",
        ),
        (
            [{"label": x, "init_from": f"run:{y}"} for x, y in ("ab", "bc", "ca")],
            "points start from each other in a circle: 0 → 1 → 2 → 0",
        ),
        ([{"config": "none.py:x"}], "point 0: there is no config file none.py"),
        ([{"config": 3}], "point 0: config=3 should be FILE[:ARG]"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_before_anything_runs(entries, sentence):
    assert sentence in refused(entries)


def test_an_override_that_makes_points_equal_or_wrong_is_refused():
    assert "are the same run" in refused(seeds(2), "--config.train.seed=3")
    line = refused([{"model.patch": 1}, {"model.patch": 2}], "--config.data.image_size=5")
    assert line.startswith("point 1 (patch=2): config.model.patch=2 does not divide")


def test_an_evaluation_that_the_task_does_not_offer_is_refused_with_the_point():
    found = build([{}, {"eval.what": ("accuracy", "depth")}])
    with pytest.raises(
        ConfigError, match=r"point 1 \(what=\(accuracy depth\)\): .* offers accuracy"
    ):
        points.check_evaluations(found)


def test_shards_share_the_points_and_keep_together_what_starts_from_each_other():
    pairs = [
        ({"label": f"a{i}", "train.seed": i}, {"label": f"b{i}", "init_from": f"run:a{i}"})
        for i in range(3)
    ]
    found = build(chain(*pairs, [{"label": "alone", "train.seed": 9}]))
    for total in (1, 2, 3, 6):
        shards = [points.select(found, f"{k}/{total}") for k in range(total)]
        indices = [[p.index for p in shard] for shard in shards]
        assert sorted(itertools.chain(*indices)) == list(range(7))
        for shard in indices:
            assert all({index, index ^ 1} <= set(shard) for index in shard if index < 6)
    assert [p.index for p in points.select(found, "0/2")] == [0, 1, 4, 5]
    assert [p.index for p in points.select(found, "3")] == [2, 3]  # and what it starts from
    assert len(points.select(found, None)) == 7
    for wrong in ("7", "2/2", "0/0", "-1", "a", "1/"):
        with pytest.raises(ConfigError, match=f"(--only|shard) {wrong}: "):
            points.select(found, wrong)


def test_many_points_are_resolved_once_where_they_differ_in_their_seed_alone(monkeypatch):
    calls, resolve = [], validation.resolve
    monkeypatch.setattr(validation, "resolve", lambda config: calls.append(1) or resolve(config))
    found = build(grid({"model.patch": (1, 2)}, seeds(50)))
    assert len(calls) == 2
    assert [p.config.train.seed for p in found] == [*range(50), *range(50)]
    assert [p.config.model.patch for p in found] == [1] * 50 + [2] * 50
    assert refused(grid({"model.patch": (1, 2)}, seeds(2)), "--config.train.seed=3")


def test_a_chain_of_any_length_is_run_from_its_end(monkeypatch):
    """Longer than Python's stack is deep."""
    monkeypatch.setattr(validation, "resolve", lambda config: config)
    links = [{"label": str(i), "train.seed": i, "init_from": f"run:{i + 1}"} for i in range(1050)]
    found = build([*links, {"label": "1050"}])
    assert len(points.select(found, "0")) == len(points.select(found, "0/2")) == 1051
    assert points.select(found, "1/2") == []


def test_values_of_numpy_are_those_of_python(tmp_path):
    import json

    import numpy as np

    python = build(grid({"model.width": (32, 64), "optim.lr": (0.1,)}, seeds(2)))
    ours = grid(
        {"model.width": np.array([32, 64]), "optim.lr": np.float32([0.1])}, seeds(np.int64(2))
    )
    found = build(ours)
    assert [p.digest for p in found] == [p.digest for p in python]
    assert [json.dumps(p.record()) for p in found] == [json.dumps(p.record()) for p in python]
