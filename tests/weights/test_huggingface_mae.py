"""Against transformers' ViTMAE with random weights: same loss, reconstruction and latent."""

import json
import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax import configfile, validation
from pit_jax.config import flatten
from pit_jax.errors import ConfigError
from pit_jax.models import mae
from pit_jax.models.sizes import num_kept
from pit_jax.tasks import build
from pit_jax.train import train
from pit_jax.weights import exchange, huggingface_directory, huggingface_mae, initial, tensors

POSITION = "vit.embeddings.position_embeddings"


@pytest.fixture
def make(tiny):
    """A resolved config of a small autoencoder; encoder and decoder differ in every size."""

    def config(channels: int = 3, image_size: int = 8, normalise: bool = False, **model):
        tiny.task = "mae"
        tiny.model.update(**{"width": 32, "depth": 3, "heads": 4, "norm_eps": 1e-6} | model)
        tiny.mae.update(decoder_width=24, decoder_depth=2, decoder_heads=3)
        tiny.mae.normalise_target = normalise
        tiny.data.update(image_size=image_size, channels=channels)
        tiny.eval.what = ("reconstruction",)
        return validation.resolve(tiny)

    return config


def our_weights(config, seed: int = 0) -> dict:
    shapes = jax.eval_shape(build(config).init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), shapes)


def assert_same(found: dict, expected: dict) -> None:
    found, expected = tensors.flatten(found), tensors.flatten(expected)
    assert set(found) == set(expected)
    for path, value in found.items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def groups(config) -> tuple:
    return config.model, config.data, config.mae


@pytest.mark.parametrize("case", [{"patch": 1}, {"patch": 2, "channels": 1, "depth": 1}], ids=str)
def test_there_and_back_is_the_same(make, case):
    config = make(**case)
    params = our_weights(config)
    there = huggingface_mae.to_huggingface(params, *groups(config))
    assert_same(huggingface_mae.from_huggingface(there, *groups(config)), params)


