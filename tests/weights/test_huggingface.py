"""Against transformers' ViT with random weights: same logits, same gradients, both ways."""

import functools
import json
import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax import validation
from pit_jax.config import flatten
from pit_jax.errors import ConfigError, StorageError
from pit_jax.models import vit
from pit_jax.models.embed import sincos2d
from pit_jax.weights import huggingface, huggingface_directory, initial, tensors

CASES = [
    {"patch": 1},
    {"patch": 2},
    {"patch": 2, "channels": 1},
    {"patch": 1, "heads": 8},
    {"patch": 2, "norm_eps": 0.1},  # so large that another value would show
]
POSITION = "vit.embeddings.position_embeddings"


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


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, images) -> jax.Array:
    return model.apply({"params": params}, images)


def our_logits(config, params, images) -> jax.Array:
    return apply(vit.build(config.model, config.data.num_classes), params, images)


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
    table = there[POSITION][0]
    np.testing.assert_array_equal(table[0], 0)
    np.testing.assert_array_equal(table[1:], sincos2d((4, 4), 32))


def test_sincos_models_come_back_without_a_table_at_any_size(make):
    config = make(patch=2, position="sincos2d")
    params = our_weights(config)
    there = huggingface.to_huggingface(params, config.model, config.data)
    assert_same(huggingface.from_huggingface(there, config.model, config.data), params)
    other = make(patch=2, position="sincos2d", image_size=12)
    assert_same(huggingface.from_huggingface(there, other.model, other.data), params)


def test_learned_positions_are_not_lost_to_a_sincos_model(make):
    config = make(patch=2)
    there = huggingface.to_huggingface(our_weights(config), config.model, config.data)
    other = make(patch=2, position="sincos2d")
    with pytest.raises(ConfigError, match="position='sincos2d' would drop them"):
        huggingface.from_huggingface(there, other.model, other.data)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"width": 16}, "the weights have model.width 32, the config has 16"),
        ({"depth": 2}, "the weights have model.depth 3, the config has 2"),
        ({"mlp": 64}, "the weights have model.mlp 128, the config has 64"),
        ({"patch": 2}, "the weights have model.patch 1, the config has 2"),
        ({"channels": 1}, "the weights have data.channels 3, the config has 1"),
        ({"pool": "mean"}, "Hugging Face's ViT has no config.model.pool='mean'"),
        ({"position": "none"}, "Hugging Face's ViT has no config.model.position='none'"),
        ({"layer_scale": 0.1}, "Hugging Face's ViT has no config.model.layer_scale=0.1"),
        ({"embed": "dictionary"}, "Hugging Face's ViT has no config.model.embed='dictionary'"),
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


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        (POSITION, (1, 13, 32), "13 positions: no [CLS] and a square grid"),
        ("vit.embeddings.cls_token", (32,), "cls_token of shape (32,), the config makes it (1, 1"),
        ("classifier.weight", (10, 8), "of shape (10, 8), the config makes it (any, 32)"),
        ("vit.encoder.layer.1.output.dense.bias", (31,), "of shape (31,), the config makes it (32"),
        ("vit.embeddings.patch_embeddings.projection.weight", (32, 3, 2, 4), "model.patch 4"),
    ],
)
def test_a_tensor_of_another_shape_is_named(make, name, shape, sentence):
    config = make(patch=2)
    there = huggingface.to_huggingface(our_weights(config), config.model, config.data)
    there[name] = np.ones(shape, np.float32)
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        huggingface.from_huggingface(there, config.model, config.data, interpolate=True)


def test_a_head_for_other_classes_is_left_to_the_merge(make):
    config = make(patch=2)
    there = huggingface.to_huggingface(our_weights(config), config.model, config.data)
    config.data.num_classes = 5
    params = huggingface.from_huggingface(there, config.model, config.data)
    assert params["head"]["kernel"].shape == (32, 10)


