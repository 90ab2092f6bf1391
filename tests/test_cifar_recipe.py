"""CIFAR-100's recipe from prepared files to a checkpoint, on a small set of the same shape.

The config is the one that trains the real set; what is overridden only makes it smaller, or
switches on what other recipes have.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from pit_jax import checkpoint, configfile, rundir
from pit_jax.config import FIELDS, flatten
from pit_jax.data import pipeline, sources
from pit_jax.models import vit
from pit_jax.train import train
from pit_jax.weights import tensors

from . import prepared_sets
from .saved_runs import stopped

TRAINING, HELD_OUT, BATCH = 960, 500, 16
STEPS = 2 * TRAINING // BATCH
# Of a batch that small the published rate would throw the model about.
SMALLER = [
    "model.width=96",
    "model.depth=2",
    "model.heads=2",
    f"train.batch_size={BATCH}",
    "train.epochs=2",
    "optim.lr=1e-3",
    "optim.warmup=10%",
    "eval.every=1 epochs",
    "checkpoint.every=25%",
    "train.log_every=1",
    "train.tensorboard=False",
]
# Every change that there is beside the recipe's own crops, flips, grayscale and jitter, some of
# them seldom enough that a few steps still learn.
EVERYTHING = [
    "data.augmentation.jitter_prob=0.5",
    "data.augmentation.three_augment=True",
    "data.augmentation.blur=0.1",
    "data.augmentation.randaugment=9.0",
    "data.augmentation.randaugment_layers=1",
    "data.augmentation.erasing=0.25",
    "data.augmentation.mixup=0.8",
    "data.augmentation.cutmix=1.0",
    "data.augmentation.mixup_prob=0.3",
    "data.augmentation.repeats=2",
    "train.label_smoothing=0.1",
    "optim.ema=0.97",
]


@pytest.fixture(scope="module")
def held_out() -> tuple[np.ndarray, np.ndarray]:
    return prepared_sets.examples(HELD_OUT, seed=1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, held_out) -> str:
    directory = tmp_path_factory.mktemp("prepared")
    training = prepared_sets.examples(TRAINING, seed=0)
    prepared_sets.write(directory, train=training, test=held_out)
    return str(directory)


def load(prepared: str, model: str, *words: str):
    words = (f"data.dir={prepared}", *SMALLER, *words)
    return configfile.load(f"configs/cifar100.py:{model}", [f"--config.{word}" for word in words])


def logged(path) -> list[dict[str, float]]:
    """The rows of a run, without what depends on the clock and without notes of a resume."""
    return [
        {name: x for name, x in row.items() if name != "time" and not name.startswith("perf/")}
        for row in rundir.RunDir(path).rows()
        if "event" not in row
    ]


def assert_learned(path) -> None:
    """Finite losses, a held-out loss that falls to below a guess's, and more hits than chance has
    in one run of ten thousand, at the first place and among the first five."""
    rows = logged(path)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(np.isfinite(row["train/loss"]) for row in rows)
    first, last = (row for row in rows if "eval/loss" in row)
    assert (first["step"], last["step"], last["eval/examples"]) == (STEPS // 2, STEPS, HELD_OUT)
    assert last["eval/loss"] < first["eval/loss"]
    assert last["eval/loss"] < np.log(100) - 0.1
    for name, chance in (("eval/accuracy", 0.01), ("eval/accuracy_top5", 0.05)):
        assert stats.binom.sf(last[name] * HELD_OUT - 1, HELD_OUT, chance) < 1e-4, last


def test_the_set_is_read_as_the_real_one_and_held_in_memory(prepared, held_out):
    config = load(prepared, "pit-t")
    source = sources.load(config.data, "test")
    assert (source.native_shape, source.num_classes) == ((32, 32), 100)
    reader = pipeline.Reader(source, config.data, train=True)
    assert reader.held
    assert not pipeline.crops_on_host(source, config.data)
    found = {(x.tobytes(), int(y)) for x, y in zip(reader.images, reader.labels, strict=True)}
    assert found == {(x.tobytes(), int(y)) for x, y in zip(*held_out, strict=True)}
    assert len(found) == len(reader) == HELD_OUT


def test_the_recipe_as_published_learns(prepared, tmp_path, one_device):
    config = load(prepared, "vit-t/8")
    train(config, tmp_path, devices=one_device)
    assert_learned(tmp_path)
    losses = [row["train/loss"] for row in logged(tmp_path)]
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 0.1


@pytest.fixture(scope="module")
def everything(prepared):
    return load(prepared, "vit-t/8", *EVERYTHING)


@pytest.fixture(scope="module")
def trained(everything, tmp_path_factory, one_device):
    path = tmp_path_factory.mktemp("runs") / "everything"
    train(everything, path, devices=one_device)
    return path


def test_it_learns_with_everything_on(everything, trained):
    flat = flatten(everything)
    for name, field in FIELDS.items():
        off = field.default in (0.0, False, "none", (0.0, 0.0, 0.0, 0.0)) or "repeats" in name
        if name.startswith("data.augmentation.") and off:
            assert flat[name] != field.default, f"{name} is off"
    assert_learned(trained)


def test_the_moving_average_is_what_is_evaluated(everything, trained, held_out):
    saved = checkpoint.Checkpoints(rundir.RunDir(trained)).read(STEPS)
    images, labels = held_out
    pixels = (images / 255.0 - everything.data.mean) / everything.data.std
    model = vit.build(everything.model, 100)
    apply = jax.jit(lambda params: model.apply({"params": params}, jnp.asarray(pixels, "float32")))

    def measured(params) -> list[float]:
        logits = np.asarray(apply(params), np.float64)
        likely = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        hits = (logits.argmax(-1) == labels).mean()
        return [float(hits), float(-likely[np.arange(len(labels)), labels].mean())]

    last = logged(trained)[-1]
    expected = [last["eval/accuracy"], last["eval/loss"]]
    np.testing.assert_allclose(measured(saved["ema"]), expected, rtol=1e-5)
    assert abs(measured(saved["params"])[1] - expected[1]) > 1e-3


def test_stopped_on_the_way_and_resumed_it_ends_with_the_same_bits(
    everything, trained, tmp_path, one_device
):
    again = stopped(trained, tmp_path / "again", STEPS * 3 // 4)
    train(everything, again.path, devices=one_device)
    assert {"event": "resume", "step": STEPS * 3 // 4} in again.rows()
    assert logged(again.path) == logged(trained)
    first, second = (
        tensors.flatten(checkpoint.Checkpoints(rundir.RunDir(path)).read(STEPS))
        for path in (trained, again.path)
    )
    assert set(first) == set(second)
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value, err_msg=name)


@pytest.mark.slow
def test_a_pit_t_learns(prepared, tmp_path, one_device):
    """Every pixel a token: 1025 of them."""
    train(load(prepared, "pit-t"), tmp_path, devices=one_device)
    assert_learned(tmp_path)
