"""A diffusion run's weights to the files of others and back, by the command line."""

import json
import zipfile

import jax
import numpy as np
import pytest

from pit_jax import cli, configfile, tasks
from pit_jax.errors import ConfigError
from pit_jax.weights import dit_files, initial, tensors
from tests.saved_runs import save_run

SPEC = "configs/digits_diffusion.py:dit/2"
SMALL = ("model.width=16", "model.depth=2", "model.position=sincos2d")


def settings(*changes: str):
    return configfile.load(SPEC, [f"--config.{change}" for change in (*SMALL, *changes)])


def random_params(config):
    shapes = jax.eval_shape(tasks.build(config).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)


def assert_same(found, expected):
    for name, x in tensors.flatten(expected).items():
        np.testing.assert_array_equal(tensors.flatten(found)[name], x, err_msg=name)


def test_public_names_there_and_back(tmp_path):
    config = settings()
    params, path = random_params(config), tmp_path / "dit.safetensors"
    dit_files.write_public(str(path), params, config)
    found, fields = tensors.read(path)
    assert fields is None
    assert found["blocks.1.attn.qkv.weight"].shape == (48, 16)
    assert_same(dit_files.read(str(path), config), params)


def test_a_diffusers_directory_there_and_back(tmp_path):
    config = settings("model.frequency_steps=127")
    params = random_params(config)
    dit_files.write_diffusers(str(tmp_path), params, config)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"].startswith("DiT")
    assert_same(dit_files.read(str(tmp_path), config), params)


def edited(directory, **fields) -> None:
    """Changes the config.json there; a field of None is taken out."""
    path = directory / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: x for name, x in config.items() if x is not None}))


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("num_attention_heads", 1, "=1, config.model.heads makes it 2"),
        ("attention_head_dim", 4, "=4, config.model.width / config.model.heads makes it 8"),
        ("num_layers", 3, "=3, config.model.depth makes it 2"),
        ("patch_size", 1, "=1, config.model.patch makes it 2"),
        ("sample_size", 16, "=16, config.data.image_size makes it 8"),
        ("in_channels", 4, "=4, config.data.channels makes it 1"),
        ("out_channels", 1, "=1, config.data.channels with .*learn_sigma makes it 2"),
        ("num_embeds_ada_norm", 1000, "=1000, config.data.num_classes makes it 10"),
        ("norm_eps", 1e-5, "=1e-05 in half of its norms, where ours have 1e-06 in all: name "),
        ("activation_fn", "geglu", "='geglu', only 'gelu-approximate' is supported"),
        ("attention_bias", False, "=False, only True is supported"),
        ("norm_type", "ada_norm", "='ada_norm', only 'ada_norm_zero' is supported"),
        ("norm_elementwise_affine", True, "=True, only False is supported"),
        # What it leaves out is what diffusers' module then takes.
        ("num_attention_heads", None, "=16, config.model.heads makes it 2"),
        ("out_channels", None, "=1, config.data.channels with .*learn_sigma makes it 2"),
    ],
)
def test_a_directory_whose_config_says_otherwise_is_refused(directory, field, value, sentence):
    """With the same tensors in all cases: most of these show in no shape."""
    edited(directory, **{field: value})
    with pytest.raises(ConfigError, match=f"config.json has {field}{sentence}") as info:
        dit_files.read(str(directory), settings())
    assert "\n" not in str(info.value)
    dit_files.read(str(directory / "diffusion_pytorch_model.safetensors"), settings())


@pytest.fixture
def directory(tmp_path):
    """A diffusers directory of the model of `settings`, but for its times' frequencies."""
    config = settings("model.frequency_steps=127")
    dit_files.write_diffusers(str(tmp_path), random_params(config), config)
    return tmp_path


def test_the_public_directory_of_old_is_read(directory):
    """By its class of then, without the fields that came later."""
    edited(directory, _class_name="Transformer2DModel", norm_eps=None, num_vector_embeds=1)
    dit_files.read(str(directory), settings())
    edited(directory, norm_type="ada_norm_single")  # PixArt
    with pytest.raises(ConfigError, match="describes a 'Transformer2DModel', not a 'DiTTransf"):
        dit_files.read(str(directory), settings())


