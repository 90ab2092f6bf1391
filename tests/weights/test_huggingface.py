"""Against transformers' ViT with random weights: same logits, same gradients, both ways."""

import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax import validation
from pit_jax.errors import ConfigError
from pit_jax.models import vit
from pit_jax.models.embed import sincos2d
from pit_jax.weights import huggingface, load, tensors

CASES = [{"patch": 1}, {"patch": 2}, {"patch": 2, "channels": 1}, {"patch": 1, "heads": 8}]


@pytest.fixture
def make(tiny):
    """A resolved config of a small model whose every tensor matters."""

    def config(channels: int = 3, image_size: int = 8, **model):
        tiny.model.update(**{"width": 32, "depth": 3, "heads": 4, "norm_eps": 1e-6} | model)
        tiny.data.update(image_size=image_size, channels=channels)
        return validation.resolve(tiny)

    return config


def our_weights(config, seed: int = 0) -> dict:
    model = vit.build(config.model, config.data.num_classes)
    side, channels = config.data.image_size, config.data.channels
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, channels)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), shapes["params"]
    )


def pictures(config) -> np.ndarray:
    side, channels = config.data.image_size, config.data.channels
    return np.random.default_rng(1).normal(size=(3, side, side, channels)).astype(np.float32)


def our_logits(config, params, images) -> jax.Array:
    return vit.build(config.model, config.data.num_classes).apply({"params": params}, images)


def assert_same(found: dict, expected: dict) -> None:
    chex_paths = tensors.flatten(expected)
    for path, value in tensors.flatten(found).items():
        np.testing.assert_array_equal(value, chex_paths[path], err_msg=path)
    assert set(tensors.flatten(found)) == set(chex_paths)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_there_and_back_is_the_same(make, case):
    config = make(**case)
    params = our_weights(config)
    there = huggingface.to_huggingface(params, config.model, config.data)
    assert_same(huggingface.from_huggingface(there, config.model, config.data), params)


def test_sincos_positions_are_exported_as_their_table(make):
    config = make(patch=2, position="sincos2d")
    there = huggingface.to_huggingface(our_weights(config), config.model, config.data)
    table = there["vit.embeddings.position_embeddings"][0]
    np.testing.assert_array_equal(table[0], 0)
    np.testing.assert_array_equal(table[1:], sincos2d((4, 4), 32))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"width": 16}, "the weights have model.width 32, the config has 16"),
        ({"depth": 2}, "the weights have model.depth 3, the config has 2"),
        ({"mlp": 64}, "the weights have model.mlp 128, the config has 64"),
        ({"patch": 2}, "the weights have model.patch 1, the config has 2"),
        ({"channels": 1}, "the weights have data.channels 3, the config has 1"),
        ({"pool": "mean"}, "Hugging Face's ViT has no config.model.pool='mean'"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_values(make, change, sentence):
    config = make(patch=1)
    there = huggingface.to_huggingface(our_weights(config), config.model, config.data)
    other = make(**{"patch": 1} | change)
    with pytest.raises(ConfigError, match=sentence.replace(".", r"\.")):
        huggingface.from_huggingface(there, other.model, other.data)


def test_a_missing_or_left_over_tensor_is_named(make):
    config = make(patch=1)
    there = huggingface.to_huggingface(our_weights(config), config.model, config.data)
    bias = there.pop("classifier.bias")
    with pytest.raises(ConfigError, match=r"no tensor classifier\.bias"):
        huggingface.from_huggingface(there, config.model, config.data)
    more = there | {"classifier.bias": bias, "pooler": bias}
    with pytest.raises(ConfigError, match=r"1 tensor\(s\) too many: pooler"):
        huggingface.from_huggingface(more, config.model, config.data)


def test_positions_of_another_size_need_to_be_asked_for(make):
    config = make(patch=1)
    there = huggingface.to_huggingface(our_weights(config), config.model, config.data)
    other = make(patch=1, image_size=12)
    with pytest.raises(ConfigError, match="65 positions, the config needs 145: a PiT's positions"):
        huggingface.from_huggingface(there, other.model, other.data)
    grown = huggingface.from_huggingface(there, other.model, other.data, interpolate=True)
    position = grown["embed"]["position"]
    assert position.shape == (145, 32)
    np.testing.assert_array_equal(position[0], there["vit.embeddings.position_embeddings"][0, 0])
    flat = there | {"vit.embeddings.position_embeddings": np.ones((1, 65, 32), np.float32)}
    ones = huggingface.from_huggingface(flat, other.model, other.data, interpolate=True)
    np.testing.assert_allclose(ones["embed"]["position"], 1, rtol=1e-6)


def test_patch_positions_of_another_size_are_refused_too(make):
    config = make(patch=2)
    there = huggingface.to_huggingface(our_weights(config), config.model, config.data)
    other = make(patch=2, image_size=16)
    with pytest.raises(ConfigError, match="learned positions belong to one image size"):
        huggingface.from_huggingface(there, other.model, other.data)


# With PyTorch ---------------------------------------------------------------------------


def transformers_model(config):
    reason = "make parity installs PyTorch and transformers"
    torch = pytest.importorskip("torch", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    fields = huggingface.config(config.model, config.data)
    fields.pop("architectures")
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**fields)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return torch, model


def published(model) -> dict[str, np.ndarray]:
    """The tensors as the model's own files name them; in memory transformers 5 has others."""
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return tensors.read(f"{directory}/model.safetensors")[0]


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES, ids=str)
def test_import_gives_the_same_logits(make, case):
    config = make(**case)
    torch, theirs = transformers_model(config)
    images = pictures(config)
    expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).logits.detach().numpy()
    params = huggingface.from_huggingface(published(theirs), config.model, config.data)
    found = our_logits(config, params, images)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"logits differ by {error:.1e} of the largest")
    assert error < 1e-5
    assert np.abs(expected).max() > 0.1


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES, ids=str)
def test_export_is_loaded_and_gives_the_same_logits(make, case, tmp_path):
    config = make(**case)
    torch, _ = transformers_model(config)
    import transformers

    params, images = our_weights(config), pictures(config)
    huggingface.write(tmp_path, params, config.model, config.data)
    theirs, info = transformers.ViTForImageClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found = theirs.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2))).logits.detach().numpy()
    expected = np.asarray(our_logits(config, params, images))
    error = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"logits differ by {error:.1e} of the largest")
    assert error < 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_gradients_are_the_same(make, case):
    config = make(**case)
    torch, theirs = transformers_model(config)
    images = pictures(config)
    theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).logits.square().sum().backward()
    params = huggingface.from_huggingface(published(theirs), config.model, config.data)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    expected = published(theirs)
    grads = jax.grad(lambda p: (our_logits(config, p, images) ** 2).sum())(params)
    found = huggingface.to_huggingface(grads, config.model, config.data)
    assert set(found) == set(expected)
    scale = max(np.abs(x).max() for x in expected.values())
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=1e-4, atol=1e-6 * scale, err_msg=name)


