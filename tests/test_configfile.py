"""Config files: what somebody else's Python or JSON may do, told in one line."""

import json

import pytest

from pit_jax import configfile
from pit_jax.config import base, flatten
from pit_jax.errors import ConfigError

START = "import sys\nfrom ml_collections import ConfigDict\nfrom pit_jax.config import base\n"


def refused(path, words=()) -> str:
    with pytest.raises(ConfigError) as caught:
        configfile.load(str(path), words)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 700
    return line


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return None", "get_config() should return a ConfigDict made by pit_jax.config.base()"),
        ("return 5", "get_config() should return a ConfigDict made by pit_jax.config.base()"),
        ("return {}", "get_config() should return a ConfigDict made by pit_jax.config.base()"),
        ("yield 5", "get_config() should return a ConfigDict made by pit_jax.config.base()"),
        ("sys.exit(0)", "the file calls sys.exit(): it should only say what a run is"),
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
        ("c = base(); c.eval.what = ({},); return c", "eval.what=({},): {} should be of type str"),
        ("c = base(); c.eval.what = ([1],); return c", "eval.what=([1],): [1] should be of type"),
        ("c = base(); c.model.width = 10**5000; return c", "config.model.width=<int> must be at"),
        ("c = base(); c.data.mean = 0.5; return c", "Could not override field 'mean'"),
        ("c = base(); c.me = 5; return c", 'Key "me" does not exist'),
        ("c = base().unlock(); c.modle = 5; return c", "config.modle is not a field; did you"),
        ("return ConfigDict({'optim': 5})", "config.optim is not a field; did you mean config."),
        ("return ConfigDict({'optim': {'lr': 'x'}})", "config.optim.lr='x' should be of type flo"),
        (
            "class Mute(Exception):\n        def __str__(self): return 5\n    raise Mute",
            "Mute: no message",
        ),
    ],
)
def test_what_a_python_file_does_wrong_is_told_with_its_name(tmp_path, body, sentence):
    path = tmp_path / "mine.py"
    path.write_text(f"{START}def get_config(arg=None):\n    {body}\n")
    line = refused(path)
    assert line.startswith(f"{path}: ")
    assert sentence in line
    assert sentence in refused(path, ["--config.optim.eps=1e-8"])


def test_a_file_that_ends_the_program_at_once_is_refused_too(tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit")
    assert "mine.py: the file calls sys.exit()" in refused(tmp_path / "mine.py")


def test_an_interruption_is_none_of_the_file_s_mistakes(tmp_path):
    (tmp_path / "mine.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        configfile.load(str(tmp_path / "mine.py"))


def test_fields_that_a_config_leaves_out_or_freezes_are_no_hindrance(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        f"{START}from ml_collections import FrozenConfigDict\n"
        "def get_config(): return FrozenConfigDict({'train': {'steps': 5}})\n"
    )
    c = configfile.load(str(path), ["--config.optim.lr=0.5"])
    expected = flatten(base()) | {"train.steps": 5, "optim.lr": 0.5, "model.mlp": 4 * 192}
    assert flatten(c) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 100_000, "not a config: maximum recursion depth exceeded"),
        ('{"a":' * 900 + "1" + "}" * 900, "is not a field"),
        ('{"a.b": 1}', "config.a.b is not a field"),
        ('{"optim": []}', "config.optim is not a field"),
        ('{"eval": {"what": [{}]}}', "config.eval.what=[{}]: {} should be of type str"),
        ('{"optim": {"lr": NaN}}', "config.optim.lr=nan must be finite"),
        ('{"optim": {"lr": 1%s}}' % ("0" * 5000), "not a config: Exceeds the limit"),
    ],
)
def test_a_json_file_of_nonsense_is_refused_with_its_name(tmp_path, text, sentence):
    path = tmp_path / "config.json"
    path.write_text(text)
    line = refused(path)
    assert line.startswith(f"{path}: ")
    assert sentence in line


