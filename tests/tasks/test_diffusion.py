"""Diffusion as a task: what enters, what is random, losses, samples, and what is refused."""

import math
import re

import jax
import numpy as np
import pytest

from pit_jax import configfile, step, tasks, validation
from pit_jax.data import latent_writer, latents, sources
from pit_jax.diffusion import samplers
from pit_jax.errors import ConfigError
from pit_jax.lengths import Clock
from pit_jax.models.autoencoder import AutoencoderKL
from pit_jax.models.normalisation import Normalisation
from pit_jax.parallel import mesh as meshes
from pit_jax.perf import flops
from pit_jax.weights import autoencoder, autoencoder_names, tensors

SMALL = ("model.width=16", "model.depth=2", "model.heads=2", "sample.steps=3")


def settings(*changes: str, spec: str = "configs/digits_diffusion.py:dit/2"):
    return configfile.load(spec, [f"--config.{change}" for change in (*SMALL, *changes)])


@pytest.fixture(scope="module")
def digits():
    data = settings().data
    source = sources.load(data, "test")
    images, labels = zip(*(source[i] for i in range(16)), strict=True)
    index = np.arange(16, dtype=np.int32)
    return {"image": np.stack(images), "label": np.array(labels, np.int32), "index": index}


@pytest.fixture(scope="module")
def task():
    return tasks.build(settings())


@pytest.fixture(scope="module")
def params(task):
    """Random throughout: much of a DiT starts as zeros."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)


def labels_and_indices(count: int) -> dict:
    index = np.arange(count, dtype=np.int32)
    return {"label": index % 10, "index": index}


def test_what_a_training_example_draws_is_its_own(task, digits):
    augment = jax.jit(task.augment)
    whole = augment(digits, jax.random.key(3))
    part = augment(jax.tree.map(lambda x: x[:4], digits), jax.random.key(3))
    for name in ("image", "noise", "time", "label"):
        np.testing.assert_array_equal(part[name], whole[name][:4])
    assert len(np.unique(whole["time"])) > 10
    assert np.ptp(np.asarray(whole["noise"]), axis=0).min() > 0
    assert np.abs(np.asarray(whole["image"])).max() == 1  # black is −1, white 1


def test_labels_are_dropped_at_the_rate(digits):
    task = tasks.build(settings("diffusion.label_drop=0.5"))
    many = jax.tree.map(lambda x: np.tile(x, (64, *[1] * (x.ndim - 1))), digits)
    label = np.asarray(jax.jit(task.augment)(many, jax.random.key(0))["label"])
    dropped = label == 10
    assert abs(dropped.mean() - 0.5) < 4 * (0.25 / len(label)) ** 0.5
    np.testing.assert_array_equal(label[~dropped], many["label"][~dropped])


def test_the_loss_is_that_of_the_definition(task, params, digits):
    """Against float64: noise a digit, ask the network, square the error."""
    batch = jax.jit(task.augment)(digits, jax.random.key(5))
    said = np.float64(jax.jit(task.outputs)(params, batch)[0])
    alphas = task.process.schedule.alphas_cumprod[np.asarray(batch["time"])][:, None, None, None]
    x_t = np.sqrt(alphas) * np.float64(batch["image"]) + np.sqrt(1 - alphas) * batch["noise"]
    arguments = np.float32(x_t), np.float32(batch["time"]), batch["label"]
    expected = jax.jit(task.model.apply)({"params": params}, *arguments)
    np.testing.assert_allclose(said, expected, atol=2e-4)
    mse = np.square(said[..., :1] - np.float64(batch["noise"])).mean()
    loss, parts = jax.jit(task.loss)(params, batch, jax.random.key(0))
    assert float(parts["mse"].value) == pytest.approx(mse, rel=1e-4)
    assert float(loss) == pytest.approx(float(parts["mse"].value + parts["vlb"].value), rel=1e-6)


def test_evaluation_counts_real_rows_once_and_always_alike(task, params, digits):
    evaluate = jax.jit(task.evaluate)
    whole = evaluate(params, digits | {"mask": np.ones(16, np.float32)})
    assert float(whole["examples"]) == 16
    order = np.r_[3:16, 0:3]
    masks = (np.arange(16) < 8).astype(np.float32), (np.arange(16) >= 8).astype(np.float32)
    shuffled = jax.tree.map(lambda x: x[order], digits)
    shuffled["image"] = shuffled["image"].copy()
    parts = [evaluate(params, shuffled | {"mask": mask}) for mask in masks]
    for name in ("loss", "mse", "vlb"):
        assert float(sum(p[name] for p in parts)) == pytest.approx(float(whole[name]), rel=1e-5)


def test_equal_pictures_are_evaluated_with_noise_of_their_own(task, digits):
    """1,797 digits are 1,792 pictures. Of a picture of no data set its pixels decide."""
    twice = {name: x[[3, 3]] for name, x in digits.items()}
    one, other = task.keys(twice | {"index": np.arange(2)})
    assert one != other
    mixed = task.keys({name: x[[5, 3, 3]] for name, x in digits.items()})
    assert mixed[1] == mixed[2] == task.keys(digits)[3]  # the same in any batch
    assert len({tuple(jax.random.key_data(key).tolist()) for key in task.keys(digits)}) == 16
    del twice["index"]
    one, other = task.keys(twice)
    old = tasks.build(settings("data.keyed_by=pixels"))
    assert one == other == old.keys(twice | {"index": np.arange(2)})[1]


def test_a_sample_depends_on_seed_index_and_label_alone(task, params):
    generate = jax.jit(task.generate)
    whole = np.asarray(generate(params, labels_and_indices(8), np.uint32(7)))
    assert whole.shape == (8, 8, 8, 1)
    part = jax.tree.map(lambda x: np.tile(x[5:6], 8), labels_and_indices(8))
    np.testing.assert_allclose(
        np.asarray(generate(params, part, np.uint32(7)))[0], whole[5], atol=1e-5
    )
    assert np.abs(whole[0] - whole[1]).max() > 0.1
    other = np.asarray(generate(params, labels_and_indices(8), np.uint32(8)))
    assert np.abs(whole - other).max() > 0.1
    relabelled = labels_and_indices(8) | {"label": np.full(8, 10, np.int32)}
    assert np.abs(whole - np.asarray(generate(params, relabelled, np.uint32(7)))).max() > 1e-3


def test_samples_are_made_in_the_dtype_that_is_asked_for(params):
    """Float32 whatever the model trains in, and not in a TPU's three digits of it."""
    made = {}
    for of_model, of_samples in [
        ("float32", "model"),
        ("bfloat16", "float32"),
        ("bfloat16", "model"),
    ]:
        task = tasks.build(settings(f"model.dtype={of_model}", f"sample.dtype={of_samples}"))
        generate = jax.jit(task.generate)
        made[of_model, of_samples] = np.asarray(
            generate(params, labels_and_indices(4), np.uint32(0))
        )
    exact, asked, rough = made.values()
    np.testing.assert_allclose(asked, exact, atol=1e-5)
    assert np.abs(rough - exact).max() > 1e-3
    task = tasks.build(settings("model.dtype=bfloat16", "sample.dtype=float32"))
    text = str(jax.make_jaxpr(task.generate)(params, labels_and_indices(4), np.uint32(0)))
    assert "bf16" not in text
    assert text.count("dot_general[") == text.count("precision=(Precision.HIGHEST")


