"""Against DiT written out in float64 and against diffusers' with random weights; both ways."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.errors import ConfigError
from pit_jax.models.dit import DiT, encode_time
from pit_jax.weights import diffusers_dit, public_dit, tensors

SIDE, CHANNELS = 8, 3
SMALL = {"width": 32, "depth": 3, "heads": 4, "mlp": 128, "outputs": 6, "num_classes": 5}
CASES = [
    {"patch": 1, "position": "learned"},
    {"patch": 2, "position": "sincos2d", "outputs": 3},
    {"patch": 4, "position": "sincos2d", "depth": 1, "heads": 2},
]


LATE = (200, 500, 999)


def inputs(*times: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three noisy images, whole times (early ones unless named), and labels, the last of none."""
    x = np.random.default_rng(1).normal(size=(3, SIDE, SIDE, CHANNELS)).astype(np.float32)
    return x, np.array(times or (0, 7, 30), np.float32), np.array([0, 4, 5])


def frequencies(steps: int) -> np.ndarray:
    """(128,) float32 of the time, rounded where public DiT rounds, but each exponential right.

    The angle of a time near 1000 is a float32 known to 3e-5: whoever rounds a frequency or an
    angle elsewhere differs in the fifth figure of everything.
    """
    exponents = np.float32(-np.log(10000)) * np.arange(128, dtype=np.float32) / np.float32(steps)
    return np.exp(exponents.astype(np.float64)).astype(np.float32)


def our_weights(model: DiT, seed: int = 0) -> dict:
    """Random ones of a size at which everything matters and nothing overflows."""
    x, time, labels = map(jnp.asarray, inputs())
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, time, labels)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.2 * rng.normal(size=x.shape)).astype(np.float32), shapes)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, *inputs) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return model.apply({"params": params}, *inputs)