def test_a_directory_becomes_a_file_and_the_file_an_encoder(make, tmp_path):
    """Import without a config, then what fine-tuning takes of file and directory alike."""
    config = make(patch=2, position="sincos2d")
    params = our_weights(config)
    huggingface_directory.write(tmp_path / "hf", params, config)
    said: list[str] = []
    target = str(tmp_path / "w.safetensors")
    exchange.import_weights(str(tmp_path / "hf"), target, None, False, said.append)
    found, fields = tensors.read(target)
    assert (fields["task"], fields["model.position"]) == ("mae", "sincos2d")
    assert fields["mae.decoder_position"] == "learned"
    assert_same(tensors.unflatten(found), params)
    tune = config.copy_and_resolve_references()
    tune.task, tune.init_task = "classification", "mae"
    for tune.model.pool in ("cls", "patches"):
        for source in (target, str(tmp_path / "hf")):
            read = initial.read_weights(source, tune)
            for group in ("embed", "trunk", "norm"):
                assert_same(read[group], params[group])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, "save_pretrained(), in one file"),
        ({"pool": "mean"}, "Hugging Face's ViTMAE has no config.model.pool='mean'"),
        ({"window": (2.0,)}, "Hugging Face's ViTMAE has no config.model.window=(2.0,)"),
        ({"position": "sincos2d"}, "the weights have learned positions"),
        ({"width": 16, "mlp": 0}, "with model.width=32, the config has 16"),
    ],
    ids=str,
)
def test_a_directory_that_does_not_fit_is_refused_before_anything_is_made(
    make, tmp_path, one_device, change, sentence
):
    config = make(patch=2)
    huggingface_directory.write(tmp_path / "hf", our_weights(config), config)
    if not change:
        (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "of-2.safetensors")
    tune = config.copy_and_resolve_references()
    tune.update(task="classification", init_task="mae", init_from=str(tmp_path / "hf"))
    tune.model.update({"pool": "patches"} | change)
    tune.eval.what = ("accuracy",)
    with pytest.raises(ConfigError, match=re.escape(sentence)) as refusal:
        train(validation.resolve(tune), tmp_path / "run", devices=one_device)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"width": 16}, "the weights have model.width 32, the config has 16"),
        ({"patch": 2}, "the weights have model.patch 1, the config has 2"),
        ({"pool": "mean"}, "Hugging Face's ViTMAE has no config.model.pool='mean'"),
        ({"image_size": 16}, "the weights have 65 positions, the config needs 257"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_values(make, change, sentence):
    config = make(patch=1)
    there = huggingface_mae.to_huggingface(our_weights(config), *groups(config))
    other = make(**{"patch": 1} | change)
    with pytest.raises(ConfigError, match=sentence.replace(".", r"\.")):
        huggingface_mae.from_huggingface(there, *groups(other))


def test_another_decoder_is_refused(make):
    config = make(patch=1)
    there = huggingface_mae.to_huggingface(our_weights(config), *groups(config))
    other = make(patch=1)
    other.mae.decoder_width = 12
    with pytest.raises(ConfigError, match=r"decoder_embed.weight of shape \(24, 32\)"):
        huggingface_mae.from_huggingface(there, *groups(other))
    there["decoder.more"] = np.zeros(3)
    with pytest.raises(ConfigError, match=r"1 tensor\(s\) too many: decoder\.more"):
        huggingface_mae.from_huggingface(there, *groups(config))


# Against PyTorch ------------------------------------------------------------------------

CASES = [
    {"patch": 1},
    {"patch": 1, "normalise": True},
    {"patch": 2},
    {"patch": 2, "normalise": True, "position": "sincos2d"},
    {"patch": 2, "channels": 1, "heads": 8, "norm_eps": 0.1},
]


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'pit_jax[parity]'")
    return pytest.importorskip("transformers", reason="transformers is not installed")


def noise_of(config, count: int) -> np.ndarray:
    patches = (config.data.image_size // config.model.patch) ** 2
    return np.random.default_rng(4).random((count, patches)).astype(np.float32)


def ours(config, params, images, noise) -> dict[str, np.ndarray]:
    """Loss, prediction and latent; kept patches in the order of the noise, as theirs."""
    patches = noise.shape[1]
    keep = np.argsort(noise, axis=1)[:, : num_kept(patches, config.mae.mask_ratio)]
    module = mae.build(config.model, config.mae)

    @jax.jit
    def run(params, images, keep):
        predicted, kept = module.apply({"params": params}, images, keep, mutable=["intermediates"])
        wanted = mae.target(images, config.model.patch, config.mae.normalise_target)
        losses = mae.losses(predicted, wanted, mae.masked(keep, patches))
        return losses.mean(), predicted, kept["intermediates"]["latent"][0]

    with jax.default_matmul_precision("highest"):
        found = run(params, jnp.asarray(images), jnp.asarray(keep))
    return dict(zip(("loss", "logits", "latent"), map(np.asarray, found), strict=True))


def theirs(net, images, noise) -> dict[str, np.ndarray]:
    import torch

    with torch.no_grad():
        inputs = torch.from_numpy(np.moveaxis(images, -1, 1).copy()), torch.from_numpy(noise)
        out = net.eval()(pixel_values=inputs[0], noise=inputs[1])
        latent = net.vit(pixel_values=inputs[0], noise=inputs[1]).last_hidden_state
    found = {"loss": out.loss, "logits": out.logits, "latent": latent}
    return {name: value.numpy() for name, value in found.items()}


def assert_equal(found: dict, expected: dict) -> None:
    for name, value in expected.items():
        difference = np.abs(found[name] - value).max() / np.abs(value).max()
        assert difference < 1e-5, (name, difference)


def images_of(config, count: int = 3) -> np.ndarray:
    side, channels = config.data.image_size, config.data.channels
    return np.random.default_rng(1).normal(size=(count, side, side, channels)).astype(np.float32)


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES, ids=str)
def test_our_weights_compute_the_same_there(make, case, transformers, tmp_path):
    config = make(**case)
    params = our_weights(config)
    huggingface_directory.write(tmp_path, params, config)
    net, report = transformers.ViTMAEForPreTraining.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    images, noise = images_of(config), noise_of(config, 3)
    expected = theirs(net, images, noise)
    assert expected["logits"].std() > 0.1  # the weights do something
    assert_equal(ours(config, params, images, noise), expected)


def their_table(transformers, side: int, width: int):
    """Their sine-cosine table, with columns before rows as in the public checkpoints."""
    import torch

    make = transformers.models.vit_mae.modeling_vit_mae.build_2d_sinusoidal_position_embedding
    table = make(side, side, width, cls_token=True)
    return torch.roll(table, width // 2, dims=1)[None]


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES, ids=str)
def test_their_weights_compute_the_same_here(make, case, transformers, tmp_path):
    """From what save_pretrained writes, by the command's own path, without naming a config."""
    import torch

    config = make(**case)
    torch.manual_seed(0)
    net = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(**huggingface_mae.config(*groups(config)))
    )
    for name, tensor in net.named_parameters():
        if not name.endswith(("position_embeddings", "decoder_pos_embed")):
            torch.nn.init.normal_(tensor, std=0.3)
    # transformers 5 leaves the tables at zero; the public checkpoints carry them.
    for tensor in (net.vit.embeddings.position_embeddings, net.decoder.decoder_pos_embed):
        tensor.data = their_table(transformers, 8 // config.model.patch, tensor.shape[-1])
    net.save_pretrained(tmp_path / "hf")
    target = str(tmp_path / "w.safetensors")
    exchange.import_weights(str(tmp_path / "hf"), target, None, False, lambda line: None)
    found, fields = tensors.read(target)
    assert fields["model.position"] == "sincos2d"  # theirs are, and stay fixed
    same = {k: v for k, v in flatten(config).items() if k in fields}
    text = configfile.to_json(validation.resolve(config))
    imported = configfile.from_json(text)
    for name in same:
        if name.endswith(("position", "position_std")):
            node = imported[name.split(".")[0]]
            node[name.split(".")[1]] = fields[name]
        elif not name.startswith("data.") or name == "data.image_size":
            assert fields[name] == json.loads(json.dumps(same[name])), name
    images, noise = images_of(config), noise_of(config, 3)
    assert_equal(
        ours(imported, tensors.unflatten(found), images, noise), theirs(net, images, noise)
    )


@pytest.mark.parity
def test_the_public_names_of_the_decoders_layers_are_read(make, transformers):
    """transformers 5 writes others than the public checkpoints have; both are taken."""
    config = make(patch=2)
    params = our_weights(config)
    there = huggingface_mae.to_huggingface(params, *groups(config))
    assert any(name.startswith("decoder.decoder_layers.0.") for name in there)
    with tempfile.TemporaryDirectory() as folder:
        net = transformers.ViTMAEForPreTraining(
            transformers.ViTMAEConfig(**huggingface_mae.config(*groups(config)))
        )
        net.save_pretrained(folder)
        written, _ = tensors.read(f"{folder}/model.safetensors")
    renamed = {
        name.replace("decoder.decoder_layers", "decoder.decoder_encoder.layer"): value
        for name, value in there.items()
    }
    assert set(written) in (set(there), set(renamed))
    assert_same(huggingface_mae.from_huggingface(renamed, *groups(config)), params)
