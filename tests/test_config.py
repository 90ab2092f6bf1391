"""Configs: what is accepted, what follows from it, and the one line that refuses the rest."""

import glob
import json
import pathlib
import re

import pytest
from ml_collections import ConfigDict

from pit_jax import config, configfile, lengths, validation
from pit_jax.errors import ConfigError
from pit_jax.launch import upload
from pit_jax.study import space


def refused(words: list[str], spec: str = "configs/digits.py:pit") -> str:
    with pytest.raises(ConfigError) as caught:
        configfile.load(spec, words)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_every_field_is_documented():
    for name, field in config.FIELDS.items():
        assert len(field.doc) > 5, name
        assert field.default is not None or field.kind, name


@pytest.mark.parametrize("path", sorted(glob.glob("configs/*.py")))
def test_every_config_resolves_without_an_argument_and_says_what_it_is(path):
    resolved = configfile.load(path)
    assert resolved.model.mlp == 4 * resolved.model.width
    text = pathlib.Path(path).read_text()
    assert "pit-jax train --config" in text
    assert "ublished" in text
    # What nobody published is said to be assumed, or to be of this project.
    assert re.search(r"\b[Aa]ssumed\b|\bproject's\s+own\b", text.split('"""')[1])


@pytest.mark.parametrize("path", sorted(glob.glob("configs/*.py")))
def test_every_config_names_evaluations_that_there_are(path):
    from pit_jax import evaluate, tasks

    resolved = configfile.load(path)
    validation.check_names(resolved, evaluate.offered(tasks.build(resolved)))


@pytest.mark.parametrize(
    ("spec", "patch", "width", "heads"),
    [
        ("configs/digits.py:pit", 1, 64, 2),
        ("configs/digits.py:vit/2", 2, 64, 2),
        ("configs/cifar100.py:pit-t", 1, 192, 12),
        ("configs/cifar100.py:vit-s/2", 2, 384, 12),
        ("configs/imagenet28.py:pit-l", 1, 1024, 16),
        ("configs/digits_mae.py:vit/2", 2, 64, 2),
        ("configs/digits_finetune.py:pit", 1, 64, 2),
        ("configs/cifar100_mae.py:pit-s", 1, 384, 12),
        ("configs/cifar100_mae.py:vit-t/2", 2, 192, 12),
        ("configs/cifar100_finetune.py:pit-t", 1, 192, 12),
        ("configs/imagenet_mae.py:vit-b/16", 16, 768, 12),
        ("configs/digits_diffusion.py:dit/2", 2, 64, 2),
        ("configs/imagenet256_latent.py:pit-l", 1, 1024, 16),
        ("configs/imagenet256_latent.py:dit-xl/2", 2, 1152, 16),
        ("configs/imagenet256_latent.py:dit-b/4", 4, 768, 12),
        ("configs/imagenet64_pixels.py:dit-b/4", 4, 768, 12),
        ("configs/imagenet64_pixels.py:pit-b", 1, 768, 12),
    ],
)
def test_the_argument_names_the_model(spec, patch, width, heads):
    model = configfile.load(spec).model
    assert (model.patch, model.width, model.heads) == (patch, width, heads)


def test_overrides_in_every_way_absl_users_write_them():
    words = ["--config.optim.lr=1e-2", "--config.train.seed", "7", "--config.train.deterministic"]
    words += ["--noconfig.train.tensorboard", "--config.optim.betas=(0.8, 0.9)"]
    c = configfile.load("configs/digits.py:pit", words)
    assert (c.optim.lr, c.train.seed, c.train.deterministic) == (0.01, 7, True)
    assert (c.train.tensorboard, c.optim.betas) == (False, (0.8, 0.9))


def test_the_length_given_on_the_command_line_wins():
    c = configfile.load("configs/digits.py:pit", ["--config.train.steps=5"])
    assert (c.train.steps, c.train.epochs, c.train.examples) == (5, None, None)


def test_mlp_follows_the_width_unless_given():
    assert configfile.load("configs/digits.py:pit", ["--config.model.width=96"]).model.mlp == 384
    given = ["--config.model.width=96", "--config.model.mlp=100"]
    assert configfile.load("configs/digits.py:pit", given).model.mlp == 100