def assert_same(found: dict, expected: dict) -> None:
    """Bit for bit."""
    found, expected = tensors.flatten(found), tensors.flatten(expected)
    assert set(found) == set(expected)
    for path, value in found.items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def assert_equal(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 0.1  # the weights do something
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


def written_out(weights: dict, model: DiT, x, time, labels) -> np.ndarray:
    """DiT after its paper, from tensors under the public names, in float64 but for the angles.

    Returns:
      (B, H, H, outputs).
    """
    w = {name: np.asarray(tensor, np.float64) for name, tensor in weights.items()}
    count, d, p, heads = len(x), model.width, model.patch, model.heads
    side = SIDE // p

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def silu(x):
        return x / (1 + np.exp(-x))

    def modulated(x, shift, scale):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)
        return x * (1 + scale[:, None]) + shift[:, None]

    angles = np.float64(time[:, None] * frequencies(128))
    c = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    c = dense(silu(dense(c, "t_embedder.mlp.0")), "t_embedder.mlp.2")
    c = silu(c + w["y_embedder.embedding_table.weight"][labels])
    tokens = np.zeros((count, side, side, d))  # a convolution of stride p, tap by tap
    for i in range(p):
        for j in range(p):
            tokens += x[:, i::p, j::p] @ w["x_embedder.proj.weight"][:, :, i, j].T
    tokens = tokens.reshape(count, -1, d) + w["x_embedder.proj.bias"] + w["pos_embed"]
    for layer in range(model.depth):
        block = f"blocks.{layer}"
        six = np.split(dense(c, f"{block}.adaLN_modulation.1"), 6, axis=1)
        y = dense(modulated(tokens, *six[:2]), f"{block}.attn.qkv")
        q, k, v = y.reshape(count, -1, 3, heads, d // heads).transpose(2, 0, 3, 1, 4)
        scores = np.exp(q @ k.swapaxes(2, 3) / np.sqrt(d // heads))
        y = (scores / scores.sum(-1, keepdims=True)) @ v
        y = y.swapaxes(1, 2).reshape(tokens.shape)
        tokens = tokens + six[2][:, None] * dense(y, f"{block}.attn.proj")
        y = dense(modulated(tokens, *six[3:5]), f"{block}.mlp.fc1")
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        tokens = tokens + six[5][:, None] * dense(y, f"{block}.mlp.fc2")
    shift, scale = np.split(dense(c, "final_layer.adaLN_modulation.1"), 2, axis=1)
    y = dense(modulated(tokens, shift, scale), "final_layer.linear")
    y = y.reshape(count, side, side, p, p, model.outputs)
    out = np.zeros((count, SIDE, SIDE, model.outputs))
    for i in range(p):
        for j in range(p):
            out[:, i::p, j::p] = y[:, :, :, i, j]
    return out


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_computes_what_the_paper_writes(case):
    model = DiT(**SMALL | case)
    params = our_weights(model)
    weights = public_dit.to_public(params, model, SIDE)
    for given in (inputs(), inputs(*LATE)):
        expected = written_out(weights, model, *given)
        assert_equal(np.asarray(apply(model, params, *given)), expected)


@pytest.mark.parametrize("steps", [127, 128])
def test_the_frequencies_are_the_papers(steps):
    np.testing.assert_allclose(frequencies(steps), 10000.0 ** (-np.arange(128) / steps), rtol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_there_and_back_is_the_same(case):
    model = DiT(**SMALL | case)
    params = our_weights(model)
    for there, back in (
        (public_dit.to_public, public_dit.from_public),
        (diffusers_dit.to_diffusers, diffusers_dit.from_diffusers),
    ):
        found = there(params, model, SIDE)
        assert_same(back(found, model, SIDE, CHANNELS), params)
        # and what was theirs first comes back to them as it was
        assert_same(there(back(found, model, SIDE, CHANNELS), model, SIDE), found)


def test_the_public_names_and_shapes():
    """Those of the public DiT-XL/2, at this model's sizes."""
    model = DiT(**SMALL | {"depth": 1, "patch": 2, "position": "sincos2d"})
    found = public_dit.to_public(our_weights(model), model, SIDE)
    d, dense = 32, {}
    for name, shape in {
        "t_embedder.mlp.0": (d, 256),
        "t_embedder.mlp.2": (d, d),
        "blocks.0.attn.qkv": (3 * d, d),
        "blocks.0.attn.proj": (d, d),
        "blocks.0.mlp.fc1": (4 * d, d),
        "blocks.0.mlp.fc2": (d, 4 * d),
        "blocks.0.adaLN_modulation.1": (6 * d, d),
        "final_layer.linear": (2 * 2 * 6, d),
        "final_layer.adaLN_modulation.1": (2 * d, d),
        "x_embedder.proj": (d, 3, 2, 2),
    }.items():
        dense |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    rest = {"pos_embed": (1, 16, d), "y_embedder.embedding_table.weight": (6, d)}
    assert {name: tensor.shape for name, tensor in found.items()} == dense | rest


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"depth": 2}, "the weights have model.depth 3, the config has 2"),
        ({"patch": 2}, r"of shape \(32, 3, 1, 1\), the config makes it \(32, 3, 2, 2\)"),
        ({"num_classes": 7}, r"embedding_table.weight of shape \(6, 32\), .* \(8, 32\)"),
        ({"outputs": 3}, r"of shape \(6, 32\), the config makes it \(3, 32\)"),
        ({"position": "sincos2d"}, "'sincos2d' would drop them"),
        ({"position": "none"}, "has no config.model.position='none', only 'learned' or"),
        ({"norm_eps": 1e-5}, "has no config.model.norm_eps=1e-05, only 1e-06"),
        ({"num_classes": 0}, "has no unconditional model"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_with_both_values(change, sentence):
    model = DiT(**SMALL)
    params, other = our_weights(model), DiT(**SMALL | change)
    for there, back in (
        (public_dit.to_public, public_dit.from_public),
        (diffusers_dit.to_diffusers, diffusers_dit.from_diffusers),
    ):
        found = there(params, model, SIDE)
        with pytest.raises(ConfigError, match=sentence):
            back(found, other, SIDE, CHANNELS)


def test_what_is_theirs_alone_is_refused():
    model = DiT(**SMALL)
    found = diffusers_dit.to_diffusers(our_weights(model), model, SIDE)
    name = "transformer_blocks.2.norm1.emb.timestep_embedder.linear_1.bias"
    changed = found | {name: found[name] + 1}
    with pytest.raises(ConfigError, match=rf"{name} is not transformer_blocks\.0\."):
        diffusers_dit.from_diffusers(changed, model, SIDE, CHANNELS)
    with pytest.raises(ConfigError, match=r"1 tensor\(s\) too many: more"):
        diffusers_dit.from_diffusers(found | {"more": np.zeros(2)}, model, SIDE, CHANNELS)
    with pytest.raises(ConfigError, match=r"mlp=64, only 128"):
        diffusers_dit.check_expressible(model.clone(mlp=64))
    with pytest.raises(ConfigError, match=r"frequency_steps=127, only 128"):
        public_dit.check_expressible(model.clone(frequency_steps=127))
    diffusers_dit.check_expressible(model)
    with pytest.raises(ConfigError, match=r"position='learned', only 'sincos2d'"):
        diffusers_dit.check_expressible(model, plain=True)


# Against PyTorch ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs():
    """diffusers' module for a model of ours, with random weights everywhere."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

    def make(model: DiT):
        torch.manual_seed(0)
        config = diffusers_dit.config(model, SIDE, CHANNELS)
        net = diffusers.DiTTransformer2DModel(**config).eval()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        first = net.transformer_blocks[0].norm1.emb.state_dict()
        for block in net.transformer_blocks:
            block.norm1.emb.load_state_dict(first)
        return net

    return make


def run(net, x, time, labels) -> np.ndarray:
    import torch

    with torch.no_grad():
        x = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
        out = net(x, torch.from_numpy(time).long(), torch.from_numpy(labels)).sample
    return np.moveaxis(out.numpy(), 1, -1)


def state(net) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def put_frequencies(net, steps: int) -> None:
    """Ours in place of their float32 exponentials, into every block."""
    import torch

    class Rounded(torch.nn.Module):
        def forward(self, time):
            angles = time[:, None].float() * torch.from_numpy(frequencies(steps))
            return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)

    for block in net.transformer_blocks:
        block.norm1.emb.time_proj = Rounded()


@pytest.mark.parity
@pytest.mark.parametrize("outputs", [3, 6])
@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_their_weights_compute_the_same_here(theirs, patch, outputs):
    """And go back bit for bit: nothing of theirs is missing or left over."""
    fields = {"patch": patch, "outputs": outputs, "position": "sincos2d", "depth": 2}
    model = DiT(**SMALL | fields, frequency_steps=127)
    diffusers_dit.check_expressible(model, plain=True)
    net = theirs(model)
    params = diffusers_dit.from_diffusers(state(net), model, SIDE, CHANNELS)
    assert_same(diffusers_dit.to_diffusers(params, model, SIDE), state(net))
    assert_equal(np.asarray(apply(model, params, *inputs())), run(net, *inputs()))
    put_frequencies(net, 127)
    for given in (inputs(), inputs(*LATE)):
        assert_equal(np.asarray(apply(model, params, *given)), run(net, *given))


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES, ids=str)
def test_our_weights_compute_the_same_there(theirs, case):
    """With learned positions and the public frequencies put in their place."""
    model = DiT(**SMALL | case)
    params, net = our_weights(model), theirs(model)
    exported = diffusers_dit.to_diffusers(params, model, SIDE)
    diffusers_dit.put_into(net, exported, model.frequency_steps)
    late = inputs(*LATE)
    expected = run(net, *late)
    assert_equal(np.asarray(apply(model, params, *inputs())), run(net, *inputs()))
    # The frequencies do matter: left as they are there, another function is computed.
    for block in net.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 1
    assert np.abs(run(net, *late) - expected).max() > 0.1
    put_frequencies(net, model.frequency_steps)
    for given in (inputs(), late):
        assert_equal(np.asarray(apply(model, params, *given)), run(net, *given))


@pytest.mark.parity
@pytest.mark.parametrize("steps", [127, 128])
def test_their_exponential_is_all_that_differs_at_late_times(theirs, steps):
    """torch.exp in float32 misses the last bit of one or two of the 128 frequencies.

    Times 999 that is up to 6e-5 of an angle, and of the encoding; with the frequencies put in
    it is 6e-8, and the tests above hold everything to 1e-5.
    """
    import torch

    model = DiT(**SMALL, frequency_steps=steps)
    params, net = our_weights(model), theirs(model)
    diffusers_dit.put_into(net, diffusers_dit.to_diffusers(params, model, SIDE), steps)
    exponents = -math.log(10000) * torch.arange(128, dtype=torch.float32) / steps
    missed = np.abs(torch.exp(exponents).numpy() - frequencies(steps))
    assert (missed <= np.spacing(frequencies(steps))).all()
    assert (missed > 0).sum() <= 4
    time = np.array(LATE, np.float32)
    ours = np.asarray(encode_time(jnp.asarray(time), steps))
    encoder = net.transformer_blocks[0].norm1.emb.time_proj
    angles = time[:, None] * frequencies(steps)
    allowed = np.where(missed > 0, time[:, None] * missed + np.spacing(angles), 0) + 1.5e-7
    difference = np.abs(encoder(torch.from_numpy(time)).numpy() - ours)
    assert (difference < np.tile(allowed, 2)).all()
    put_frequencies(net, steps)
    encoder = net.transformer_blocks[0].norm1.emb.time_proj
    np.testing.assert_allclose(encoder(torch.from_numpy(time)).numpy(), ours, atol=1.5e-7)
