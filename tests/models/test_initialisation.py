"""Fresh weights against those of the public models, whose layers torch makes again here."""

import jax
import numpy as np
import pytest
from scipy import stats

from pit_jax import config, configfile, tasks, validation
from pit_jax.models.initialisation import SCHEMES

torch = pytest.importorskip("torch")
WIDTH, MLP, PATCH = 96, 384, 4
SURE = 1e-4  # a p-value below which two samples are of two distributions


def fresh(initial: str, **model) -> dict[str, np.ndarray]:
    """The parameters of a masked autoencoder, {"trunk/last/query/kernel": ...}."""
    c = config.base()
    c.task, c.train.steps = "mae", 1
    c.model.update(width=WIDTH, depth=2, heads=2, patch=PATCH, initial=initial, **model)
    c.mae.update(decoder_width=WIDTH, decoder_depth=1, decoder_heads=2)
    return flat(tasks.build(validation.resolve(c)))


def flat(task) -> dict[str, np.ndarray]:
    found, _ = jax.tree.flatten_with_path(jax.jit(task.init)(jax.random.key(0)))
    return {"/".join(k.key for k in path): np.asarray(x) for path, x in found}


def public(initial: str) -> dict[str, "torch.nn.Module"]:
    """Layers as the public code leaves them: by ends of our names."""
    torch.manual_seed(0)
    init = torch.nn.init
    made = {
        "qkv": torch.nn.Linear(WIDTH, 3 * WIDTH),
        "out": torch.nn.Linear(WIDTH, WIDTH),
        "up": torch.nn.Linear(WIDTH, MLP),
        "down": torch.nn.Linear(MLP, WIDTH),
        "patch": torch.nn.Conv2d(3, WIDTH, PATCH, PATCH),
    }
    if initial == "separate":  # of JAX's ViT: three matrices
        made["qkv"] = torch.nn.Linear(WIDTH, WIDTH)
    for name, layer in made.items():
        if name != "patch":
            init.zeros_(layer.bias)
            if initial == "timm":
                init.trunc_normal_(layer.weight, std=0.02)
            else:
                init.xavier_uniform_(layer.weight)
        elif initial != "timm":  # which leaves the convolution as it is
            init.xavier_uniform_(layer.weight.view(WIDTH, -1))
            if initial != "mae":
                init.zeros_(layer.bias)
    return made


@pytest.mark.parametrize("initial", SCHEMES)
def test_every_parameter_is_drawn_as_the_public_code_draws_it(initial):
    ours, theirs = fresh(initial), public(initial)
    called = {"query": "qkv", "key": "qkv", "value": "qkv"} | {x: x for x in theirs}
    seen = set()
    for path, values in ours.items():
        *_, layer, kind = path.split("/")
        if layer in called:
            other = theirs[called[layer]]
            expected = (other.weight if kind == "kernel" else other.bias).detach().numpy()
            assert stats.ks_2samp(values.ravel(), expected.ravel()).pvalue > SURE, path
            assert np.abs(values).max() == pytest.approx(np.abs(expected).max(), rel=0.25), path
            seen.add(layer)
    assert seen == set(called) - {"qkv"}


@pytest.mark.parametrize("initial", SCHEMES)
def test_what_all_have_alike(initial):
    ours = fresh(initial)
    for path in ("embed/cls", "embed/position", "decoder/mask", "decoder/position"):
        assert stats.kstest(ours[path].ravel(), stats.norm(0, 0.02).cdf).pvalue > SURE, path
    for path, values in ours.items():
        layer, kind = path.split("/")[-2:]
        if layer.startswith("norm"):
            assert (values == (kind == "scale")).all(), path
        elif kind == "bias" and layer != "patch":
            assert not values.any(), path


def test_dit_starts_as_public_dit():
    """DiT-S: queries, keys and values of deviation 0.036; 0.051 is that of three matrices."""
    c = configfile.load("configs/imagenet256_latent.py:dit-s/4", ["--config.model.depth=1"])
    ours, width = flat(tasks.build(c)), 384
    for name in ("query", "key", "value"):
        values = ours[f"trunk/last/{name}/kernel"]
        limit = (6 / (width + 3 * width)) ** 0.5
        assert values.std() == pytest.approx(limit / 3**0.5, rel=0.01)
        assert 0.99 * limit < np.abs(values).max() <= limit
    for path in ("label/table", "time/first/kernel", "time/second/kernel"):
        assert ours[path].std() == pytest.approx(0.02, rel=0.02), path
    zeros = [n for n in ours if "modulation" in n or n.startswith("final/") or n.endswith("/bias")]
    assert len(zeros) > 8
    assert not any(ours[name].any() for name in zeros)


@pytest.mark.parametrize(
    ("spec", "initial", "head"),
    [
        ("configs/imagenet_mae.py", "mae", 0.02),
        ("configs/cifar100_mae.py", "mae", 0.02),
        ("configs/imagenet_finetune.py", "timm", 2e-5),
        ("configs/cifar100_finetune.py", "timm", 2e-5),
        ("configs/patch_scaling.py", "timm", 0.02),
        ("configs/imagenet256_latent.py", "xavier", 0.02),
    ],
)
def test_recipes_start_as_the_code_they_follow(spec, initial, head):
    model = configfile.read(spec).model
    assert (model.initial, model.head_std) == (initial, head)


def test_the_head_starts_as_far_out_as_the_config_says(tiny):
    for deviation in (0.02, 2e-5):
        tiny.model.update(width=96, head_std=deviation)
        head = flat(tasks.build(validation.resolve(tiny)))["head/kernel"]
        assert stats.kstest(head.ravel(), stats.norm(0, deviation).cdf).pvalue > SURE
        assert head.std() == pytest.approx(deviation, rel=0.06)