def test_a_resolved_config_is_read_back_equal(tmp_path):
    c = configfile.load("configs/cifar100.py:pit-t")
    path = tmp_path / "config.json"
    path.write_text(configfile.to_json(c))
    again = configfile.load(str(path))
    assert config.flatten(again) == config.flatten(c)
    changed = configfile.load(str(path), ["--config.train.seed=3"])
    assert changed.train.seed == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--config.optim.lrr=1"],
            "config.optim.lrr is not a field; did you mean config.optim.lr?",
        ),
        (["--config.model.widht=9"], "did you mean config.model.width?"),
        (["--config.optim=1"], "config.optim is not a field"),
        (["--config.optim.lr=fast"], "config.optim.lr"),
        (["--config.optim.lr=-1"], "config.optim.lr=-1.0 must be at least 0.0"),
        (["--config.optim.lr=nan"], "config.optim.lr=nan must be finite"),
        (["--config.optim.lr=inf"], "config.optim.lr=inf must be finite"),
        (["--config.train.batch_size=1.5"], "config.train.batch_size"),
        (["--config.train.batch_size"], "Missing value for flag --config.train.batch_size"),
        (["--config.model.drop_path=1.0"], "must be at least 0.0 and at most 0.99"),
        (["--config.model.pool=clss"], "is not one of cls, mean, patches; did you mean 'cls'?"),
        (["--config.model.patch=3"], "model.patch=3 does not divide config.data.image_size=8"),
        (["--config.model.heads=3"], "model.heads=3 does not divide config.model.width=64"),
        (
            ["--config.train.accumulate=5"],
            "accumulate=5 does not divide config.train.batch_size=64",
        ),
        (["--config.train.steps=1", "--config.train.epochs=1"], "(steps and epochs given)"),
        (["--config.train.epochs=0"], "config.train.epochs must be more than 0"),
        (["--config.optim.warmup=5"], 'write a length as "500 steps"'),
        (["--config.optim.warmup=5 weeks"], 'write a length as "500 steps"'),
        (["--config.optim.betas=(0.9,)"], "config.optim.betas=(0.9,) must be two numbers"),
        (["--config.data.mean=(0.1, 0.2)"], "config.data.mean=(0.1, 0.2) needs one number"),
        (["--config.data.std=(0.0,)"], "config.data.std=(0.0,): 0.0 must be at least 1e-06"),
        (["--config.data.augmentation.grayscale=0.2"], "need colour images"),
        (["--config.data.augmentation.jitter=(0.,0.,0.1,0.)"], "need colour images"),
        (["--config.data.augmentation.scale=(0.5, 0.2)"], "augmentation.scale=(0.5, 0.2)"),
        (["--config.mesh.data=-1", "--config.mesh.fsdp=-1"], "at most one is -1"),
        (["--config.mesh.fsdp=0"], "axes are 1 or more"),
        (["--config.mesh.model=3"], "mesh.model=3 does not divide config.model.heads=2"),
        (["--config.model.position=sincos2d", "--config.model.width=6"], "a multiple of 4, not 6"),
        (["--config.init_from=a", "--config.resume=b"], "not both"),
        (["--config.train.seed=99999999999999999999"], "must be at least 0 and at most"),
        (["--config.optim.freeze=('(',)"], "'(' is no regular expression"),
        (["--config.optim.freeze=(1,)"], "config.optim.freeze=(1,): 1 should be of type str"),
        (["word"], "unexpected argument 'word'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(words, sentence):
    assert sentence in refused(words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--config.mae.mask_ratio=0.0"], "mask_ratio=0.0 must lie between 0 and 1, both excluded"),
        (["--config.mae.mask_ratio=1.0"], "mask_ratio=1.0 must lie between 0 and 1, both excluded"),
        (["--config.mae.mask_ratio=-0.5"], "mask_ratio=-0.5 must lie between 0 and 1"),
        (["--config.mae.mask_ratio=nan"], "mask_ratio=nan must be finite"),
        (["--config.mae.mask_ratio=0.99"], "leaves 0 of an image's 64 patches visible"),
        (["--config.mae.mask_ratio=1e-20"], "leaves 64 of an image's 64 patches visible"),
        (["--config.mae.decoder_heads=3"], "decoder_heads=3 does not divide config.mae.decoder_w"),
        (["--config.mae.normalise_target"], "needs patches of more than one number"),
        (["--config.data.augmentation.mixup=0.8"], "augmentation.mixup has no place in task 'mae'"),
        (["--config.data.augmentation.erasing=0.2"], "erasing has no place in task 'mae'"),
        (["--config.train.label_smoothing=0.1"], "label_smoothing has no place in task 'mae'"),
        (["--config.model.pool=patches"], "pool='patches' is for fine-tuning"),
        (["--config.mesh.model=2", "--config.mae.decoder_heads=1"], "mesh.model=2 does not divide"),
        (["--config.eval.shots=()"], "config.eval.shots=()"),
        (["--config.eval.shots=(0,)"], "config.eval.shots=(0,)"),
        (
            ["--config.mae.decoder_position=sincos2d", "--config.mae.decoder_width=6"],
            "a multiple of 4, not 6",
        ),
    ],
)
def test_what_cannot_be_masked_is_refused_in_one_line(words, sentence):
    assert sentence in refused(words, "configs/digits_mae.py:pit")


