"""The Perceiver: its arithmetic, what it does not know about images, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from pit_jax import validation
from pit_jax.errors import ConfigError
from pit_jax.models.perceiver import Perceiver
from pit_jax.parallel import rules
from pit_jax.perf import flops
from pit_jax.tasks import build

from ..short_runs import change, losses, losses_by_dtype

SMALL = {"num_classes": 5, "latents": 3, "width": 8, "depth": 1, "heads": 2, "mlp": 12}


def images() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, 4, 4, 3))


def random_params(model, images: jax.Array) -> dict:
    """Nothing in them is zero or one, so that everything matters."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: (0.4 * rng.normal(size=x.shape)).astype(np.float32), shapes)


def reference(params: dict, images: np.ndarray, rounds: int) -> np.ndarray:
    """The logits in float64, by the paper's description."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    def norm(x, p):
        normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return normed * p["scale"] + p["bias"]

    def attend(q, k, v):
        size = q.shape[-1] // SMALL["heads"]
        heads = []
        for head in range(SMALL["heads"]):
            part = slice(head * size, (head + 1) * size)
            scores = q[..., part] @ k[..., part].swapaxes(1, 2) / np.sqrt(size)
            heads.append(special.softmax(scores, axis=-1) @ v[..., part])
        return np.concatenate(heads, -1)

    def mlp(x, p):
        y = dense(norm(x, p["norm2"]), p["up"])
        return x + dense(y * special.ndtr(y), p["down"])

    tokens = np.asarray(images, np.float64).reshape(len(images), 16, 3)
    tokens = dense(tokens, params["embed"]["patch"]) + params["embed"]["position"]
    z = np.broadcast_to(params["latents"], (len(images), *params["latents"].shape))
    for number in range(rounds):
        name = "again" if number else "first"
        p, source = params[name], params[f"{name}_pixels"]
        y = norm(tokens, source["norm"])
        q = dense(norm(z, p["norm1"]), p["query"])
        z = mlp(
            z + dense(attend(q, dense(y, source["key"]), dense(y, source["value"])), p["out"]), p
        )
        p = p["trunk"]["last"]
        y = norm(z, p["norm1"])
        z = z + dense(attend(*(dense(y, p[name]) for name in ("query", "key", "value"))), p["out"])
        z = mlp(z, p)
    return dense(norm(z, params["norm"]).mean(1), params["head"])


@pytest.mark.parametrize("rounds", [1, 3])
def test_it_computes_what_float64_does(rounds):
    model = Perceiver(**SMALL, rounds=rounds)
    params = random_params(model, images())
    assert ("again" in params) == (rounds > 1)
    found = jax.jit(model.apply)({"params": params}, images())
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, reference(params, images(), rounds), rtol=1e-4, atol=1e-5)


def test_it_does_not_know_where_pixels_lie():
    """Permuting pixels together with their positions changes nothing, up to rounding."""
    model = Perceiver(**SMALL, rounds=2)
    x = images()
    params = random_params(model, x)
    apply = jax.jit(model.apply)
    before = apply({"params": params}, x)
    order = np.random.default_rng(0).permutation(16)
    shuffled = x.reshape(2, 16, 3)[:, order].reshape(x.shape)
    embed = params["embed"] | {"position": params["embed"]["position"][order]}
    moved = apply({"params": params | {"embed": embed}}, shuffled)
    np.testing.assert_allclose(moved, before, rtol=1e-5, atol=1e-5)
    assert np.abs(apply({"params": params}, shuffled) - before).max() > 1e-2


@pytest.fixture
def small(tiny):
    tiny.model.update(name="perceiver", depth=1)
    tiny.perceiver.latents = 7
    tiny.train.batch_size = 8
    return tiny


def test_its_cost_grows_linearly_with_the_pixels(small):
    def forward(side: int) -> float:
        small.data.image_size = side
        c = validation.resolve(small)
        return flops.perceiver(c.model, c.data, c.perceiver).computed

    fixed, per_pixel = np.linalg.solve([[1, 64], [1, 256]], [forward(8), forward(16)])
    assert forward(64) == pytest.approx(fixed + 64**2 * per_pixel)
    latents, width = 7, 16
    reading = 2 * 4 * latents * width  # scores and weighted sum, two rounds
    assert per_pixel == 2 * width + 2 * 4 * width**2 + reading  # embedding, keys and values twice


def test_the_compiler_counts_the_same(small):
    """Two rounds of one layer are a program without a loop that runs twice."""
    small.model.update(width=128, heads=2, attention="xla")
    task = build(validation.resolve(small))
    params = jax.eval_shape(task.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    program = jax.jit(task.represent).lower(params, image).compile()
    assert program.cost_analysis()["flops"] == pytest.approx(task.flops().computed, rel=0.06)


def test_norms_biases_positions_and_latents_are_kept_from_weight_decay(small):
    params = jax.eval_shape(build(validation.resolve(small)).init, jax.random.key(0))
    decayed = set()
    rules.map_with_path(
        lambda path, _: rules.matches(path, rules.NO_DECAY_RULES) or decayed.add(path), params
    )
    assert decayed
    assert all(path.endswith("/kernel") for path in decayed)
    # and the optimiser's copies of the latents are split like themselves
    sizes = {"data": 1, "fsdp": 2, "seq": 1, "model": 1}
    for path in ("latents", "0/mu/latents"):
        assert tuple(rules.partition(path, (7, 16), sizes)) == (None, "fsdp")


def batch(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (8, 8, 8, 1), dtype=np.uint8),
        "label": rng.integers(0, 10, 8).astype(np.int32),
    }


def test_a_mesh_gives_the_values_of_one_device(small, one_device):
    """Pixels and latents split over seq, heads over model; 7 latents do not divide."""
    alone = losses(small, {}, one_device, batch)
    small.model.attention = "blocked"  # which moves tokens itself
    assert alone[0] != alone[1]
    shared = losses(small, {"seq": 2, "model": 2}, jax.devices()[:4], batch)
    np.testing.assert_allclose(shared, alone, rtol=1e-4)


def test_in_bfloat16_the_loss_stays_close_and_is_float32(small):
    found = losses_by_dtype(
        small, lambda task: random_params(task.model, jnp.zeros((1, 8, 8, 1))), batch
    )
    assert [loss.dtype for loss in found] == [jnp.float32, jnp.float32]
    wide, narrow = (float(loss) for loss in found)
    assert narrow == pytest.approx(wide, rel=0.03)
    assert narrow != wide


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"perceiver.latents": 0}, r"config\.perceiver\.latents=0 must be at least 1"),
        ({"perceiver.rounds": 0}, r"config\.perceiver\.rounds=0 must be at least 1"),
        ({"model.pool": "mean"}, r"model\.pool='mean' has no place in 'perceiver': leave it at 'c"),
        ({"model.heads": 3}, r"model\.heads=3 does not divide config\.model\.width=16"),
        ({"model.patch": 3}, r"model\.patch=3 does not divide config\.data\.image_size=8"),
        ({"optim.layer_decay": 0.5}, r"optim\.layer_decay=0\.5 has no place in 'perceiver'"),
        ({"model.window": (2.0,)}, r"model\.window=\(2\.0,\) has no place in 'perceiver'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_one_line(small, fields, sentence):
    change(small, fields)
    with pytest.raises(ConfigError, match=sentence) as refusal:
        validation.resolve(small)
    assert "\n" not in str(refusal.value)