@pytest.mark.parity
def test_a_saved_directory_is_imported_and_exported(make, tmp_path):
    config = make(patch=2)
    _, theirs = transformers_model(config)
    theirs.save_pretrained(tmp_path / "theirs")
    fields = huggingface.fields(tmp_path / "theirs")
    assert fields["model.width"] == 32
    assert fields["data.num_classes"] == 10
    found, _ = tensors.read(tmp_path / "theirs" / "model.safetensors")
    params = huggingface.from_huggingface(found, config.model, config.data)
    again = huggingface.to_huggingface(params, config.model, config.data)
    for name, x in published(theirs).items():
        np.testing.assert_array_equal(again[name], x, err_msg=name)


def test_fields_of_another_kind_of_model_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="describes a 'bert', not a 'vit'"):
        huggingface.fields(tmp_path)


def test_merge_reports_what_was_loaded_new_and_dropped(make):
    ten, hundred = make(patch=1), make(patch=1)
    hundred.data.num_classes = 100
    fresh, old = our_weights(hundred, seed=1), our_weights(ten)
    merged, report = load.merge(fresh, old | {"decoder": {"x": np.ones(3)}})
    assert set(report.new) == {"head/kernel", "head/bias"}
    assert set(report.dropped) == {"head/kernel", "head/bias", "decoder/x"}
    np.testing.assert_array_equal(merged["embed"]["cls"], old["embed"]["cls"])
    np.testing.assert_array_equal(merged["head"]["bias"], fresh["head"]["bias"])
    assert "new      head (2)" in str(report)


def test_merge_refuses_another_width_patch_or_image_size(make):
    fresh = our_weights(make(patch=1))
    for change, field in (
        (
            {"patch": 2},
            "embed/patch/kernel of shape (12, 32), the config makes it (3, 32): model.patch",
        ),
        ({"image_size": 12}, "data.image_size"),
    ):
        other = our_weights(make(**{"patch": 1} | change))
        with pytest.raises(ConfigError, match=re.escape(field)):
            load.merge(fresh, other)
