"""Files of autoencoders: there and back, known by their weights, refused if not whole."""

import hashlib
import json
import re

import numpy as np
import pytest

from pit_jax.errors import ConfigError, StorageError
from pit_jax.models.autoencoder import AutoencoderKL
from pit_jax.models.normalisation import Normalisation
from pit_jax.weights import autoencoder, autoencoder_names, tensors

from .small_autoencoders import PLAIN, SMALL, STABLE_DIFFUSION, weights


@pytest.fixture(scope="module")
def params() -> dict:
    return weights(SMALL)


@pytest.fixture
def theirs(params) -> dict[str, np.ndarray]:
    """Of SMALL, by diffusers' names."""
    return autoencoder_names.to_diffusers(params)


def assert_same(found: dict, expected: dict) -> None:
    found, expected = tensors.flatten(found), tensors.flatten(expected)
    assert set(found) == set(expected)
    for path, value in found.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


# Names that were written down from the public files, not derived.
LATENT_DIFFUSION = {
    "encoder.conv_in.weight": "encoder.conv_in.weight",
    "encoder.down.0.block.1.norm2.bias": "encoder.down_blocks.0.resnets.1.norm2.bias",
    "encoder.down.1.block.0.nin_shortcut.weight": "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",  # noqa: E501
    "encoder.down.1.downsample.conv.weight": "encoder.down_blocks.1.downsamplers.0.conv.weight",
    "encoder.mid.block_1.conv1.weight": "encoder.mid_block.resnets.0.conv1.weight",
    "encoder.mid.block_2.conv1.weight": "encoder.mid_block.resnets.1.conv1.weight",
    "encoder.mid.attn_1.norm.weight": "encoder.mid_block.attentions.0.group_norm.weight",
    "encoder.mid.attn_1.k.weight": "encoder.mid_block.attentions.0.to_k.weight",
    "encoder.mid.attn_1.proj_out.bias": "encoder.mid_block.attentions.0.to_out.0.bias",
    "decoder.up.2.block.0.conv1.weight": "decoder.up_blocks.0.resnets.0.conv1.weight",
    "decoder.up.0.block.0.nin_shortcut.weight": "decoder.up_blocks.2.resnets.0.conv_shortcut.weight",  # noqa: E501
    "decoder.up.1.upsample.conv.bias": "decoder.up_blocks.1.upsamplers.0.conv.bias",
    "decoder.norm_out.weight": "decoder.conv_norm_out.weight",
    "quant_conv.weight": "quant_conv.weight",
    "post_quant_conv.bias": "post_quant_conv.bias",
}


def as_latent_diffusion(theirs: dict) -> dict[str, np.ndarray]:
    """Diffusers' tensors as latent diffusion's own code names and shapes them."""
    out = {}
    for name, x in theirs.items():
        if name.startswith("decoder.up_blocks."):
            name = re.sub(r"up_blocks\.(\d)", lambda m: f"up_blocks.{2 - int(m[1])}", name)
        for new, old in (
            ("down_blocks.", "down."),
            ("up_blocks.", "up."),
            ("mid_block.resnets.0", "mid.block_1"),
            ("mid_block.resnets.1", "mid.block_2"),
            ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
            ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
            ("mid_block.attentions.0.to_", "mid.attn_1."),
            ("resnets.", "block."),
            ("downsamplers.0", "downsample"),
            ("upsamplers.0", "upsample"),
            ("conv_shortcut", "nin_shortcut"),
            ("conv_norm_out", "norm_out"),
        ):
            name = name.replace(new, old)
        out[name] = x[..., None, None] if ".attn_1." in name and x.ndim == 2 else x
    return out


# There and back -------------------------------------------------------------------------


@pytest.mark.parametrize("model", [SMALL, PLAIN], ids=["attention", "plain"])
def test_diffusers_and_back_is_the_same(model):
    params = weights(model)
    found, back = autoencoder_names.from_diffusers(
        autoencoder_names.to_diffusers(params), model.groups
    )
    assert found == model
    assert_same(back, params)


