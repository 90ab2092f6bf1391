"""What `auto` picks on NVIDIA GPUs compiles, forward and backward, for every task and mask.

Ahead of time, for eight H200s that are not here. Skipped where the compiler, which JAX's
CUDA wheels bring, is not installed; `make test-gpu` installs it.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pit_jax import configfile
from pit_jax.models.attention import attention
from pit_jax.models.mask import FULL, Mask
from pit_jax.parallel import mesh as meshes
from pit_jax.perf import flops

from . import h200

if h200.missing():
    pytest.skip(h200.missing(), allow_module_level=True)

# Queries, keys, head size, mask, mesh, exchange, and whether the kernel takes it.
ATTENTION = {
    "odd": (1025, 1025, 64, FULL, {}, "auto", True),
    "heads of 72": (1025, 1025, 72, FULL, {}, "auto", True),
    "heads of 20": (1025, 1025, 20, FULL, {}, "auto", False),
    "heads of 136": (1025, 1025, 136, FULL, {}, "auto", False),
    "causal": (1025, 1025, 64, Mask(causal=True), {}, "auto", True),
    "filled": (1025, 1025, 64, Mask(length=900), {}, "auto", True),
    "filled, causal": (1025, 1025, 64, Mask(length=1001, causal=True), {}, "auto", True),
    "a window": (1025, 1025, 64, Mask(radius=2.0, columns=32, prefix=1), {}, "auto", False),
    "few queries": (5, 1025, 64, FULL, {}, "auto", True),
    "few queries, causal": (7, 1025, 64, Mask(causal=True), {}, "auto", True),
    "fsdp": (1025, 1025, 64, FULL, {"fsdp": 8}, "auto", True),
    "by heads": (1025, 1025, 64, FULL, {"data": 4, "seq": 2}, "ulysses", True),
    "gathered": (1025, 1025, 64, FULL, {"data": 4, "seq": 2}, "gather", True),
    "gathered, causal": (1025, 1025, 64, Mask(causal=True), {"data": 4, "seq": 2}, "gather", False),
    "one query a device": (5, 1025, 64, FULL, {"seq": 8}, "gather", True),
}


@pytest.mark.parametrize(
    ("queries", "keys", "size", "mask", "layout", "exchange", "fused"),
    ATTENTION.values(),
    ids=ATTENTION,
)
def test_attention_compiles(queries, keys, size, mask, layout, exchange, fused):
    """Forward and backward; seconds for all of them."""
    sizes = dict.fromkeys(meshes.AXES, 1) | (layout or {"data": 8})
    mesh = meshes.make_mesh(sizes, h200.devices())
    examples = NamedSharding(mesh, PartitionSpec(meshes.BATCH_AXES))
    q, k = (
        jax.ShapeDtypeStruct((16, n, 4, size), jnp.bfloat16, sharding=examples)
        for n in (queries, keys)
    )

    def loss(q, k, v):
        return (attention(q, k, v, "auto", mask, exchange).astype(jnp.float32) ** 2).sum()

    with jax.set_mesh(mesh):
        program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k).compile()
    assert bool(h200.FUSED.search(program.as_text())) == fused


SMALL = ("model.width=32", "model.heads=2", "model.depth=3", "train.batch_size=16")
PLAIN = ("model.drop_path=0.0", *SMALL)
LIKELIHOOD = ("task=autoregressive", "eval.what=('likelihood',)")
CIFAR, MAE = "configs/cifar100.py:pit-t", "configs/cifar100_mae.py:pit-t"
# Config, fields, and whether cuDNN's fused attention is in its training step.
CASES = {
    "1025 tokens": (CIFAR, SMALL, True),
    "257 tokens": ("configs/cifar100.py:vit-t/2", SMALL, True),
    "65 tokens": ("configs/digits.py:pit", SMALL, False),
    "no [CLS]": (CIFAR, ("model.pool=mean", *SMALL), True),
    "float32": (CIFAR, ("model.dtype=float32", *SMALL), False),
    "a window": (CIFAR, ("model.window=(3,)", *SMALL), False),
    "a window in some layers": (
        CIFAR,
        ("model.window=(3,)", "model.window_layers=1", *SMALL),
        True,
    ),
    "heads of 12": (CIFAR, (*SMALL, "model.width=24"), False),
    "fsdp": (CIFAR, ("mesh.data=1", "mesh.fsdp=8", *SMALL), True),
    "tokens split, by heads": (CIFAR, ("mesh.seq=2", *SMALL), True),
    "tokens split, gathered": (CIFAR, ("mesh.seq=2", "model.exchange=gather", *SMALL), True),
    "heads split": (CIFAR, ("mesh.model=2", *SMALL), True),
    "mae": (MAE, SMALL, True),
    "diffusion": ("configs/imagenet64_pixels.py", SMALL, True),
    "depth": ("configs/scenes_depth.py:pit", SMALL, True),
    "autoregressive": (CIFAR, (*PLAIN, "model.name=igpt", *LIKELIHOOD), True),
    "perceiver": (CIFAR, (*PLAIN, "model.name=perceiver"), True),
    "convnet": (CIFAR, (*PLAIN, "model.name=convnet"), False),
    "autoencoder": ("configs/digits_autoencoder.py", ("train.batch_size=16",), False),
}


@pytest.mark.parametrize(("config", "fields", "fused"), CASES.values(), ids=CASES)
def test_every_task_and_mask_compiles(config, fields, fused):
    resolved = configfile.load(config, [f"--config.{field}" for field in fields])
    programs = h200.compiled(resolved)
    kernels = set(h200.FUSED.findall(programs["train"].as_text()))
    both = {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
    assert kernels == (both if fused else set())


def test_every_operation_has_a_deterministic_form():
    """Half of `train.deterministic`: XLA refuses what has none. The other half, no choice of
    kernels by their speed, does not compile without a GPU."""
    resolved = configfile.load(MAE, [f"--config.{field}" for field in SMALL])
    programs = h200.compiled(resolved, "train", xla_gpu_exclude_nondeterministic_ops=True)
    assert "__cudnn$fmhaSoftmaxBackward" in programs["train"].as_text()


def test_the_gpu_is_the_one_that_is_meant():
    device, *_ = h200.devices()
    assert (device.platform, device.compute_capability) == ("gpu", "9.0")
    assert flops.peak(device.device_kind) == 989e12