def test_a_decoder_has_the_size_of_its_encoder():
    found = [
        tuple(configfile.load(spec).mae[f"decoder_{name}"] for name in ("width", "depth", "heads"))
        for spec in ("configs/cifar100_mae.py:pit-t", "configs/cifar100_mae.py:vit-s/2")
    ]
    assert found == [(128, 4, 4), (256, 4, 8)]
    public = configfile.load("configs/imagenet_mae.py:vit-b/16")
    assert (public.mae.decoder_width, public.mae.decoder_depth, public.mae.decoder_heads) == (
        512,
        8,
        16,
    )
    assert public.mae.normalise_target
    assert public.mae.decoder_position == public.model.position == "sincos2d"
    pixels = configfile.load("configs/cifar100_mae.py:pit-t")
    assert pixels.mae.decoder_position == pixels.model.position == "learned"
    assert not pixels.mae.normalise_target


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("configs/none.py", "there is no config file configs/none.py"),
        ("configs/none.py:pit", "there is no config file configs/none.py"),
        ("configs/digits", "write FILE.py, FILE.py:ARGUMENT or config.json"),
        ("configs/digits.py:deit", "unknown model 'deit': write one of pit, vit/2"),
        ("configs/cifar100.py:pit-x", "write one of pit-t, pit-s, vit-t/2, vit-s/2"),
        ("runs/none/config.json", "cannot be read"),
    ],
)
def test_configs_that_do_not_exist_are_refused(spec, sentence):
    assert sentence in refused([], spec)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not a config"),
        ("[1]", "should hold an object"),
        ('{"optim": {"lrr": 1}}', "did you mean config.optim.lr?"),
        ('{"optim": {"lr": "x"}}', "should be of type float"),
    ],
)
def test_a_broken_config_json_is_refused(tmp_path, text, sentence):
    (tmp_path / "config.json").write_text(text)
    assert sentence in refused([], str(tmp_path / "config.json"))


