"""Networks that look at sets of images: any number, any batches, even samples of the rows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pit_jax.errors import ConfigError
from pit_jax.evals import networks
from pit_jax.evals.networks import Network
from pit_jax.parallel import mesh as meshes
from pit_jax.weights.inception import Loaded


def mesh(count: int) -> jax.sharding.Mesh:
    sizes = {"data": -1, "fsdp": 1, "seq": 1, "model": 1}
    return meshes.make_mesh(sizes, jax.devices()[:count])


def stub(count: int = 8, sizes: list | None = None, **fields) -> Network:
    """Its features are an image's mean a channel and its first pixel."""
    split = NamedSharding(mesh(count), meshes.batch_spec())
    whole = NamedSharding(mesh(count), PartitionSpec())

    def function(images: jax.Array) -> dict[str, jax.Array]:
        if sizes is not None:
            sizes.append(len(images))
        x = images.astype(jnp.float32)
        return {"pool": jnp.concatenate([x.mean((1, 2)), x[:, 0, 0, :1]], -1)}

    given = {"name": "stub", "path": "stub.pth", "sha256": "0" * 64, "dim": 4}
    jitted = jax.jit(function, in_shardings=split, out_shardings=whole)
    return Network(**given | {"function": jitted, "sharding": split} | fields)


def images(count: int, side: int = 4, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (count, side, side, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def expected(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return np.concatenate([x.mean((1, 2)), x[:, 0, 0, :1]], -1)


@pytest.mark.parametrize("count", [1, 7, 8, 300])
@pytest.mark.parametrize("devices", [1, 8])
def test_any_number_of_images(count, devices):
    x = images(count)
    found = stub(devices)(x)["pool"]
    assert found.shape == (count, 4)
    np.testing.assert_allclose(found, expected(x), atol=1e-4)


def test_few_programs_are_compiled_whatever_numbers_come():
    sizes: list[int] = []
    network = stub(8, sizes)
    for count in range(1, 300, 7):
        network(images(count))
    assert sizes == [8, 16, 32, 64, 128, 256]


def test_grey_images_become_three_channels_and_back():
    grey = images(3, channels=1)
    np.testing.assert_allclose(stub()(grey)["pool"], expected(grey.repeat(3, -1)), atol=1e-4)
    one = stub(1, dim=2, image_shape=(4, 4, 1))
    np.testing.assert_allclose(one(grey.repeat(3, -1))["pool"], expected(grey), atol=1e-4)
    with pytest.raises(ConfigError, match=r"coloured, but stub.pth classifies grey ones"):
        one(images(3))


def test_images_of_another_shape_are_refused():
    network = stub(image_shape=(8, 8, 3))
    sentence = "generated images are 4 × 4 × 3, but stub.pth classifies 8 × 8 × 3"
    with pytest.raises(ConfigError, match=sentence):
        network.check((4, 4, 3), "generated images")
    with pytest.raises(ConfigError, match="the images are 8 × 8 × 1"):
        network(images(2, 8, 1))
    with pytest.raises(ConfigError, match="have 4 channels, Inception takes 1 or 3"):
        stub().check((32, 32, 4), "latents")


@pytest.mark.parametrize(("count", "rows"), [(100, 10), (100, 33), (7, 10), (11, 10)])
def test_rows_are_kept_from_all_over_the_set(count, rows):
    x = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 4, 3))
    batches = [x[:2], x[2:2], x[2 : count // 2], x[count // 2 :]]
    found = networks.describe(stub(), batches, count, rows)
    kept = found.features[:, 0]
    assert len(kept) == min(count, rows)
    assert kept[0] == 0
    gaps = np.diff(kept)
    assert set(gaps) <= {max(1, count // rows), max(1, -(-count // rows))}
    assert found.count == count
    np.testing.assert_allclose(found.pool.mean, [(count - 1) / 2] * 4)


def test_all_rows_are_kept_if_asked():
    x = images(40)
    found = networks.describe(stub(), [x[:30], x[30:]], 40, None)
    np.testing.assert_allclose(found.features, expected(x), atol=1e-4)
    np.testing.assert_allclose(found.pool.covariance, np.cov(expected(x).T), rtol=1e-5)


class Small(nn.Module):
    """In Inception's place: what it says shows how it was asked."""

    preprocessing: str

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, ())
        pool = scale * x.astype(jnp.float32).mean((1, 2))
        outputs = {"pool": pool, "spatial": 2 * pool, "logits": pool}
        return outputs | {"probabilities": jax.nn.softmax(pool)}


def test_inception_is_loaded_once_and_says_what_it_is(monkeypatch):
    loads: list[str] = []

    def load(path):
        loads.append(path)
        return Loaded({"scale": np.float32(3)}, "abc")

    monkeypatch.setattr(networks, "Inception", Small)
    monkeypatch.setattr(networks.weights, "load", load)
    networks.inception.cache_clear()
    network = networks.inception("fid.pth", "pytorch", mesh(8))
    assert networks.inception("fid.pth", "pytorch", mesh(8)) is network
    assert loads == ["fid.pth"]
    x = images(5)
    found = network(x)
    assert set(found) == {"pool", "spatial", "probabilities"}
    np.testing.assert_allclose(found["pool"], 3 * expected(x)[:, :3], rtol=1e-5)
    said = {"name": "inception", "path": "fid.pth", "sha256": "abc", "resize": "pytorch"}
    assert network.provenance() == said
    networks.inception.cache_clear()