def test_all_generations_of_names_are_read(params, theirs):
    """Attention as matrices or 1×1 convolutions, by both names; latent diffusion's own file."""
    old = {}
    for name, x in theirs.items():
        for new, before in (
            ("to_q", "query"),
            ("to_k", "key"),
            ("to_v", "value"),
            ("to_out.0", "proj_attn"),
        ):
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        old[name] = x
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in old
    convolutions = {
        name: x[..., None, None] if ".attentions." in name and x.ndim == 2 else x
        for name, x in theirs.items()
    }
    original = as_latent_diffusion(theirs)
    for name, new in LATENT_DIFFUSION.items():
        assert original[name].size == theirs[new].size, name
    beside = {"loss.logvar": np.zeros(()), "model_ema.decay": np.zeros(())}
    whole = {f"first_stage_model.{name}": x for name, x in original.items()}
    whole |= {"model.diffusion_model.out.0.weight": np.zeros(3), "betas": np.zeros(2)}
    for found in (old, convolutions, original, original | beside, whole):
        model, back = autoencoder_names.from_diffusers(found, groups=8)
        assert model == SMALL
        assert_same(back, params)


def test_our_own_file_tells_everything(params, tmp_path):
    path = tmp_path / "ours.safetensors"
    normalisation = Normalisation((1, 2, 3, 4), 0.5)
    autoencoder.write(path, SMALL, params, normalisation, "small")
    loaded = autoencoder.load(path)
    assert (loaded.model, loaded.normalisation, loaded.name) == (SMALL, normalisation, "small")
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_same(loaded.params, params)


def test_an_autoencoder_is_known_by_its_weights_whatever_file_holds_them(params, theirs, tmp_path):
    """And not by its file, its name or its normalisation."""
    autoencoder.write(tmp_path / "ours.safetensors", SMALL, params, STABLE_DIFFUSION, "small")
    autoencoder.write_diffusers(tmp_path / "vae", SMALL, params, Normalisation(0.5, 2.0))
    tensors.write(tmp_path / "ldm" / "x.safetensors", as_latent_diffusion(theirs))
    config = '{"_class_name": "AutoencoderKL", "norm_num_groups": 8}'
    (tmp_path / "ldm" / "config.json").write_text(config)
    places = ("ours.safetensors", "vae", "ldm/x.safetensors")
    found = [autoencoder.load(tmp_path / place) for place in places]
    assert len({x.sha256 for x in found}) == 3
    (identity,) = {x.weights_sha256 for x in found}
    digest = hashlib.sha256(b"groups 8\n")
    for path, value in sorted(flat(params).items()):
        digest.update(f"{path} {list(value.shape)}\n".encode() + value.astype("<f4").tobytes())
    assert identity == digest.hexdigest()
    other = {path: x.copy() for path, x in flat(params).items()}
    other["decoder/conv_in/bias"][3] += 1e-6
    others = [(SMALL, tensors.unflatten(other)), (SMALL.clone(groups=4), params)]
    sums = {identity, *(autoencoder.weights_sha256(*x) for x in others)}
    assert len(sums) == 3


@pytest.mark.parametrize(
    "normalisation",
    [
        STABLE_DIFFUSION,
        Normalisation(0.5, 2.0),
        Normalisation((1, 2, 3, 4), (1, 2, 4, 8)),
        Normalisation((0.1, -0.7, 0.0609, 3.0), (49.0, 0.18215, 1.5305, 0.13025)),
    ],
    ids=str,
)
def test_a_diffusers_directory_tells_everything(params, tmp_path, normalisation):
    autoencoder.write_diffusers(tmp_path / "vae", SMALL, params, normalisation)
    loaded = autoencoder.load(tmp_path / "vae")
    assert (loaded.model, loaded.normalisation, loaded.name) == (SMALL, normalisation, "vae")
    assert_same(loaded.params, params)
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    alone = autoencoder.load(file)  # with the config.json beside it
    assert (alone.model, alone.normalisation, alone.sha256) == (
        SMALL,
        normalisation,
        hashlib.sha256(file.read_bytes()).hexdigest(),
    )