def test_numbers_stay_what_they_are_through_a_file():
    c = base()
    c.train.steps, c.model.window, c.optim.betas = 5, (3,), (0, 0.999)
    text = configfile.to_json(c)
    again = json.loads(configfile.to_json(configfile.from_json(text)))
    assert json.dumps(again) == json.dumps(json.loads(text))


@pytest.mark.parametrize(
    "words",
    [
        ["--config.train.seed=1.5"],
        ["--config.train.seed", "1.5"],
        ["-config.train.seed=1.5"],
        ["--config.train.deterministic", "--config.train.seed=1.5"],
        ["--config.train.seed=1", "--config.train.seed=1.5"],
    ],
)
def test_an_override_of_another_type_names_field_type_and_text(words):
    line = "config.train.seed=1.5 should be of type int, a whole number: seed of initial"
    assert refused("configs/digits.py:pit", words).startswith(line)


def test_a_crop_without_a_pixel_of_the_image_is_refused():
    words = ["--config.data.augmentation.crop=pad", "--config.data.augmentation.pad=8"]
    assert "write at most 7" in refused("configs/digits.py:pit", words)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("digits.py", ["model.name=perceiver", "model.depth=1000", "perceiver.rounds=1000"]),
        ("digits.py", ["model.name=convnet", "convnet.layers=(1000, 1)"]),
        ("digits_autoencoder.py", ["autoencoder.layers=1000"]),
    ],
)
def test_layers_are_counted_together(spec, words):
    line = refused(f"configs/{spec}", [f"--config.{word}" for word in words])
    assert "layers: at most 1,000 in all" in line


def test_an_image_of_too_many_tokens_is_refused():
    words = ["--config.data.image_size=4096", "--config.model.width=4096"]
    assert "16,777,216 tokens" in refused("configs/digits.py:pit", words)


MODULE = """
from __future__ import annotations

import dataclasses
import pickle
import typing

import numpy as np

from pit_jax.config import base

from . import sizes
from .sizes import Size


@dataclasses.dataclass(frozen=True)
class Recipe:
    size: Size
    kind: typing.ClassVar[str] = "mine"


def get_config(arg=""):
    c = base()
    recipe = pickle.loads(pickle.dumps(Recipe(sizes.SMALL)))
    c.model.update(width=recipe.size.width, heads=2)
    c.data.update(image_size=8, channels=1)
    c.train.steps = 5
    return c
"""


def test_a_config_is_a_module_like_any_other(tmp_path):
    for folder, width in (("a", 32), ("b", 64)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(MODULE)
        (tmp_path / folder / "sizes.py").write_text(
            "import dataclasses\n@dataclasses.dataclass\nclass Size:\n    width: int\n"
            f"SMALL = Size({width})\n"
        )
    files = [str(tmp_path / folder / "mine.py") for folder in "aba"]
    assert [configfile.load(file).model.width for file in files] == [32, 64, 32]


def test_numbers_of_numpy_and_jax_are_numbers(tmp_path):
    import jax.numpy as jnp
    import numpy as np

    c = base()
    c.model.update(width=np.int64(64), heads=np.arange(3)[2], drop_path=np.float32(0.1))
    c.data.update(name=np.str_("digits"), image_size=jnp.asarray(8), channels=np.uint8(1))
    c.data.mean, c.optim.betas = np.array([0.5]), [jnp.float32(0.9), np.float64(0.95)]
    c.optim.lr, c.train.deterministic = np.float16(0.5), np.bool_(True)
    c.train.update({"steps": np.int32(5)})
    plain = {"model.width": 64, "model.heads": 2, "model.drop_path": 0.1, "data.name": "digits"}
    plain |= {"data.image_size": 8, "data.channels": 1, "data.mean": (0.5,), "optim.lr": 0.5}
    plain |= {"optim.betas": (0.9, 0.95), "train.deterministic": True, "train.steps": 5}
    found = flatten(c)
    assert {name: found[name] for name in plain} == plain
    kinds = [type(found[name]) for name in plain]
    assert kinds == [type(value) for value in plain.values()]
    assert [type(x) for x in found["optim.betas"]] == [float, float]
    assert json.loads(configfile.to_json(c))["model"]["width"] == 64