def test_leading_steps_are_what_public_dit_calls_ddim50(monkeypatch):
    asked = []
    monkeypatch.setattr(samplers, "sample", lambda *words, **_: asked.append(words[5]) or words[2])
    for spacing in ("leading", "linspace"):
        task = tasks.build(settings(f"sample.spacing={spacing}", "sample.steps=50"))
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        jax.eval_shape(task.generate, shapes, labels_and_indices(8), np.uint32(0))
    assert asked == ["ddim50", 50]


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 2, "seq": 2}])
def test_samples_on_a_mesh_are_within_a_grey_level(task, params, axes):
    alone = task.levels(jax.jit(task.generate)(params, labels_and_indices(8), np.uint32(0)))
    c = settings()
    c.mesh.update(axes)
    mesh = meshes.make_mesh(c.mesh)
    steps = step.build(task, c, mesh, Clock(8, 100, 10))
    with jax.set_mesh(mesh):
        batch = jax.device_put(labels_and_indices(8), steps.batch_sharding)
        held = jax.device_put(params, jax.tree.map(lambda x: x.sharding, steps.shapes.params))
        found = task.levels(steps.read(task.generate)(held, batch, np.uint32(0)))
    assert np.abs(np.asarray(found) - np.asarray(alone)).max() < 1


def test_guidance_is_twice_the_network_and_not_more():
    """FLOPs as the compiler counts them: of one pass of the loop, which holds the network."""

    def cost(*changes: str) -> float:
        task = tasks.build(settings(*changes))
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        lowered = jax.jit(task.generate).lower(shapes, labels_and_indices(8), np.uint32(0))
        return lowered.compile().cost_analysis()["flops"]

    unguided = cost("sample.guidance=1.0")
    assert 1.5 < cost("sample.guidance=2.0") / unguided < 2.05
    assert cost("sample.guidance=1.0", "sample.steps=50") == pytest.approx(unguided, rel=0.01)


