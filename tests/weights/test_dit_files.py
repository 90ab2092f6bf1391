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


@pytest.mark.parametrize("changes", [(), ("model.position=learned", "model.frequency_steps=127")])
def test_what_diffusers_would_compute_otherwise_is_not_written(tmp_path, changes):
    config = settings(*changes)
    with pytest.raises(ConfigError, match="position" if changes else "frequency_steps"):
        dit_files.write_diffusers(str(tmp_path / "out"), random_params(config), config)
    assert not (tmp_path / "out").exists()


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
