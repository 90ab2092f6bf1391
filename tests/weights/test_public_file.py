"""Files as others leave them: prefixes, layouts, training checkpoints, dtypes; nothing executed."""

import argparse
import io
import json
import os
import pickle

import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax import configfile, validation
from pit_jax.errors import ConfigError
from pit_jax.weights import (
    exchange,
    huggingface,
    huggingface_directory,
    huggingface_mae,
    initial,
    public_file,
    public_vit,
    tensors,
)

from .test_huggingface import assert_same, our_weights

PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module.")


@pytest.fixture
def config(tiny):
    tiny.model.update(width=16, depth=2, heads=2, patch=2, norm_eps=1e-6)
    return validation.resolve(tiny)


def bare(found: dict, pooler: bool) -> dict:
    """As ViTModel is saved: no head, and no name of its own in front."""
    out = {n.removeprefix("vit."): x for n, x in found.items() if not n.startswith("classifier.")}
    if pooler:
        width = len(out["layernorm.bias"])
        out |= {"pooler.dense.weight": np.ones((width, width)), "pooler.dense.bias": np.ones(width)}
    return out


def as_timm(found: dict) -> dict:
    """As timm, DeiT and public MAE call the same tensors, written out by hand."""
    out = {}
    for name, tensor in found.items():
        name = name.replace("vit.embeddings.cls_token", "cls_token")
        name = name.replace("vit.embeddings.position_embeddings", "pos_embed")
        name = name.replace("vit.embeddings.patch_embeddings.projection", "patch_embed.proj")
        name = name.replace("vit.layernorm", "norm").replace("classifier", "head")
        name = name.replace("vit.encoder.layer", "blocks")
        name = name.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")
        name = name.replace("attention.output.dense", "attn.proj")
        name = name.replace("intermediate.dense", "mlp.fc1").replace("output.dense", "mlp.fc2")
        name = name.replace("decoder.decoder_layers", "decoder_blocks")
        name = name.replace("decoder.mask_token", "mask_token")
        out[name.replace("decoder.decoder_", "decoder_")] = tensor
    for name in [name for name in out if ".attention.attention.query." in name]:
        three = (name.replace("query", which) for which in ("query", "key", "value"))
        joined = np.concatenate([out.pop(each) for each in three])
        out[name.replace("attention.attention.query", "attn.qkv")] = joined
    return out


@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrappers_take_their_names_off(prefix):
    found = {f"{prefix}blocks.0.norm.weight": np.ones(2), f"{prefix}module_list.0": np.ones(1)}
    assert set(public_file.unwrapped(found)) == {"blocks.0.norm.weight", "module_list.0"}


def test_wrappers_in_the_middle_and_lightnings_attribute():
    names = ("model.blocks.0._orig_mod.w", "model.blocks._checkpoint_wrapped_module.1.w")
    found = public_file.unwrapped(dict.fromkeys(names, np.ones(1)))
    assert set(found) == {"blocks.0.w", "blocks.1.w"}
    both = {"module.w": np.ones(1), "w": np.zeros(1)}  # would be one
    assert public_file.unwrapped(both) == both


@pytest.mark.parametrize("prefix", PREFIXES[::3])
@pytest.mark.parametrize("layout", ["classifier", "with pooler", "without", "timm"])
def test_every_layout_is_a_start(config, tmp_path, layout, prefix):
    params = our_weights(config)
    found = huggingface.to_huggingface(params, config.model, config.data)
    if layout == "timm":
        found = as_timm(found)
        assert "blocks.1.attn.qkv.weight" in found
        assert not any("attention" in name or "vit" in name for name in found)
    elif layout != "classifier":
        found = bare(found, layout == "with pooler")
        del params["head"]
    path = tmp_path / "x.safetensors"
    tensors.write(path, {prefix + name: x for name, x in found.items()})
    assert_same(initial.read_weights(str(path), config), params)


def test_an_encoder_without_a_head_is_imported_without_one(config, tmp_path):
    found = bare(huggingface.to_huggingface(our_weights(config), config.model, config.data), True)
    tensors.write(tmp_path / "theirs" / "model.safetensors", found)
    said = huggingface.encoder_config(config.model, config.data) | {"model_type": "vit"}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(said))
    lines: list[str] = []
    target = str(tmp_path / "ours.safetensors")
    exchange.import_weights(str(tmp_path / "theirs"), target, None, False, lines.append)
    assert "has no head" in lines[0]
    flat, fields = tensors.read(target)
    assert not any(name.startswith("head") for name in flat)
    assert "data.mean" not in fields  # nobody said it
    expected = our_weights(config)
    del expected["head"]
    assert_same(initial.read_weights(target, config), expected)
    assert_same(initial.read_weights(str(tmp_path / "theirs"), config), expected)