@pytest.mark.parametrize(
    "changes",
    [
        ("diffusion.predict=v", "diffusion.learn_sigma=False", "sample.sampler=dpm++"),
        (
            *("diffusion.family=flow", "diffusion.predict=x0", "sample.sampler=heun"),
            *("diffusion.conditional=False", "sample.guidance=1.0"),
        ),
    ],
)
def test_every_kind_trains_and_samples(changes, digits):
    c = settings(*changes, "train.batch_size=16", "optim.lr=3e-3", "optim.warmup=0 steps")
    task = tasks.build(c)
    mesh = meshes.make_mesh(c.mesh, jax.devices()[:1])
    steps = step.build(task, c, mesh, Clock(16, 16, 1000))
    with jax.set_mesh(mesh):
        state = steps.init(jax.random.key(0))
        evaluated = digits | {"mask": np.ones(16, np.float32)}
        before = steps.evaluate(state.params, evaluated)["loss"]
        for _ in range(40):
            state, metrics = steps.train(state, digits)
        after = steps.evaluate(state.params, evaluated)["loss"]
        samples = steps.read(task.generate)(state.params, labels_and_indices(16), np.uint32(0))
    assert np.isfinite(metrics["grad_norm"])
    assert float(after) < 0.9 * float(before)
    assert np.isfinite(samples).all()
    assert ("label" in state.params) == c.diffusion.conditional


# ---- latents -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """40 made-up latents of 4 × 4 × 2, the flipped ones far from the others."""
    directory = tmp_path_factory.mktemp("latents")
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(40, 1, 4, 4, 2)) + np.array([0, 50])[None, :, None, None, None]
    stored = np.stack([mean, np.full_like(mean, 0.25)], axis=2).astype(np.float16)
    manifest = latents.Manifest(
        image_set="made up",
        image_size=32,
        num_classes=10,
        shape=(4, 4, 2),
        flips=2,
        autoencoder="none",
        autoencoder_sha256="0" * 64,
        normalisation=Normalisation(1.0, 0.5),
    )
    for split in ("train", "test"):
        writer = latent_writer.Writer(directory, manifest, split, 40, 1)
        for shard in writer.missing():
            writer.write(shard, ((stored[i], i % 10) for i in writer.span(shard)))
        writer.finish()
    return directory, stored


def on_latents(store, *changes: str):
    words = ("data.name=latents", f"data.dir={store}", "data.image_size=4", "data.channels=2")
    words += ("sample.clip=False", "eval.what=('loss',)")
    return settings(*words, *changes)


def test_latents_are_drawn_from_their_posterior(store):
    directory, stored = store
    batch = {"image": stored[:16], "label": np.arange(16, dtype=np.int32) % 10}
    c = on_latents(directory, "data.augmentation.flip=0.5")
    augment = jax.jit(tasks.build(c).augment)
    drawn = np.stack([augment(batch, jax.random.key(i))["image"] for i in range(200)])
    drawn = drawn / 0.5 + 1.0  # what was normalised
    flipped = drawn.mean(axis=(2, 3, 4)) > 25
    assert abs(flipped.mean() - 0.5) < 4 * (0.25 / flipped.size) ** 0.5
    for kind in (0, 1):
        error = np.where(
            (flipped == kind)[..., None, None, None], drawn - stored[:16, kind, 0], np.nan
        )
        assert np.nanstd(error) == pytest.approx(0.25, rel=0.02)
        assert abs(np.nanmean(error)) < 0.01
    plain = jax.jit(tasks.build(on_latents(directory)).augment)(batch, jax.random.key(0))
    assert np.asarray(plain["image"]).mean() < 5


def test_training_on_a_store_runs_and_evaluates(store, tmp_path):
    from pit_jax.train import train

    words = ("train.steps=4", "train.batch_size=8", "eval.batch_size=8", "eval.what=('loss',)")
    c = on_latents(store[0], *words, "checkpoint.every=4 steps", "eval.every=4 steps")
    result = train(c, tmp_path / "run", devices=jax.devices()[:2])
    assert np.isfinite(result.metrics["eval/loss"])
    assert result.metrics["eval/examples"] == 40


def test_latents_of_another_shape_are_refused(store):
    c = on_latents(store[0])
    c.data.image_size = 8
    with pytest.raises(ConfigError, match=r"is of 4 × 4 × 2 latents, but config.data.image_size=8"):
        sources.load(c.data, "train")


# ---- what preflight compiles -----------------------------------------------------------


def programs(c):
    mesh = meshes.make_mesh(c.mesh)
    task = tasks.build(c)
    with jax.set_mesh(mesh):
        return task, mesh, task.steps(step.build(task, c, mesh, Clock(32, 1, 1)))