@pytest.mark.parametrize("source", ["hf", "hf/model.safetensors"])
def test_a_classifier_starts_one_that_pools_its_patches(make, tmp_path, source):
    """Its [CLS] is among the tokens there, too; a model without one is refused when found."""
    config = make(patch=2)
    params = our_weights(config)
    huggingface_directory.write(tmp_path / "hf", params, config)
    config.model.pool = "patches"
    assert_same(initial.read_weights(str(tmp_path / source), config), params)
    config.model.pool = "mean"
    with pytest.raises(ConfigError, match=r"ViT has no config\.model\.pool='mean'"):
        initial.find(str(tmp_path / source), config)


def test_positions_of_another_size_need_to_be_asked_for(make):
    config = make(patch=1)
    there = huggingface.to_huggingface(our_weights(config), config.model, config.data)
    other = make(patch=1, image_size=12)
    with pytest.raises(ConfigError, match="65 positions, the config needs 145: a PiT's positions"):
        huggingface.from_huggingface(there, other.model, other.data)
    grown = huggingface.from_huggingface(there, other.model, other.data, interpolate=True)
    position = grown["embed"]["position"]
    assert position.shape == (145, 32)
    np.testing.assert_array_equal(position[0], there[POSITION][0, 0])
    # A ramp down the rows stays one: the grid is neither transposed nor shifted.
    ramp = np.zeros((1, 65, 32), np.float32)
    ramp[0, 1:] = np.repeat(np.arange(8), 8)[:, None]
    there[POSITION] = ramp
    grown = huggingface.from_huggingface(there, other.model, other.data, interpolate=True)
    grid = grown["embed"]["position"][1:].reshape(12, 12, 32)
    np.testing.assert_allclose(grid, grid[:, :1, :1] + np.zeros((12, 12, 32)), atol=1e-5)
    centres = (np.arange(12) + 0.5) * 8 / 12 - 0.5  # of the new cells, in old ones
    np.testing.assert_allclose(grid[3:9, 0, 0], centres[3:9], atol=1e-5)


def test_patch_positions_of_another_size_are_refused_too(make):
    config = make(patch=2)
    there = huggingface.to_huggingface(our_weights(config), config.model, config.data)
    other = make(patch=2, image_size=16)
    with pytest.raises(ConfigError, match="learned positions belong to one image size"):
        huggingface.from_huggingface(there, other.model, other.data)


def test_fields_are_those_of_the_config_json_that_was_written(make, tmp_path):
    config = make(patch=2, channels=1, norm_eps=1e-12)
    huggingface_directory.write(tmp_path, our_weights(config), config)
    flat = flatten(config)
    found = huggingface_directory.fields(tmp_path)
    assert found.pop("classes") == ()
    assert found == {name: flat[name] for name in found}
    assert {"model.heads", "model.norm_eps", "data.num_classes", "data.mean"} < set(found)


def test_the_names_of_the_classes_go_along(make, tmp_path):
    config = make(patch=2)
    names = [f"kind {number}" for number in range(config.data.num_classes)]
    huggingface_directory.write(tmp_path, our_weights(config), config, names)
    said = json.loads((tmp_path / "config.json").read_text())
    assert said["id2label"]["9"] == "kind 9"
    assert said["label2id"]["kind 9"] == 9
    assert huggingface_directory.fields(tmp_path)["classes"] == tuple(names)
    said["id2label"] = {str(number): f"LABEL_{number}" for number in range(10)}
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert huggingface_directory.fields(tmp_path)["classes"] == ()  # which says nothing