def test_public_mae_is_an_encoder_or_all_of_it(tiny, tmp_path):
    tiny.task = "mae"
    tiny.model.update(patch=2, norm_eps=1e-6)
    tiny.mae.update(decoder_width=8, decoder_depth=1, decoder_heads=2)
    tiny.eval.what = ()
    config = validation.resolve(tiny)
    from .test_huggingface_mae import our_weights as mae_weights

    params = mae_weights(config)
    found = huggingface_mae.to_huggingface(params, config.model, config.data, config.mae)
    path = tmp_path / "x.safetensors"
    theirs = as_timm(found)
    assert {"mask_token", "decoder_embed.weight", "decoder_blocks.0.attn.qkv.bias"} <= set(theirs)
    tensors.write(path, theirs)
    assert_same(initial.read_weights(str(path), config), params)
    tiny.update(task="classification", init_task="mae", init_from=str(path))
    tiny.model.pool = "patches"
    tuned = validation.resolve(tiny)
    del params["decoder"]
    assert_same(initial.read_weights(str(path), tuned), params)
    tensors.write(path, {n: x for n, x in theirs.items() if "decoder" not in n})
    assert_same(initial.read_weights(str(path), tuned), params)
    tiny.init_task = "diffusion"
    with pytest.raises(ConfigError, match="does not say what it was trained by"):
        initial.read_weights(str(path), validation.resolve(tiny))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_half_precision_is_read(config, tmp_path, dtype):
    params = our_weights(config)
    found = huggingface.to_huggingface(params, config.model, config.data)
    tensors.write(tmp_path / "x.safetensors", {n: x.astype(dtype) for n, x in found.items()})
    read = tensors.flatten(initial.read_weights(str(tmp_path / "x.safetensors"), config))
    for name, expected in tensors.flatten(params).items():
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], expected.astype(dtype).astype(np.float32))


# Training checkpoints, as torch.save writes them --------------------------------------------


