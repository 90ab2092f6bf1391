"""Values of fields: what each may be, and the one line that refuses the rest."""

import math

import numpy as np
import pytest

from pit_jax import evaluate, tasks
from pit_jax.config import EVALUATIONS, FIELDS, TASKS
from pit_jax.configfile import load, override, read
from pit_jax.errors import ConfigError
from pit_jax.models.mask import layer_radii
from pit_jax.validation import resolve
from pit_jax.values import check_text, check_value

NUMBERS = [
    name
    for name, field in FIELDS.items()
    if (field.element if field.type is tuple else field.type) in (int, float)
]


class Unprintable:
    def __repr__(self):
        raise RuntimeError

    def __eq__(self, other):
        raise RuntimeError


# What no field takes.
NASTY = [math.nan, math.inf, -math.inf, 1e300, 10**20, -(10**20), 10**400, -(10**400), 10**5000]
NASTY += [1j, b"x", object(), object, {}, {1: 2}, set(), ..., Unprintable(), "a\nb", "a\0b"]


def refused(name: str, value) -> str:
    with pytest.raises(ConfigError) as caught:
        check_value(name, value)
    line = str(caught.value)
    assert line.startswith(f"config.{name}=")
    assert "\n" not in line
    assert len(line) < 700
    return line


def test_every_field_takes_its_default_and_refuses_nonsense_in_one_line():
    for name, field in FIELDS.items():
        assert check_value(name, field.default) == field.default
        for value in NASTY:
            refused(name, value)
            refused(name, (value,))
            refused(name, [value])
        for value in (((),), (None,), tuple(range(5000))):
            refused(name, value)


def test_no_number_is_a_boolean_or_without_limit():
    for name in NUMBERS:
        field = FIELDS[name]
        low, high = field.limits
        assert -(2**40) < low < high <= 10**12
        for value in (True, low - 1, high + 1):
            refused(name, (value,) if field.type is tuple else value)
        for value in () if field.choices else (low, high):
            value = (value,) if field.type is tuple else value
            assert check_value(name, value) == value


def test_a_number_of_numpy_becomes_python_s_own():
    assert type(check_value("optim.lr", np.float64(0.1))) is float
    assert [type(x) for x in check_value("data.mean", (np.float64(0.1), 1))] == [float, int]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("model.window", (1e200,), "=(1e+200,): 1e+200 must be at most 1000000000: tokens see"),
        ("data.std", (1e-300,), "1e-300 must be at least 1e-06"),
        ("convnet.layers", (1, 99999999999), "99999999999 must be at least 1 and at most 1000"),
        ("data.mean", 0.5, "=0.5 should be of type tuple of float, such as (0.5,): mean"),
        ("model.window", 3, "=3 should be of type tuple of float: tokens see"),
        ("eval.what", (1,), "=(1,): 1 should be of type str, a text: evaluations"),
        ("eval.what", ("localities",), "not one of accuracy, loss"),
        ("eval.what", ("localities",), "did you mean 'locality'?"),
        ("eval.shots", (True,), "True should be of type int, a whole number"),
        ("train.seed", "1", "='1' should be of type int, a whole number: seed of"),
        ("optim.warmup", "9e999 steps", "must be at most 1e+12"),
        ("data.dir", "a\nb", r"='a\nb' should be one line of text: where the set lies"),
    ],
)
def test_what_is_wrong_is_said(name, value, sentence):
    assert sentence in refused(name, value)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("train.seed", "1.5", "config.train.seed=1.5 should be of type int, a whole number: seed"),
        ("train.seed", "", "config.train.seed= should be of type int"),
        ("optim.lr", "fast", "config.optim.lr=fast should be of type float, a number: peak"),
        ("train.epochs", "None", "config.train.epochs=None should be of type float"),
        ("train.deterministic", "2", "=2 should be of type bool, True or False: same bits"),
        ("model.window", "(nan,)", "=(nan,): nan must be finite"),
        ("model.window", "(-inf, 1)", "=(-inf, 1): -inf must be finite"),
        ("model.window", "(1e400,)", "=(inf,): inf must be finite"),
        ("data.mean", "{1: 2}", "{1: 2} should be of type float"),
        ("eval.shots", "(nan,)", "'(nan,)' should be of type int"),
        ("model.window", "-" * 20_000 + "1", "should be of type tuple of float"),
    ],
)
def test_a_text_of_another_type_is_refused(name, text, sentence):
    with pytest.raises(ConfigError) as caught:
        check_text(name, text)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("optim.freeze", "nan"), ("optim.freeze", "('a', 'b')"), ("model.window", "3")]
    + [("train.seed", "0x10"), ("train.deterministic", "1"), ("data.dir", "(")],
)
def test_a_text_of_its_type_passes(name, text):
    check_text(name, text)


def test_evaluations_that_a_config_may_name_are_those_that_tasks_offer():
    files = ("digits", "digits_mae", "digits_diffusion", "digits_autoencoder", "scenes_depth")
    configs = [load(f"configs/{file}.py") for file in files]
    words = ["--config.task=autoregressive", "--config.model.name=igpt"]
    configs.append(resolve(override(read("configs/digits.py:pit"), words)))
    assert {c.task for c in configs} == set(TASKS)
    offered = [name for c in configs for name in evaluate.offered(tasks.build(c))]
    assert sorted(set(offered)) == sorted(EVALUATIONS)


def test_a_radius_beyond_the_image_is_none_however_large():
    assert layer_radii((1e200, 10**400, 1, -1e200), 0, 4, side=8) == (None, None, 1.0, None)