def test_a_directory_without_a_config_of_a_dit_is_refused(directory):
    edited(directory, _class_name="AutoencoderKL")
    with pytest.raises(ConfigError, match="describes a 'AutoencoderKL', not a 'DiTTransformer2DM"):
        dit_files.read(str(directory), settings())
    for text, sentence in (("[]", "holds no JSON object"), ("{", "config.json cannot be read: ")):
        (directory / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=sentence):
            dit_files.read(str(directory), settings())
    (directory / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no config\.json: name the \.safetensors file"):
        dit_files.read(str(directory), settings())


@pytest.mark.parametrize("spec", [(), ("--config", "configs/digits.py:pit")])
def test_a_directory_of_a_dit_needs_a_diffusion_model(directory, spec, capsys):
    """Its config.json knows the network, and nothing of schedule, prediction or data."""
    out = directory / "out.safetensors"
    assert cli.run(["weights", "import", str(directory), str(out), *spec]) == 2
    assert "holds a DiT, whose config.json does not say how it was" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ((), r"frequency_steps=128, only 127: write --format public \(public DiT's names\)$"),
        (("model.position=learned",), "position='learned', only 'sincos2d': write --format public"),
        (
            ("model.position=learned", "model.frequency_steps=127"),
            "position='learned', only 'sincos2d': write --format pit_jax$",
        ),
        (("model.position=none",), "position='none', .*: write --format pit_jax$"),
        (
            ("diffusion.conditional=False", "sample.guidance=1", "model.frequency_steps=127"),
            "has no unconditional model: write --format pit_jax$",
        ),
    ],
)
def test_what_diffusers_would_compute_otherwise_is_not_written(tmp_path, changes, sentence):
    """The sentence names a format that holds it."""
    config, out = settings(*changes), tmp_path / "out"
    params = random_params(config)
    with pytest.raises(ConfigError, match=sentence) as info:
        dit_files.write_diffusers(str(out), params, config)
    assert "\n" not in str(info.value)
    if "--format public" in str(info.value):
        dit_files.write_public(str(tmp_path / "public.safetensors"), params, config)
    else:
        with pytest.raises(ConfigError, match=r": write --format pit_jax$"):
            dit_files.write_public(str(out), params, config)
    assert not out.exists()


def test_other_names_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    tensors.write(path, {"x": np.zeros(3, np.float32)})
    with pytest.raises(ConfigError, match="neither public DiT's tensors"):
        dit_files.read(str(path), settings())


def test_a_run_is_exported_and_imported(tmp_path, capsys):
    run, out, back = (str(tmp_path / n) for n in ("run", "public.safetensors", "ours.safetensors"))
    config = settings()
    save_run(config, run)
    assert cli.run(["weights", "export", run, out, "--format", "public"]) == 0
    assert cli.run(["weights", "import", out, back, "--config", f"{run}/config.json"]) == 0
    assert "use it as config.init_from" in capsys.readouterr().out
    assert_same(initial.read_weights(back, config), initial.read_weights(run, config))
    assert cli.run(["weights", "export", run, f"{run}2"]) == 2
    assert "frequency_steps" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"made with model.frequency_steps=128"):
        initial.find(back, settings("model.frequency_steps=127"))


@pytest.mark.parity
def test_diffusers_loads_the_directory_and_says_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config = settings("model.frequency_steps=127")
    params = random_params(config)
    dit_files.write_diffusers(str(tmp_path), params, config)
    net = diffusers.DiTTransformer2DModel.from_pretrained(str(tmp_path)).eval()
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 8, 8, 1)).astype(np.float32)
    time, label = np.array([0, 3, 20], np.float32), np.array([1, 9, 10])
    with torch.no_grad():
        expected = net(
            torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(time), torch.from_numpy(label)
        ).sample
    found = jax.jit(tasks.build(config).model.apply)({"params": params}, x, time, label)
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1).numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parity
def test_a_file_of_torch_save_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    config = settings()
    params, path = random_params(config), tmp_path / "dit.safetensors"
    dit_files.write_public(str(path), params, config)
    found, _ = tensors.read(path)
    torch.save({name: torch.from_numpy(x) for name, x in found.items()}, tmp_path / "dit.pt")
    assert zipfile.is_zipfile(tmp_path / "dit.pt")
    assert_same(dit_files.read(str(tmp_path / "dit.pt"), config), params)