class Evil:
    """Runs a command where a pickle is trusted."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def checkpoint(torch, kind: str, net: dict, target) -> dict:
    """What the public training code of that name saves, moving averages marked by +1."""
    state = {name: torch.from_numpy(np.array(x)) for name, x in net.items()}
    average = {name: x + 1 for name, x in state.items()}
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 1.0}]}
    args = argparse.Namespace(lr=1e-4, evil=Evil(target), betas=(0.9, 0.95), best=np.float64(3))
    match kind:
        case "DiT":
            return {"model": state, "ema": average, "opt": optimizer, "args": args}
        case "DeiT":
            found = {"model": state, "optimizer": optimizer, "epoch": 3, "args": args}
            return found | {"model_ema": {f"module.{n}": x for n, x in average.items()}}
        case "MAE":
            return {"model": state, "optimizer": optimizer, "epoch": 3, "scaler": {}, "args": args}
        case "timm":
            found = {"epoch": 3, "arch": "vit", "state_dict": state, "args": args, "metric": 0.5}
            return found | {"state_dict_ema": average}
        case "lightning":
            named = {f"net._orig_mod.{name}": x for name, x in state.items()}
            return {"state_dict": named, "pytorch-lightning_version": "2.5", "callbacks": args}


@pytest.mark.parity
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        ("DiT", "'ema' was taken, the moving average"),
        ("DeiT", "'model_ema' was taken, the moving average"),
        ("MAE", "'model' was taken"),
        ("timm", "'state_dict_ema' was taken, the moving average"),
        ("lightning", "'state_dict' was taken"),
    ],
)
def test_a_training_checkpoint_holds_the_weights(tmp_path, kind, taken, legacy):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    net = {"blocks.0.w": np.arange(6, dtype=np.float32).reshape(2, 3), "head.bias": np.ones(2)}
    path, target = tmp_path / "checkpoint.pth", tmp_path / "made"
    content = checkpoint(torch, kind, net, target)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    found = public_file.read(path)
    assert taken in found.note
    assert "\n" not in found.note
    assert set(found.tensors) == set(net)
    for name, expected in net.items():
        np.testing.assert_array_equal(found.tensors[name], expected + ("average" in found.note))
    assert not target.exists()


@pytest.mark.parity
@pytest.mark.parametrize("legacy", [False, True])
def test_bfloat16_that_torch_saved_is_read(tmp_path, legacy):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    state = {"w": torch.linspace(-3, 3, 7).to(torch.bfloat16), "mask": torch.tensor([True, False])}
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    found = public_file.read(tmp_path / "x.pth").tensors
    assert found["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["w"].astype(np.float32), state["w"].float().numpy())
    np.testing.assert_array_equal(found["mask"], [True, False])


def test_what_stands_where_a_tensor_should_is_named_and_not_run(tmp_path):
    target = tmp_path / "made"
    state = pickle.dumps({"model": {"w": Evil(target), "b": 1}}, protocol=2)
    file = io.BytesIO()
    import zipfile

    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", state)
    (tmp_path / "x.pth").write_bytes(file.getvalue())
    with pytest.raises(ConfigError, match=r"x\.pth holds no dict of tensors"):
        public_file.read(tmp_path / "x.pth")
    assert not target.exists()


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["DiT", "MAE"])
def test_a_checkpoint_is_imported_and_a_start(tmp_path, kind, config):
    """Of public DiT by its moving average; the line says so."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if kind == "DiT":
        import jax

        from pit_jax import tasks
        from pit_jax.weights import public_dit

        from .test_dit_files import settings

        config = settings()
        task = tasks.build(config)
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda x: rng.normal(size=x.shape).astype(np.float32),
            jax.eval_shape(task.init, jax.random.key(0)),
        )
        net = public_dit.to_public(params, task.model, config.data.image_size)
        params = public_dit.from_public(
            {n: x if n == "pos_embed" else x + 1 for n, x in net.items()},
            task.model,
            config.data.image_size,
            config.data.channels,
        )
    else:
        params = our_weights(config)
        net = as_timm(huggingface.to_huggingface(params, config.model, config.data))
    content = checkpoint(torch, kind, net, tmp_path / "made")
    if kind == "DiT":
        content["ema"]["pos_embed"] -= 1  # a buffer, which no average moves
    torch.save(content, tmp_path / "x.pt")
    found = initial.find(str(tmp_path / "x.pt"), config)
    assert ("'ema' was taken" if kind == "DiT" else "'model' was taken") in found.note
    assert_same(found.read(), params)
    lines: list[str] = []
    (tmp_path / "config.json").write_text(configfile.to_json(config))
    exchange.import_weights(
        str(tmp_path / "x.pt"),
        str(tmp_path / "ours.safetensors"),
        str(tmp_path / "config.json"),
        False,
        lines.append,
    )
    assert found.note in lines
    assert_same(initial.read_weights(str(tmp_path / "ours.safetensors"), config), params)


@pytest.mark.parity
def test_transformers_own_layouts_are_starts(config, tmp_path):
    """Of what `save_pretrained` writes, in float32 and bfloat16."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = huggingface.encoder_config(config.model, config.data)
    made = {
        "classifier": transformers.ViTForImageClassification,
        "pooler": transformers.ViTModel,
        "none": lambda c: transformers.ViTModel(c, add_pooling_layer=False),
        "masked": transformers.ViTForMaskedImageModeling,
        "mae": transformers.ViTMAEModel,
    }
    for name, make in made.items():
        kind = transformers.ViTMAEConfig if name == "mae" else transformers.ViTConfig
        more = {"num_labels": 10} if name == "classifier" else {"encoder_stride": 2}
        net = make(kind(**sizes, **({} if name == "mae" else more)))
        for dtype in (torch.float32, torch.bfloat16):
            directory = tmp_path / f"{name}-{dtype}".replace("torch.", "")
            net.to(dtype).save_pretrained(directory)
            found = tensors.flatten(initial.read_weights(str(directory), config))
            layers = dict(net.state_dict())
            key = next(
                n for n in layers if n.endswith("embeddings.patch_embeddings.projection.bias")
            )
            expected = layers[key].float().numpy()
            np.testing.assert_array_equal(found["embed/patch/bias"], expected)
            assert ("head/kernel" in found) == (name == "classifier")
    torch.save(net.float().state_dict(), tmp_path / "mae.bin")
    assert "vit.embeddings.cls_token" in public_vit.read(tmp_path / "mae.bin").tensors
    assert huggingface_directory.weights(directory).name == "model.safetensors"
