"""Depth regression: losses and metrics by float64 references, and a run from end to end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from pit_jax import cli, evaluate, rundir, step, validation
from pit_jax.data import known
from pit_jax.errors import ConfigError
from pit_jax.evals import depth as evaluation
from pit_jax.lengths import Clock
from pit_jax.parallel import mesh as meshes
from pit_jax.parallel import rules
from pit_jax.perf import flops
from pit_jax.tasks import build, depth
from pit_jax.train import train
from pit_jax.weights import exchange

KEY = jax.random.key(0)


@pytest.fixture
def small(tiny):
    """Depth of scenes of 8 × 8 pixels in patches of 2; unresolved."""
    tiny.task, tiny.eval.what = "depth", ("depth",)
    tiny.model.patch = 2
    tiny.data.update(name="scenes", image_size=8, channels=3)
    tiny.train.batch_size = 8
    return tiny


@pytest.fixture
def maps():
    """Log depths said and depths measured, (5, 6, 6), with holes; of the last nothing is known."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.5, 9.5, (5, 6, 6))
    found = np.log(truth) + rng.normal(0, 0.3, truth.shape)
    truth[rng.random(truth.shape) < 0.3] = 0
    truth[-1] = 0
    return found.astype(np.float32), truth.astype(np.float32)


def random_params(task, spread: float = 0.2):
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: (spread * rng.normal(size=x.shape)).astype(np.float32), shapes)


def batch(seed: int = 0, size: int = 8, count: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    known = rng.random((count, size, size)) < 0.7
    return {
        "image": rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
        "label": np.zeros(count, np.int32),
        "depth": (known * rng.uniform(0.5, 9, known.shape)).astype(np.float32),
    }


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_scale_invariant_loss_is_eigens(maps, share):
    """Their equation 3, over all pairs of known pixels; equation 4 is the same rearranged."""
    found, truth = maps
    losses = depth.scale_invariant(found, truth, truth > 0, share)
    for one, said, measured in zip(losses[:-1], found, truth, strict=False):
        known = measured > 0
        d = said[known].astype(np.float64) - np.log(measured[known].astype(np.float64))
        pairs = np.square(d[:, None] - d).mean() / 2  # λ = 1
        wanted = share * pairs + (1 - share) * np.square(d).mean()
        assert float(one) == pytest.approx(wanted, rel=1e-4)
    assert float(losses[-1]) == 0


def test_a_common_factor_costs_nothing_with_lambda_1(maps):
    found, truth = maps
    known = truth > 0
    for share, same in ((1.0, True), (0.5, False)):
        before, after = (
            depth.scale_invariant(x, truth, known, share)[0] for x in (found, found + np.log(2))
        )
        assert (abs(float(after - before)) < 1e-5) == same


def test_metrics_are_those_of_the_literature(maps):
    found, truth = np.exp(maps[0]), maps[1]
    sums = {n: np.asarray(x) for n, x in depth.sums(found, truth, truth > 0).items()}
    for row in range(4):
        known = truth[row] > 0
        y, x = truth[row][known].astype(np.float64), found[row][known].astype(np.float64)
        ratio = np.maximum(x / y, y / x)
        wanted = {
            "square": np.square(x - y).sum(),
            "abs_rel": (np.abs(x - y) / y).sum(),
            "log10": np.abs(np.log10(x / y)).sum(),
            "delta1": (ratio < 1.25).sum(),
            "delta2": (ratio < 1.25**2).sum(),
            "delta3": (ratio < 1.25**3).sum(),
            "pixels": known.sum(),
            "image_rmse": np.sqrt(np.square(x - y).mean()),
        }
        assert set(wanted) == set(sums)
        for name, value in wanted.items():
            assert sums[name][row] == pytest.approx(value, rel=1e-4), name
    assert all(x[-1] == 0 for x in sums.values())


@pytest.mark.parametrize("loss", ["silog", "l1", "l2"])
def test_training_loss_by_hand_and_blind_to_what_is_not_known(small, loss):
    small.depth.loss = loss
    task = build(validation.resolve(small))
    params = random_params(task)
    rows = batch()
    rows["depth"][2] = 0  # of this image nothing is known
    rows["depth"][3, 0] = 11  # farther than counts

    @jax.jit
    def both(rows):
        inside = task.augment(rows, KEY)
        value, grads = jax.value_and_grad(lambda p: task.loss(p, inside, KEY)[0])(params)
        return value, grads, task.outputs(params, inside), task.loss(params, inside, KEY)[1]

    value, grads, (found, again), logged = both(rows)
    found, truth = np.asarray(found, np.float64), rows["depth"].astype(np.float64)
    wanted, errors = [], []
    for said, measured in zip(found, truth, strict=True):
        known = (measured > 0) & (measured <= 10)
        if not known.any():
            continue
        said, measured = said[known], measured[known]
        d, error = said - np.log(measured), np.exp(said) - measured
        silog = np.square(d).mean() - 0.5 * d.mean() ** 2
        losses = {"silog": silog, "l1": np.abs(error).mean(), "l2": np.square(error).mean()}
        wanted.append(losses[loss])
        errors.append(np.square(np.clip(np.exp(said), 1e-3, 10) - measured))
    assert len(wanted) == 7
    assert float(value) == pytest.approx(np.mean(wanted), rel=1e-4)
    assert float(again) == float(logged["loss"].value) == pytest.approx(float(value), rel=1e-6)
    rmse = np.sqrt(np.concatenate(errors).mean())
    assert float(logged["rmse"].value) == pytest.approx(rmse, rel=1e-4)
    leaves = jax.tree.leaves(grads)
    assert all(np.isfinite(x).all() for x in leaves)
    assert any(np.abs(x).max() > 0 for x in leaves)
    far = both(rows | {"depth": np.where(truth > 10, 200, truth).astype(np.float32)})
    assert float(far[0]) == float(value)
    nothing = both(rows | {"depth": np.zeros_like(rows["depth"])})
    assert float(nothing[0]) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(nothing[1]))


