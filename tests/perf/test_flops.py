"""Counting operations: against PAPER's figures, and what the shorter last block saves."""

import pytest

from pit_jax import configfile
from pit_jax.perf import flops


@pytest.mark.parametrize(
    ("spec", "overrides", "gmac"),
    [
        ("configs/cifar100.py:pit-t", [], 10.28),
        ("configs/cifar100.py:vit-t/2", [], 1.67),
        ("configs/cifar100.py:pit-s", [], 31.45),
        ("configs/cifar100.py:vit-s/2", [], 6.07),
        ("configs/imagenet28.py:pit-s", [], 22.35),
        ("configs/imagenet28.py:pit-b", [], 78.03),
        ("configs/imagenet28.py:pit-l", [], 267),
    ],
)
def test_forward_cost_equals_the_papers_count(spec, overrides, gmac):
    config = configfile.load(spec, overrides)
    cost = flops.vit(config.model, config.data)
    assert cost.forward / 2e9 == pytest.approx(gmac, rel=2e-3)


def test_the_compiler_counts_the_same_for_one_unrolled_layer():
    """XLA's own count of a program without a scan: the last block and the head."""
    import jax
    import jax.numpy as jnp

    from pit_jax.models import vit

    words = ["--config.model.depth=1", "--config.data.image_size=16", "--config.model.heads=4"]
    config = configfile.load("configs/cifar100.py:pit-s", words)
    model = vit.build(config.model, config.data.num_classes)
    image = jnp.zeros((1, 16, 16, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), image)
    cost = jax.jit(model.apply).lower(params, image).compile().cost_analysis()
    # Norms, softmax and GELU are counted by the compiler and not by us.
    assert cost["flops"] == pytest.approx(flops.vit(config.model, config.data).computed, rel=0.05)


def test_a_masked_autoencoder_is_counted_by_what_it_computes():
    """Encoder on 256 of 1024 pixels and [CLS], decoder on all: a third of classification."""
    config = configfile.load("configs/cifar100_mae.py:pit-t")
    cost = flops.mae(config.model, config.data, config.mae)
    encoder = 12 * (2 * 257 * 12 * 192**2 + 4 * 257**2 * 192)
    decoder = 4 * (2 * 1025 * 12 * 128**2 + 4 * 1025**2 * 128)
    assert cost.forward == pytest.approx(encoder + decoder)
    assert cost.tokens == 257
    classification = configfile.load("configs/cifar100.py:pit-t")
    ratio = flops.vit(classification.model, classification.data).computed / cost.computed
    assert 2.5 < ratio < 2.9
    short = configfile.load("configs/cifar100_mae.py:pit-t", ["--config.model.pool=mean"])
    assert flops.mae(short.model, short.data, short.mae).tokens == 256


def test_the_compiler_counts_the_same_for_one_layer_of_encoder_and_decoder():
    import jax
    import jax.numpy as jnp

    from pit_jax.models import mae

    words = ["--config.model.depth=1", "--config.mae.decoder_depth=1", "--config.model.heads=4"]
    # Attention by blocks is a loop, which the compiler counts once.
    words += ["--config.data.image_size=16", "--config.model.attention=xla"]
    config = configfile.load("configs/cifar100_mae.py:pit-s", words)
    model = mae.build(config.model, config.mae)
    image, keep = jnp.zeros((1, 16, 16, 3)), jnp.arange(64, dtype=jnp.int32)[None]
    params = jax.eval_shape(model.init, jax.random.key(0), image, keep)
    cost = jax.jit(model.apply).lower(params, image, keep).compile().cost_analysis()
    expected = flops.mae(config.model, config.data, config.mae).computed
    assert cost["flops"] == pytest.approx(expected, rel=0.05)


def test_the_last_block_is_cheaper_with_cls_only():
    full = flops.trunk(1025, 192, 768, 12)
    short = flops.trunk(1025, 192, 768, 12, rows_read=1)
    assert 0.91 < short / full < 0.94


def test_rematerialising_everything_adds_a_third_and_attention_alone_its_share():
    full, dots = (flops.recomputed(1025, 192, 768, 12, how) for how in ("full", "dots"))
    assert full == pytest.approx(flops.trunk(1025, 192, 768, 11))
    dense = 2 * 1025 * 12 * 192**2 * 11  # 12 d² weights a layer
    assert full - dots == pytest.approx(dense)
    assert flops.recomputed(1025, 192, 768, 12, "none") == 0


def test_peaks_of_known_devices_only():
    assert flops.peak("TPU v5 lite") == 197e12
    assert flops.peak("TPU v5p") == 459e12
    assert flops.peak("NVIDIA H200") == 989e12
    assert flops.peak("cpu") is None


def test_forward_flops_are_the_same_number_wherever_they_are_named(tiny):
    """`show`, env.json and what comparisons make of it; what else there is has another name."""
    from pit_jax import tasks, validation
    from pit_jax.perf import show
    from pit_jax.study import export

    cost = tasks.build(validation.resolve(tiny)).flops()
    assert cost.forward != cost.computed  # the last layer's rows that nobody reads
    shown = [line for line in show.show(tiny).splitlines() if " FLOPs " in line]
    assert f"forward FLOPs an image     {cost.forward:.4g} (" in shown[0]
    assert shown[0].endswith(flops.FORWARD)
    assert shown[1] == f"computed FLOPs an image    {cost.computed:.4g}: {flops.COMPUTED}"
    named = cost.named()
    assert named["forward_flops"] == cost.forward
    assert set(export.COSTS) == {"parameters", *named}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA RTX A1000", None),  # whose name holds another's
        ("NVIDIA L40", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ],
)
def test_a_gpu_has_the_peak_of_its_own_card(kind, expected):
    assert flops.peak(kind) == expected