def test_a_config_file_with_a_mistake_is_refused_by_name(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config(arg=None):\n    return 1 / 0\n")
    assert "mine.py: ZeroDivisionError: division by zero" in refused([], str(path))
    path.write_text("x = 1\n")
    assert "defines no get_config" in refused([], str(path))


def test_dictionary_and_mixes_do_not_go_together(tiny):
    tiny.model.embed = "dictionary"
    tiny.data.augmentation.mixup = 0.5
    with pytest.raises(ConfigError, match="blended colours"):
        validation.resolve(tiny)


@pytest.mark.parametrize(
    ("text", "steps"),
    [("500 steps", 500), ("1 step", 1), ("2 epochs", 20), ("0.5 epochs", 5), ("5%", 10)]
    + [("640 examples", 10), ("10 %", 20)],
)
def test_lengths(text, steps):
    clock = lengths.Clock(batch_size=64, num_examples=640, total_steps=200)
    assert lengths.Length.parse(text).steps(clock) == steps


def test_total_steps_cover_the_last_examples(tiny):
    tiny.train.update(steps=None, epochs=1.0, batch_size=64)
    assert lengths.total_steps(tiny.train, 641) == 11
    tiny.train.update(epochs=None, examples=64)
    assert lengths.total_steps(tiny.train, 641) == 1


def test_config_json_is_plain_json(resolved):
    tree = json.loads(configfile.to_json(resolved))
    assert tree["model"]["width"] == 16
    assert tree["train"]["epochs"] is None


def test_one_class_is_for_tasks_that_read_no_label():
    """Unlabelled images; what only a probe would read is left out of the run."""
    from pit_jax import demands

    one = "--config.data.num_classes=1"
    line = "num_classes=1 leaves task 'classification' nothing to tell apart: write how many"
    assert line in refused([one])
    line = "nothing to tell apart: write config.diffusion.conditional=False, or 2 or more"
    assert line in refused([one], "configs/digits_diffusion.py:pit")
    words = [one, "--config.diffusion.conditional=False"]
    assert demands.reads_labels(configfile.load("configs/digits_diffusion.py:pit", words)) is False
    for words, reads in (([], None), (["--config.eval.what=('loss',)"], False), ([one], False)):
        mae = configfile.load("configs/digits_mae.py:pit", words)
        assert demands.reads_labels(mae) is reads, words
    assert demands.reads_labels(configfile.load("configs/digits.py:pit"), ()) is True


def test_no_field_is_called_as_what_a_config_can_do():
    """`config.data.keys` would be the method of that name."""
    assert not [name for name in config.FIELDS if hasattr(ConfigDict, name.split(".")[-1])]


def test_a_resolved_config_spells_the_home_directory_out_in_every_place(tiny, monkeypatch):
    """So that config.json says whose; a run begun with `~` and one begun without are the same."""
    monkeypatch.setenv("HOME", "/somebody")
    places = {name for name, field in config.FIELDS.items() if field.place}
    assert places == {*space.RUNS, *upload._PLACES}
    for name in places:
        config.assign(tiny, name, "~/there" if name != "resume" else "")
    resolved = validation.resolve(tiny)
    found = config.flatten(configfile.from_json(configfile.to_json(resolved)))
    assert {found[name] for name in places} == {"/somebody/there", ""}
    tiny.init_from = tiny.data.dir = ""
    tiny.resume, tiny.eval.reference, tiny.eval.features = "~", "gs://b/~/x", "a/~/x"
    resolved = validation.resolve(tiny)
    assert resolved.resume == "/somebody"
    assert (resolved.eval.reference, resolved.eval.features) == ("gs://b/~/x", "a/~/x")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--config.eval.every=0 steps"], "config.eval.every='0 steps' is no period"),
        (["--config.checkpoint.every=0%"], "config.checkpoint.every='0%' is no period"),
        (
            ["--config.optim.lr_end=4e-3"],
            "lr_end=0.004 is more than the peak, config.optim.lr=0.003",
        ),
        (
            ["--config.optim.lr_end=2e-3", "--config.optim.lr_batch=256"],
            "config.optim.lr=0.003 × 64 / 256: schedule 'cosine' would rise",
        ),
        (["--config.optim.warmup=101%"], "config.optim.warmup='101%': more than the whole"),
        (
            ["--config.optim.schedule=wsd", "--config.optim.warmup=90%"],
            "config.optim.warmup='90%' and config.optim.decay='20%': more than the whole",
        ),
        (
            ["--config.optim.schedule=wsd", "--config.optim.decay=0 steps"],
            "write config.optim.schedule='constant'",
        ),
        (["--config.optim.layer_decay=0"], "config.optim.layer_decay=0 trains the head alone"),
        (
            ["--config.data.augmentation.mixup=0.8", "--config.data.augmentation.mixup_prob=0"],
            "mixup_prob=0 mixes nothing",
        ),
        (
            [
                "--config.data.augmentation.jitter=(0.4, 0., 0., 0.)",
                "--config.data.augmentation.jitter_prob=0",
            ],
            "jitter_prob=0 jitters nothing",
        ),
    ],
)
def test_what_can_hardly_be_meant_begins_no_run_and_ends_none(words, sentence, tmp_path):
    """Refused of a new run, in a sweep too; a run that was begun with it is still read."""
    from pit_jax.study import resolver
    from pit_jax.train import train

    assert sentence in refused(words)
    begun = validation.resolve(configfile.override(configfile.read("configs/digits.py:pit"), words))
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        train(begun, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        resolver.Resolver(configfile.PythonFile("configs/digits.py:pit"), words)({})
    (tmp_path / "config.json").write_text(configfile.to_json(begun))
    again = configfile.load(str(tmp_path / "config.json"))
    assert config.flatten(again) == config.flatten(begun)