def test_preflight_compiles_the_batch_that_is_sampled():
    made = settings("sample.batch_size=0", "eval.batch_size=16")
    _, _, found = programs(made)
    assert found["sample"].arguments[1]["label"].shape == (16,)
    assert validation.sample_batch(made) == 16
    assert set(found) == {"train", "eval", "sample"}  # pixels need no decoder


@pytest.mark.parametrize("named", [True, False])
def test_preflight_compiles_the_decoding_of_latents(store, tmp_path, named):
    """What the generator calls, with the autoencoder that is named or, where its file is not
    here, with the sizes of the config."""
    path = tmp_path / "small.safetensors"
    if named:
        model = AutoencoderKL(
            channels=(8, 8), layers=1, latent=2, groups=2, image_channels=1, attends=False
        )
        shapes = autoencoder_names.shapes(model).items()
        params = tensors.unflatten({k: np.ones(shape, np.float32) for k, shape in shapes})
        autoencoder.write(path, model, params, Normalisation(), "small")
    else:
        model = AutoencoderKL(channels=(4, 8), layers=1, latent=2, groups=4, attends=False)
    sizes = ("channels=(4, 8)", "layers=1", "groups=4", "attends=False", f"weights={path}")
    words = (f"autoencoder.{size}" for size in sizes)
    c = on_latents("" if named else store[0], *words, "sample.batch_size=96")
    _, mesh, found = programs(c)
    decode = found["decode"]
    assert decode.arguments[1].shape == (64, 4, 4, 2)  # no more than 8 a device at once
    with jax.set_mesh(mesh):
        decode.function.lower(*decode.arguments).compile()
    out = jax.eval_shape(decode.function, *decode.arguments)
    assert out.shape == (64, 8, 8, 1 if named else 3)
    counted = sum(math.prod(x.shape) for x in jax.tree.leaves(decode.params))
    assert counted == sum(map(math.prod, autoencoder_names.shapes(model).values()))
    assert decode.model_flops == 64 * flops.decoder(model, 8, model.image_channels) > 0


# ---- refusals ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("model.name=vit", "needs config.model.name='dit'"),
        ("sample.sampler=heun", "is not one of the gaussian family's: ddpm, ddim, dpm++"),
        ("diffusion.family=flow", "config.sample.sampler='ddpm' is not one of the flow family's"),
        ("sample.spacing=trailing", "config.sample.spacing='trailing' is not one of"),
        ("sample.eta=0.5", "is for sampler 'ddim', not 'ddpm'"),
        ("sample.steps=2000", "is more than config.diffusion.timesteps=1000"),
        ("diffusion.label_drop=0.0", "config.diffusion.conditional and .label_drop"),
        ("sample.guidance_interval=(0.5,0.1)", "two numbers in [0, 1], the smaller first"),
        ("sample.guidance_channels=3", "is more than config.data.channels=1"),
        ("data.mean=(0.1,)", "diffusion works on pixels in [-1, 1]"),
        ("data.augmentation.mixup=0.5", "config.data.augmentation.mixup has no place"),
        ("data.eval_crop=0.9", "eval_crop=0.9 has no place in task 'diffusion'"),
        ("model.drop_path=0.1", "config.model.drop_path is not offered by 'dit'"),
        ("eval.what=('generation',)", "config.eval.features no network to compare"),
        ("data.channels=4", "config.data.channels=4 is neither 1 nor 3"),
    ],
)
def test_what_does_not_fit_is_refused(change, line):
    with pytest.raises(ConfigError, match=re.escape(line)):
        settings(change)


def test_latents_are_for_diffusion_only():
    words = ["--config.data.name=latents"]
    with pytest.raises(ConfigError, match="is for task 'diffusion', not 'classification'"):
        configfile.load("configs/digits.py:pit", words)


def test_flow_knows_no_epsilon():
    words = ("diffusion.family=flow", "sample.sampler=euler")
    with pytest.raises(ConfigError, match="write 'v' or 'x0'"):
        settings(*words)


def test_a_stride_that_is_no_integer_is_refused_with_those_that_are():
    words = ("sample.spacing=leading", "sample.steps=300")
    with pytest.raises(ConfigError, match=r"no integer stride keeps 300 of .*steps=334 or 250"):
        settings(*words)
    assert settings("sample.spacing=leading", "sample.steps=250").sample.spacing == "leading"
    flow = ("diffusion.family=flow", "diffusion.predict=v", "sample.sampler=euler")
    with pytest.raises(ConfigError, match="is about timesteps, and a flow has none"):
        settings(*flow, "sample.spacing=leading")