def test_scales_of_any_digits_are_known_again(params, tmp_path):
    """A directory holds 1 / scale, of which the last digits may be lost: no other autoencoder."""
    rng = np.random.default_rng(0)
    path = tmp_path / "vae"
    for _ in range(5):
        scale = tuple(rng.uniform(0.1, 60, 4))
        given = Normalisation(0.25, scale)
        autoencoder.write_diffusers(path, SMALL, params, given)
        assert autoencoder.load(path, given).normalisation == given
        read = autoencoder.load(path).normalisation
        np.testing.assert_allclose(read.scale, scale, rtol=1e-15)
        assert read.shift == (0.25,) * 4
        for other in (
            Normalisation(0.25, (scale[0] * 1.00001, *scale[1:])),
            Normalisation(0.250001, scale),
            Normalisation(0.25, scale[:3]),
            Normalisation(0.25, scale[0]),
        ):
            with pytest.raises(ConfigError, match="another was asked for"):
                autoencoder.load(path, other)


def test_half_precision_is_read_as_float32(params, theirs, tmp_path):
    path = tmp_path / "half.safetensors"
    (tmp_path / "config.json").write_text(
        json.dumps({"_class_name": "AutoencoderKL", "norm_num_groups": 8})
    )
    tensors.write(path, {name: x.astype(np.float16) for name, x in theirs.items()})
    loaded = autoencoder.load(path)
    rounded = {p: x.astype(np.float16).astype(np.float32) for p, x in flat(params).items()}
    assert_same(loaded.params, tensors.unflatten(rounded))
    assert loaded.normalisation == STABLE_DIFFUSION  # as 4 latent channels mean it


def flat(params: dict) -> dict[str, np.ndarray]:
    return tensors.flatten(params)


# Refusals -------------------------------------------------------------------------------