def test_a_patchs_depths_come_from_its_token_row_by_row(small):
    """With an identity for a head, of tokens taken apart by hand."""
    task = build(validation.resolve(small))
    params = random_params(task)
    images = np.random.default_rng(1).random((2, 8, 8, 3)).astype(np.float32)
    tokens = np.asarray(jax.jit(lambda p: task.tokens(p, images, {}))(params), np.float64)
    mean, var = tokens.mean(-1, keepdims=True), tokens.var(-1, keepdims=True)
    normed = (tokens - mean) / np.sqrt(var + 1e-6) * params["norm"]["scale"]
    normed += params["norm"]["bias"]
    said = normed @ params["depth_head"]["kernel"] + params["depth_head"]["bias"]  # (2, 16, 4)
    found = np.asarray(jax.jit(lambda p: task.model.apply({"params": p}, images))(params))
    for row in range(8):
        for column in range(8):
            token, place = 4 * (row // 2) + column // 2, 2 * (row % 2) + column % 2
            np.testing.assert_allclose(found[:, row, column], said[:, token, place], atol=1e-3)
    assert found.shape == (2, 8, 8)


def test_pixel_tokens_say_the_same_wherever_they_stand(small):
    """PiT has no other locality than its positions: permute pixels and positions together and
    the depths are permuted with them."""
    small.model.patch = 1
    task = build(validation.resolve(small))
    params = random_params(task)
    images = np.random.default_rng(1).random((1, 8, 8, 3)).astype(np.float32)
    order = np.random.default_rng(2).permutation(64)
    apply = jax.jit(lambda p, x: task.model.apply({"params": p}, x))
    before = np.asarray(apply(params, images)).reshape(64)
    moved = params["embed"]["position"].copy()
    moved[1:] = moved[1:][order]
    changed = params | {"embed": params["embed"] | {"position": moved}}
    after = apply(changed, images.reshape(1, 64, 3)[:, order].reshape(1, 8, 8, 3))
    np.testing.assert_allclose(np.asarray(after).reshape(64), before[order], rtol=1e-3, atol=1e-4)
    assert not np.allclose(before[order], before, atol=1e-2)


@pytest.mark.parametrize("per_image", [False, True])
def test_permuted_pixels_are_answered_for_where_they_were(small, per_image):
    """A model that says of each pixel its own brightness says it of the image that came."""
    small.data.permutation.update(swaps=20, per_image=per_image)
    small.data.update(mean=(0.0,), std=(1.0,))
    task = build(validation.resolve(small))

    class Brightness:
        def apply(self, params, images, **how):
            return images.mean(-1)

    task.model = Brightness()
    rows = batch() | {"mask": np.ones(8, np.float32)}
    found = task.predicted({}, rows, jnp.int32(0))["predicted"]
    np.testing.assert_allclose(np.log(found), rows["image"].mean(-1) / 255, rtol=1e-4, atol=1e-5)
    assert not np.allclose(task.normalise(rows), rows["image"] / 255)


def test_a_mesh_gives_the_values_of_one_device(small, one_device):
    small.optim.lr = 1e-2

    def losses(sizes, devices):
        small.mesh.update({"data": 1, "fsdp": 1, "seq": 1, "model": 1} | sizes)
        config = validation.resolve(small)
        mesh = meshes.make_mesh(config.mesh, devices)
        steps = step.build(build(config), config, mesh, Clock(8, 512, 10))
        with jax.set_mesh(mesh):
            state, found = steps.init(KEY), []
            for seed in range(3):
                rows = jax.device_put(batch(seed), steps.batch_sharding)
                state, metrics = steps.train(state, rows)
                found.append(float(metrics["loss"]))
        return found

    alone = losses({}, one_device)
    assert alone[2] != pytest.approx(alone[0], rel=1e-2)
    spread = losses({"data": 2, "seq": 2, "model": 2}, jax.devices())
    np.testing.assert_allclose(spread, alone, rtol=1e-4)


def test_its_cost_by_hand(small):
    small.model.depth = 1
    c = validation.resolve(small)
    block = 2 * 17 * 12 * 16**2 + 4 * 17**2 * 16
    embedding, head = 2 * 16 * 12 * 16, 2 * 16 * 16 * 4
    assert flops.depth(c.model, c.data).computed == block + embedding + head


def test_norms_and_biases_are_kept_from_weight_decay_and_the_head_is_sharded(small):
    params = jax.eval_shape(build(validation.resolve(small)).init, KEY)
    decayed = set()
    rules.map_with_path(
        lambda path, _: rules.matches(path, rules.NO_DECAY_RULES) or decayed.add(path), params
    )
    assert "depth_head/kernel" in decayed
    assert all(path.endswith("/kernel") for path in decayed)
    assert rules.partition("depth_head/kernel", (16, 4), {"fsdp": 4}) == PartitionSpec("fsdp", None)


@pytest.fixture
def run(small, tmp_path, one_device, monkeypatch):
    """A short run on few scenes, with all its evaluations."""
    monkeypatch.setitem(known.KNOWN, "scenes", known.Known({"train": 32, "test": 13}, 0, 0.0))
    small.train.steps = 4
    small.eval.update(every="4 steps", pictures=3)
    small.checkpoint.every = "4 steps"
    train(validation.resolve(small), tmp_path / "run", devices=one_device)
    return tmp_path / "run"


def test_a_run_is_trained_evaluated_drawn_and_starts_others(small, run, one_device, tmp_path):
    config = rundir.RunDir(run).config()
    first = next(r for r in rundir.RunDir(run).rows() if "eval/rmse" in r)
    again = evaluate.evaluate(config, run, devices=one_device)
    names = {"loss", "rmse", "rmse_per_image", "abs_rel", "log10"}
    names |= {"delta1", "delta2", "delta3", "examples"}
    assert {n for n in again if n != "step"} == {f"eval/{n}" for n in names}
    for name in names:
        assert again[f"eval/{name}"] == pytest.approx(first[f"eval/{name}"], rel=1e-5)
    assert again["eval/examples"] == 13
    assert 0 < again["eval/delta1"] < again["eval/delta2"] < again["eval/delta3"] <= 1
    assert 0.5 < again["eval/rmse"] < 6
    assert list((run / "pictures").glob("depth-4.png"))
    with pytest.raises(ConfigError, match="'scenes' has no classes that a probe could tell"):
        evaluate.evaluate(config, run, devices=one_device, which=["knn"])
    with pytest.raises(ConfigError, match="write --format pit_jax"):
        exchange.export_weights(str(run), str(tmp_path / "out"), "huggingface")
    # An encoder that was pre-trained by another task, and one that goes on to another.
    small.update(task="mae", init_from=str(run))
    small.eval.what = ("reconstruction",)
    train(validation.resolve(small), tmp_path / "mae", devices=one_device)
    small.update(task="depth", init_from=str(tmp_path / "mae"), init_task="mae")
    small.eval.what = ("depth",)
    train(validation.resolve(small), tmp_path / "tuned", devices=one_device)
    assert "eval/rmse" in rundir.RunDir(tmp_path / "tuned").rows()[-1]


def test_evaluation_pools_pixels_of_all_batches(small, monkeypatch):
    """Sums of three batches, whose images have different numbers of known pixels."""
    from types import SimpleNamespace as Bag

    config = validation.resolve(small)
    task = build(config)
    params = random_params(task)
    batches = [batch(seed) | {"mask": np.ones(8, np.float32)} for seed in range(3)]
    batches[1]["depth"][:4] *= 0
    batches[2]["mask"][3:] = 0  # rows that only fill up
    monkeypatch.setattr(evaluation, "draw", lambda context: None)
    context = Bag(
        config=config,
        steps=Bag(evaluate=jax.jit(task.evaluate)),
        state=Bag(eval_params=params),
        held_out=Bag(evaluate=lambda: iter(batches)),
    )
    found = dict(evaluation.evaluate(context))
    read = jax.jit(lambda b: task.predicted(params, b, jnp.int32(0)))
    errors, own = [], []
    for rows in batches:
        said = np.asarray(read(rows)["predicted"], np.float64)
        for x, y, mask in zip(said, rows["depth"].astype(np.float64), rows["mask"], strict=True):
            if mask and (y > 0).any():
                errors.append(np.square(x - y)[y > 0])
                own.append(np.sqrt(errors[-1].mean()))
    assert len(own) == 8 + 4 + 3
    assert found["rmse"] == pytest.approx(np.sqrt(np.concatenate(errors).mean()), rel=1e-5)
    assert found["rmse_per_image"] == pytest.approx(np.mean(own), rel=1e-5)
    assert found["examples"] == 19
    for rows in batches:
        rows["depth"] *= 0
    with pytest.raises(ConfigError, match=r"no pixel of config\.data\.eval_split='test' has a"):
        dict(evaluation.evaluate(context))


def test_pictures_are_bright_where_it_is_near_and_coloured_where_nothing_is_known():
    truth = np.array([[[1.0, 10.0], [0.0, np.sqrt(10)]]])
    near, far = evaluation._range(truth)
    levels = evaluation._levels(truth, near, far)
    np.testing.assert_allclose(levels[0, 0], [[255] * 3, [0] * 3])
    np.testing.assert_allclose(levels[0, 1, 1], [127.5] * 3)
    assert tuple(levels[0, 1, 0]) == evaluation._UNKNOWN
    blank = np.zeros((1, 2, 2))
    assert np.isfinite(evaluation._levels(blank + 2, *evaluation._range(blank))).all()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data.name": "digits"}, r"data\.name='digits' has no depth: task 'depth' is for"),
        ({"model.name": "convnet"}, r"task 'depth' needs config\.model\.name='vit'"),
        ({"model.pool": "patches"}, r"model\.pool='patches' has no place in task 'depth'"),
        ({"depth.nearest": 20.0}, r"nearest=20\.0 must be less than config\.depth\.farthest=10"),
        ({"depth.loss": "l3"}, r"depth\.loss='l3' is not one of silog, l1, l2"),
        ({"depth.silog_lambda": 1.5}, r"silog_lambda=1\.5 must be at least 0\.0 and at most 1"),
        ({"data.augmentation.crop": "resized"}, r"crop='resized' is not offered in task 'depth'"),
        ({"data.augmentation.mixup": 0.8}, r"mixup has no place in task 'depth'"),
        ({"data.augmentation.randaugment": 9.0}, r"randaugment has no place in task 'depth'"),
        ({"train.label_smoothing": 0.1}, r"label_smoothing has no place in task 'depth'"),
        ({"data.per_class": 3}, r"'scenes' has no classes: leave config\.data\.per_class at 0"),
        ({"eval.what": ("depth", "knn")}, r"'scenes' has no classes, which config\.eval\.what"),
        ({"task": "classification"}, r"'scenes' has no classes, which task 'classification'"),
        ({"model.order": "hilbert"}, r"order='hilbert' is offered by 'vit' in task"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(small, changes, line):
    for name, value in changes.items():
        group, _, leaf = name.rpartition(".")
        node = small
        for part in group.split(".") if group else ():
            node = node[part]
        node[leaf] = value
    with pytest.raises(ConfigError, match=line) as caught:
        validation.resolve(small)
    assert "\n" not in str(caught.value)


def test_show_says_what_it_is(capsys):
    assert cli.run(["show", "--config", "configs/scenes_depth.py:pit"]) == 0
    shown = capsys.readouterr().out
    assert "PiT depth" in shown
    assert "depth_head/kernel" in shown