def test_what_config_json_leaves_out_has_the_defaults_of_transformers(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit", "image_size": [32, 32]}')
    found = huggingface_directory.fields(tmp_path)
    assert (found["model.patch"], found["model.norm_eps"]) == (16, 1e-12)
    assert (found["data.image_size"], found["data.num_classes"]) == (32, 2)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"model_type": "bert"}, "describes a 'bert', not a 'vit'"),
        ({"_class_name": "AutoencoderKL"}, "describes a 'AutoencoderKL', not a 'vit'"),
        ({"model_type": "vit", "hidden_act": "relu"}, "only hidden_act 'gelu'"),
        ({"model_type": "vit", "qkv_bias": False}, "only hidden_act 'gelu' and qkv_bias true"),
        ({"model_type": "vit", "image_size": [8, 16]}, "image_size [8, 16] is no square"),
        ([], "holds no JSON object"),
    ],
)
def test_a_config_json_of_another_kind_of_model_is_refused(tmp_path, content, sentence):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        huggingface_directory.fields(tmp_path)


def test_a_directory_that_cannot_be_written_is_one_line(make, tmp_path):
    config = make(patch=2)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(StorageError, match=r"config\.json could not be written"):
        huggingface_directory.write(tmp_path, our_weights(config), config)


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
    huggingface_directory.write(tmp_path, params, config)
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
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_the_same(make, case):
    """Against float64: PyTorch's own float32 gradients are off by up to 1e-4 of a tensor."""
    config = make(**case)
    torch, theirs = transformers_model(config)
    images = pictures(config)
    params = huggingface.from_huggingface(published(theirs), config.model, config.data)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2)).double()
    theirs.double()(pixels).logits.square().sum().backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    expected = published(theirs)
    grads = jax.jit(jax.grad(lambda p: (our_logits(config, p, images) ** 2).sum()))(params)
    found = huggingface.to_huggingface(grads, config.model, config.data)
    assert set(found) == set(expected)
    scale = max(np.abs(x).max() for x in expected.values())
    worst = 0.0
    for name, x in expected.items():
        error = np.abs(found[name] - x).max()
        if name.endswith("key.bias"):  # the softmax cancels it: what is left is rounding
            assert error < 1e-7 * scale, name
        else:
            worst = max(worst, error / np.abs(x).max())
            assert error < 1e-5 * np.abs(x).max(), name
    print(f"gradients differ by {worst:.1e} of the largest of their tensor")


@pytest.mark.parity
def test_every_tensor_but_the_biases_of_keys_changes_the_logits(make):
    """What makes the comparisons above worth something: no tensor could be mixed up unseen."""
    config = make(patch=2)
    torch, theirs = transformers_model(config)
    images = pictures(config)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        before = theirs(pixels).logits
        for name, parameter in theirs.named_parameters():
            kept = parameter.clone()
            parameter.copy_(0.3 * torch.randn(kept.shape, generator=torch.Generator()))
            change = (theirs(pixels).logits - before).abs().max() / before.abs().max()
            parameter.copy_(kept)
            silent = re.search(r"(key|k_proj)\.bias$", name) is not None
            assert (change < 1e-5) if silent else (change > 1e-4), name


@pytest.mark.parity
def test_a_saved_directory_is_imported_and_exported(make, tmp_path):
    config = make(patch=2, norm_eps=1e-12)
    torch, theirs = transformers_model(config)
    import transformers

    theirs.save_pretrained(tmp_path / "theirs")
    fields = huggingface_directory.fields(tmp_path / "theirs")
    flat = flatten(config)
    assert fields.pop("classes") == ()  # LABEL_0 and so on name nothing
    assert fields == {name: flat[name] for name in fields}
    found, _ = tensors.read(tmp_path / "theirs" / "model.safetensors")
    params = huggingface.from_huggingface(found, config.model, config.data)
    huggingface_directory.write(tmp_path / "again", params, config)
    again, _ = tensors.read(tmp_path / "again" / "model.safetensors")
    assert_same(again, found)
    model = transformers.ViTForImageClassification.from_pretrained(tmp_path / "again").eval()
    pixels = torch.from_numpy(pictures(config).transpose(0, 3, 1, 2))
    assert torch.equal(model(pixels).logits, theirs(pixels).logits)