def test_tensors_that_do_not_belong_together_are_refused_by_name(theirs):
    def refused(sentence: str, change: dict, drop: tuple[str, ...] = ()) -> None:
        found = {n: x for n, x in (theirs | change).items() if n not in drop}
        with pytest.raises(ConfigError, match=sentence) as info:
            autoencoder_names.from_diffusers(found, 8, "x.safetensors")
        assert "\n" not in str(info.value)

    norm = "encoder.conv_norm_out.bias"
    refused(rf"x.safetensors lacks {norm}: it is not a whole", {}, (norm,))
    refused(r"lacks encoder.conv_norm_out.bias, quant_conv.bias: ", {}, (norm, "quant_conv.bias"))
    refused(r"has more than an AutoencoderKL: encoder.more", {"encoder.more": np.zeros(3)})
    many = {f"more.{i}": np.zeros(3) for i in range(9)}
    refused(r"more.0, more.1, more.2 and 6 more$", many)
    refused(r"wrong shapes: encoder.conv_norm_out.bias is \(3,\), not \(16,\)", {norm: np.zeros(3)})
    refused("it has no convolution encoder.conv_out.weight", {}, ("encoder.conv_out.weight",))
    layers = tuple(name for name in theirs if "down_blocks" in name)
    refused("it has no convolution encoder.down_blocks.0.resnets.0.conv1.weight", {}, layers)
    with pytest.raises(ConfigError, match="groups=32 do not divide its channels 8"):
        autoencoder_names.from_diffusers(theirs)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"_class_name": "VQModel"}, "describes a 'VQModel', not an 'AutoencoderKL'"),
        ([], "describes a None"),
        ({"act_fn": "relu"}, "has act_fn 'relu', only 'silu'"),
        ({"layers_per_block": 3}, "config.json has layers_per_block 3, the tensors have 2"),
        ({"block_out_channels": [8, 16]}, r"has block_out_channels \[8, 16\], the tensors"),
        ({"use_post_quant_conv": False}, "has use_post_quant_conv False, the tensors have True"),
        ({"latents_mean": [0, 0, 0, 0]}, "latents_mean and latents_std together"),
        ({"latents_mean": [0] * 4, "latents_std": [1, 1, 1, 0]}, "is not a finite number"),
        ({"latents_mean": [0] * 3, "latents_std": [1] * 3}, "shift has 3 channels, the latents"),
        ({"scaling_factor": "big"}, "normalisation.scale='big' is not a finite number"),
    ],
    ids=str,
)
def test_a_config_that_says_otherwise_is_refused(theirs, tmp_path, config, sentence):
    if isinstance(config, dict):
        config = {"_class_name": "AutoencoderKL", "norm_num_groups": 8} | config
    tensors.write(tmp_path / "diffusion_pytorch_model.safetensors", theirs)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=sentence):
        autoencoder.load(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    """By the first of their names, in one line."""
    model = AutoencoderKL(channels=(32,), layers=1, latent=4)
    flat = tensors.flatten(weights(model))
    first, second = sorted(flat)[2:4]
    for name in (first, second):
        flat[name] = flat[name].copy()
        flat[name].flat[-1] = value
    path = tmp_path / "x.safetensors"
    autoencoder.write(path, model, tensors.unflatten(flat), Normalisation(), "x")
    with pytest.raises(ConfigError, match=f"x.safetensors: {first} is not finite") as info:
        autoencoder.load(path)
    assert "\n" not in str(info.value)


def test_nothing_guesses_a_scale(tmp_path):
    model = AutoencoderKL(channels=(32,), layers=1, latent=3)
    path = tmp_path / "x.safetensors"
    tensors.write(path, autoencoder_names.to_diffusers(weights(model)))
    with pytest.raises(ConfigError, match="does not say how its 3-channel latents are scaled"):
        autoencoder.load(path)
    given = Normalisation(scale=0.5)
    loaded = autoencoder.load(path, given)
    assert (loaded.normalisation, loaded.name) == (given, "x")
    # a config.json about something else that happens to lie beside a file says nothing
    (tmp_path / "config.json").write_text('{"model_type": "vit", "scaling_factor": 9}')
    assert autoencoder.load(path, given).normalisation == given
    (tmp_path / "config.json").write_text(
        '{"_class_name": "AutoencoderKL", "scaling_factor": 0.25}'
    )
    assert autoencoder.load(path).normalisation == Normalisation(scale=0.25)
    with pytest.raises(ConfigError, match=r"scale=0\.25\), another was asked for"):
        autoencoder.load(path, given)


def test_other_files_are_refused(params, tmp_path):
    with pytest.raises(ConfigError, match=r"holds no diffusion_pytorch_model\.safetensors"):
        autoencoder.load(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        autoencoder.load(tmp_path / "missing.safetensors")
    path = tmp_path / "x.safetensors"
    tensors.write(path, {"a": np.zeros(2, np.float32)}, {"task": "mae"})
    with pytest.raises(ConfigError, match="was trained by task 'mae', it is no autoencoder"):
        autoencoder.load(path)
    tensors.write(path, {"a": np.zeros(2, np.float32)}, {"task": "autoencoder"})
    with pytest.raises(ConfigError, match=r"does not say its autoencoder\.channels"):
        autoencoder.load(path)
    autoencoder.write(path, SMALL, params, STABLE_DIFFUSION, "small")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StorageError, match="is no intact"):
        autoencoder.load(path)


def test_nothing_wrong_is_written(params, tmp_path):
    other = SMALL.clone(latent=3)
    with pytest.raises(ConfigError, match="the autoencoder to write has tensors of wrong shapes"):
        autoencoder.write(tmp_path / "x", other, params, STABLE_DIFFUSION, "x")
    with pytest.raises(ConfigError, match="scale has 3 channels, the latents have 4"):
        autoencoder.write_diffusers(tmp_path / "y", SMALL, params, Normalisation(0, (1, 2, 3)))
    assert not list(tmp_path.iterdir())
